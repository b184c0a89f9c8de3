"""Networks for clips: every number over all positions of space and time, held to written-out matrices in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from probe_reference import brute_avg_dist, brute_block, brute_columns, brute_context
from torch import Tensor, nn

import nlprobe
from nlprobe.blocks import ContextConfig, NonLocalConfig, SqueezeExcitationConfig
from nlprobe.blocks.settings import BlockConfig
from nlprobe.models import Insertion, ResNetConfig, VideoConfig, VideoResNet, build, names

TRUNK = ResNetConfig(layers=(1, 2, 2, 1), block="basic", width=8, classes=0)
INSTANTIATIONS = ("gaussian", "embedded_gaussian", "dot_product", "concat")


def network(block: BlockConfig, seed: int = 1) -> VideoResNet:
    """Blocks in c3 and c4 as in the paper, none of them the identity, in float64 and evaluation mode."""
    insertions = tuple(Insertion(block, stage, (0, 1), "after_block") for stage in ("c3", "c4"))
    config = VideoConfig(backbone=replace(TRUNK, insertions=insertions), classes=5)
    built = build(config, seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for site in built.sites():
            for parameter in built.get_submodule(site.replace(":", ".")).parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return built


def clips(count: int = 2, frames: int = 3) -> Tensor:
    return torch.randn(count, 3, frames, 40, 56, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def seen_by(model: VideoResNet, batch: Tensor) -> dict[str, Tensor]:
    """The input of every block."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(site.replace(":", ".")).register_forward_pre_hook(
            lambda module, inputs, site=site: found.update({site: inputs[0].clone()})
        )
        for site in model.sites()
    ]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
@pytest.mark.parametrize("sub_sample", ["none", "pool_then_project"])
def test_all_numbers_equal_the_written_out_formulas_at_every_site(instantiation: str, sub_sample: str) -> None:
    model = network(NonLocalConfig(instantiation, sub_sample=sub_sample))
    batch = clips()
    with nlprobe.probe(model, precision="float64") as probe, torch.no_grad():
        model(batch)
    frame = probe.frame()
    inputs = seen_by(model, batch)
    assert [site.name for site in probe.sites] == model.sites()
    assert all(audit.status == "passed" and max(audit.errors.values()) < 1e-10 for audit in probe.audit())
    for site in model.sites():
        block = model.get_submodule(site.replace(":", "."))
        at_site = frame[frame["site"] == site]
        n, pooled = (3 * 5 * 7, 3 * 2 * 3) if "layer2" in site else (3 * 3 * 4, 3 * 1 * 2)
        attention = at_site[at_site["quantity"] == "att"]
        assert set(attention["n_queries"]) == {n}
        assert set(attention["n_keys"]) == {n if sub_sample == "none" else pooled}
        for clip in range(len(batch)):
            found = brute_block(block, inputs[site][clip : clip + 1])
            of_clip = at_site[at_site["image"] == str(clip)]
            assert set(of_clip["quantity"]) == set(found)
            for quantity, rows in found.items():
                (measured,) = of_clip.loc[of_clip["quantity"] == quantity, "avg_dist"]
                assert measured == pytest.approx(brute_avg_dist(rows), rel=1e-6, abs=1e-10), (site, quantity)
            softmax = "gaussian" in instantiation
            for name, number in brute_columns(found, block.attention.logit_scale, softmax).items():
                (measured,) = of_clip[name].dropna()
                assert measured == pytest.approx(number, rel=1e-5), (site, name)


@pytest.mark.parametrize("block", [ContextConfig.snl(), ContextConfig.gc(4), ContextConfig.se_with_ln(4)])
def test_blocks_with_one_map_are_measured_over_space_and_time(block: ContextConfig) -> None:
    model = network(block)
    batch = clips()
    with nlprobe.probe(model) as probe, torch.no_grad():
        model(batch)
    frame = probe.frame()
    assert all(audit.status == "passed" for audit in probe.audit())
    for site, x in seen_by(model, batch).items():
        at_site = frame[frame["site"] == site]
        for clip in range(len(batch)):
            found = brute_context(model.get_submodule(site.replace(":", ".")), x[clip : clip + 1])
            of_clip = at_site[at_site["image"] == str(clip)].set_index("quantity")
            weights, rows = found["weights"], found["output"]
            assert of_clip.loc["input", "avg_dist"] == pytest.approx(brute_avg_dist(found["input"]), rel=1e-6)
            assert of_clip.loc["att", "n_eff"] == pytest.approx(float(1 / weights.square().sum()), rel=1e-6)
            assert of_clip.loc["att", "avg_dist"] == 0
            expected = 0 if block.fusion == "add" else brute_avg_dist(rows)
            assert of_clip.loc["output", "avg_dist"] == pytest.approx(expected, rel=1e-6)


def test_squeeze_and_excitation_of_clips_is_measured() -> None:
    model = network(SqueezeExcitationConfig(4))
    with nlprobe.probe(model) as probe, torch.no_grad():
        model(clips())
    assert {audit.status for audit in probe.audit()} == {"passed"}
    assert probe.frame().query("quantity == 'att'")["n_eff"].tolist() == pytest.approx([105.0] * 4 + [36.0] * 4)


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("miniature-kinetics/slowonly-")])
def test_every_miniature_network_agrees_with_its_audit(name: str) -> None:
    model = build(name, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    spread = 1e-4 if name.endswith("-glore") else 0.02  # a GloRe unit is cubic in x, and five of them overflow
    with torch.no_grad():
        for parameter in model.parameters():  # nothing stays the identity that it starts as
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
        with nlprobe.probe(model) as probe:
            model(torch.randn(2, 3, 4, 64, 64, generator=generator))
    assert [site.name for site in probe.sites] == model.sites()
    assert all(audit.errors and max(audit.errors.values()) < 1e-4 for audit in probe.audit())
    assert probe.frame()["avg_dist"].notna().all()


def test_a_probe_changes_neither_the_logits_nor_the_gradients_of_a_clip() -> None:
    def run(probed: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model = network(NonLocalConfig(sub_sample="pool_then_project")).train()
        batch = clips().requires_grad_()
        if probed:
            with nlprobe.probe(model):
                loss = model(batch).square().sum()
        else:
            loss = model(batch).square().sum()
        loss.backward()
        return [loss.detach(), batch.grad, *(p.grad for p in model.parameters()), *model.state_dict().values()]

    for plain, probed in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, probed)


def test_a_wrong_product_over_space_and_time_is_caught() -> None:
    model = network(NonLocalConfig())
    attention = model.layer2[0].after_block.attention
    forward = attention.forward

    def shuffled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return forward(query, key, value.unflatten(1, (3, -1)).flip(1).flatten(1, 2))  # values of other frames

    attention.forward = shuffled
    with pytest.raises(nlprobe.CaptureError, match=r"layer2\.0:after_block"), nlprobe.probe(model), torch.no_grad():
        model(clips())


class FrameByFrame(nn.Module):
    """Attention within every frame of a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.embed = nn.Conv3d(3, 4, (1, 8, 8), stride=(1, 8, 8))

    def forward(self, batch: Tensor) -> Tensor:
        rows = self.embed(batch).permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)  # (b t, h w, c)
        return self.attention(rows, rows, rows)[0].mean(1).unflatten(0, batch.shape[::2][:2]).mean(1)


def test_attention_within_frames_is_averaged_within_the_clip() -> None:
    model = FrameByFrame().eval()
    batch = torch.randn(2, 3, 5, 32, 24)
    with nlprobe.probe(model, quantities=("input",)) as probe, torch.no_grad():
        model(batch)
        rows = model.embed(batch)
    frame = probe.frame()
    assert frame["image"].tolist() == ["0", "1"]
    assert frame["groups"].tolist() == [5, 5]
    for clip, measured in zip(rows, frame["avg_dist"], strict=True):
        expected = np.mean([brute_avg_dist(each.flatten(1).T) for each in clip.unbind(1)])
        assert measured == pytest.approx(expected, rel=1e-5)


def test_clips_of_other_lengths_have_other_numbers_of_positions() -> None:
    model = network(NonLocalConfig())
    with nlprobe.probe(model, sites="layer2.0*", quantities=("att",)) as probe, torch.no_grad():
        model(clips(1, 3))
        model(clips(1, 5))
    np.testing.assert_array_equal(probe.frame()["n_queries"], [105, 175])
