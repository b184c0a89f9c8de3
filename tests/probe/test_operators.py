"""The context operators of segmentation in the probe: their numbers written out, and what must be caught or refused."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from operators_reference import drawn, inputs_of, operators, written_out
from probe_reference import brute_avg_dist
from torch import Tensor, nn

import nlprobe
from nlprobe.blocks import (
    AsymmetricFusion,
    ChannelAttention,
    Disentangled,
    DisentangledConfig,
    ObjectContext,
    PairwiseAttention,
    PositionAttention,
)
from nlprobe.blocks.asymmetric import PyramidPooling
from nlprobe.errors import CaptureError, ConfigError
from nlprobe.probe import find_sites, init_block
from nlprobe.stats.summary import heads_of, summarise

EACH = pytest.mark.parametrize("name", operators())
DISENTANGLED = pytest.mark.parametrize("name", [name for name in operators() if name.startswith("dnl")])


def probed(block: nn.Module, inputs: tuple[Tensor, ...] | None = None, **settings: object) -> nlprobe.probe.Probe:
    with nlprobe.probe(block, **settings) as probe, torch.no_grad():
        block(*(inputs_of(block) if inputs is None else inputs))
    return probe


def of_image(frame: pd.DataFrame, index: int, quantity: str, head: str | None = None) -> pd.Series:
    found = frame[(frame["image"] == str(index)) & (frame["quantity"] == quantity)]
    if head is not None:
        found = found[found["head"] == head]
    assert len(found) == 1 or head is None
    return found.iloc[0]


def map_columns(maps: Tensor, mass: float) -> dict[str, float]:
    """Columns of rows that sum to `mass`."""
    c = maps - maps.mean(1, keepdim=True)
    mixed = maps / mass
    return {
        "avg_dist": brute_avg_dist(maps),
        "entropy": float(-(mixed * mixed.clamp_min(1e-300).log()).sum(1).mean() / math.log(maps.shape[1])),
        "n_eff": float((maps.sum(1).square() / maps.square().sum(1)).mean()),
        "shared": float(c.mean(0).square().sum() / c.square().sum(1).mean()),
    }


@EACH
def test_all_numbers_equal_the_written_out_formulas(name: str) -> None:
    block = operators()[name]
    inputs = inputs_of(block)
    probe = probed(block, inputs)
    frame = probe.frame()
    assert probe.audit()[0].status == "passed"
    for index in range(2):
        found = written_out(block, *(tensor[index : index + 1] for tensor in inputs))
        quantities = {key: rows for key, rows in found.items() if key not in ("pairwise", "unary")}
        assert set(frame["quantity"]) == set(quantities)
        for quantity, rows in quantities.items():
            record = of_image(frame, index, quantity, "0" if quantity == "att" else None)
            assert record["avg_dist"] == pytest.approx(brute_avg_dist(rows), rel=1e-4, abs=1e-9), quantity
            assert record["n_queries"] == len(rows) if quantity != "key" else True
            assert record["dim"] == rows.shape[1]
        for column, value in map_columns(found["att"], float(found["att"].sum(1).mean())).items():
            assert of_image(frame, index, "att", "0")[column] == pytest.approx(value, rel=2e-4), column
        scale = block.attention.logit_scale
        centred = found["prod"] - found["prod"].mean(1, keepdim=True)
        record = of_image(frame, index, "prod")
        assert record["logit_std"] == pytest.approx(abs(scale) * float(centred.square().mean().sqrt()), rel=1e-4)
        assert record["unary"] == pytest.approx(scale**2 * float(centred.mean(0).square().mean()), rel=1e-3, abs=1e-9)
        output = found["output"]
        spread = (output - output.mean(0)).square().sum(1).mean() / output.square().sum(1).mean()
        record = of_image(frame, index, "output")
        assert record["mean_map_error"] == pytest.approx(float(spread.sqrt()), rel=1e-4)
        residual = isinstance(block, PositionAttention | ChannelAttention | Disentangled)
        expected = float(output.norm() / found["input"].norm()) if residual else math.nan
        assert record["update"] == pytest.approx(expected, rel=1e-4, nan_ok=True)


@DISENTANGLED
def test_the_two_maps_of_a_disentangled_block_stand_beside_the_row_that_it_uses(name: str) -> None:
    block = operators()[name]
    (x,) = inputs_of(block)
    frame = probed(block, (x,)).frame()
    att = frame[frame["quantity"] == "att"]
    heads = {"none": {"0"}, "own": {"0", "unary"}, "shared": {"0", "pairwise", "unary"}}[block.config.unary]
    assert set(att["head"]) == heads
    for index in range(2):
        found = written_out(block, x[index : index + 1])
        if "pairwise" in heads:
            for column, value in map_columns(found["pairwise"], 1.0).items():
                assert of_image(frame, index, "att", "pairwise")[column] == pytest.approx(value, rel=2e-4), column
        if "unary" in heads:
            record, unary = of_image(frame, index, "att", "unary"), found["unary"]
            assert record["by_construction"]
            assert record["avg_dist"] == 0
            assert record["n_eff"] == pytest.approx(float(1 / unary.square().sum()), rel=1e-5)
            entropy = float(-(unary * unary.log()).sum() / math.log(len(unary)))
            assert record["entropy"] == pytest.approx(entropy, rel=1e-5)


def test_the_maps_beside_are_part_of_no_mean_and_rows_of_their_own() -> None:
    frame = probed(operators()["dnl_mmseg"]).frame()
    att = frame[frame["quantity"] == "att"]
    mean = summarise(frame, model="m").quantities["att"]
    assert mean.mean == pytest.approx(att.loc[att["head"] == "0", "avg_dist"].mean())
    assert not mean.by_construction
    assert heads_of(frame) == ["0", "pairwise", "unary"]


def test_a_gate_at_zero_leaves_the_unary_map_alone() -> None:
    block = drawn(Disentangled(16, DisentangledConfig.scene_parsing()))
    nn.init.zeros_(block.gate.gamma)
    frame = probed(block).frame()
    record = of_image(frame, 0, "att", "0")
    assert record["avg_dist"] == pytest.approx(0, abs=1e-15)
    assert record["shared"] == pytest.approx(1)
    assert of_image(frame, 0, "output")["avg_dist"] == pytest.approx(0, abs=1e-9)
    assert of_image(frame, 0, "att", "pairwise")["avg_dist"] > 1e-3


def test_the_fusion_block_is_measured_inside_of_a_network_that_gives_it_two_maps() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1, stride=2)
            self.fusion = operators()["asymmetric_fusion"]

        def forward(self, images: Tensor) -> Tensor:
            return self.fusion(self.low(images), self.high(images))

    frame = probed(Network().eval(), (torch.randn(2, 3, 12, 14),)).frame()
    att = frame[frame["quantity"] == "att"]
    assert set(att["site"]) == {"fusion"}
    assert set(att["n_queries"]) == {42}
    assert set(att["n_keys"]) == {110}
    assert set(frame.loc[frame["quantity"] == "key", "n_queries"]) == {110}


def wrong_scale(self: PairwiseAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT) * 1.1 * self.logit_scale).softmax(-1) @ v


def wrong_axis(self: PairwiseAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT) * self.logit_scale).softmax(-2) @ v[:, :1].expand(-1, k.shape[1], -1)


def wrong_key_order(self: PairwiseAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.flip(1).mT) * self.logit_scale).softmax(-1) @ v


def dropped_keys(self: PairwiseAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k[:, ::2].mT) * self.logit_scale).softmax(-1) @ v[:, ::2]


@EACH
@pytest.mark.parametrize("broken", [wrong_scale, wrong_axis, wrong_key_order, dropped_keys])
def test_a_product_that_is_not_the_stated_one_is_caught(name: str, broken, monkeypatch: pytest.MonkeyPatch) -> None:
    block = operators()[name]
    monkeypatch.setattr(PairwiseAttention, "forward", broken)
    with pytest.raises(CaptureError, match="`A·V` is off by"):
        probed(block)


@EACH
def test_operands_that_change_before_the_product_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = operators()[name]
    call = PairwiseAttention.__call__
    monkeypatch.setattr(PairwiseAttention, "__call__", lambda self, q, k, v: call(self, q, k.flip(1), v))
    with pytest.raises(CaptureError, match="`key` is off by"):
        probed(block)


@DISENTANGLED
@pytest.mark.parametrize("whitening", ["positions", "image", "mixed", "none"])
def test_another_whitening_than_the_stated_one_is_caught(name: str, whitening: str) -> None:
    block = operators()[name]
    other = Disentangled(16, DisentangledConfig(whitening=whitening))  # type: ignore[arg-type]
    block.whiten = other.whiten
    if whitening == block.config.whitening:
        assert probed(block).audit()[0].status == "passed"
        return
    with pytest.raises(CaptureError, match="`query` is off by"):
        probed(block)


PARTS = {
    "position_attention": ("gate", "γ·A·V"),
    "channel_attention": ("gate", "γ·A·X"),
    "object_context": ("output", "W_z"),
    "asymmetric_pyramid": ("fuse", "fusion"),
    "asymmetric_fusion": ("output", "W_z"),
    "dnl_paper": ("norm", "W_z"),
    "dnl_mmseg": ("output", "W_z"),
    "dnl_object_detection": ("gate", r"γ·A·V \+ u·V"),
    "dnl_scene_parsing": ("unary", "u·V"),
    "dnl_non_local_2d": ("context.transform", r"x \+ context"),
    "dnl_whitened_only": ("norm", "W_z"),
}


@EACH
def test_a_part_behind_the_product_that_computes_something_else_is_caught(name: str) -> None:
    block = operators()[name]
    part, error = PARTS[name]
    module = block.get_submodule(part)
    forward = module.forward
    if part == "context.transform":
        part = "context"
        module = block.context
        forward = module.forward
    module.forward = lambda *args: forward(*args) * 1.05
    with pytest.raises(CaptureError, match=f"`{error}` is off by"):
        probed(block)


@EACH
def test_a_result_that_is_not_what_the_parts_give_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = operators()[name]
    forward = type(block).forward
    monkeypatch.setattr(type(block), "forward", lambda self, *inputs: forward(self, *inputs) * 1.01)
    with pytest.raises(CaptureError, match=r"is off by"):
        probed(block)
    monkeypatch.setattr(type(block), "forward", lambda self, *inputs: inputs[-1])
    with pytest.raises(CaptureError, match="ran without calling its `attention`"):
        probed(block)


def test_a_pyramid_of_other_cells_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PyramidPooling.forward
    monkeypatch.setattr(PyramidPooling, "forward", lambda self, rows, spatial: forward(self, rows, spatial).flip(1))
    with pytest.raises(CaptureError, match="`key` is off by"):
        probed(operators()["asymmetric_pyramid"])


@EACH
@pytest.mark.parametrize(
    ("dtype", "training"),
    [(torch.float32, True), (torch.float64, True), (torch.bfloat16, False), (torch.bfloat16, True)],
    ids=str,
)
def test_an_honest_block_passes_in_every_precision_and_mode(name: str, dtype: torch.dtype, training: bool) -> None:
    block = operators()[name].to(dtype).train(training)
    probe = probed(block, tuple(tensor.to(dtype) for tensor in inputs_of(block)))
    audit = probe.audit()[0]
    assert audit.status == "passed"
    assert audit.dtype == str(dtype).removeprefix("torch.")


@EACH
def test_a_probe_changes_nothing_and_leaves_no_hook(name: str) -> None:
    block = operators()[name].train()
    inputs = inputs_of(block)

    def run(probing: bool) -> list[Tensor]:
        torch.manual_seed(3)
        block.zero_grad()
        if probing:
            with nlprobe.probe(block):
                z = block(*inputs)
        else:
            z = block(*inputs)
        z.square().sum().backward()
        return [z.detach(), *(p.grad.clone() for p in block.parameters() if p.grad is not None)]

    for plain, measured in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, measured)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())


@pytest.mark.parametrize("name", ["position_attention", "object_context", "dnl_mmseg", "dnl_scene_parsing"])
def test_maps_are_drawn_of_blocks_whose_keys_are_positions(name: str) -> None:
    block = operators()[name]
    (x,) = inputs_of(block, 1)
    found = nlprobe.attention_map(block, x, [(0, 0), (5, 6), (2, 3)])
    att = written_out(block, x)["att"]
    np.testing.assert_allclose(found.maps, att[[0, 41, 17]].reshape(3, 6, 7), rtol=1e-4)
    np.testing.assert_allclose(found.mean, att.mean(0).reshape(6, 7), rtol=1e-4)
    assert found.avg_dist == pytest.approx(brute_avg_dist(att), rel=1e-4)
    assert found.n_keys == 42


def test_maps_of_channels_and_of_pyramid_cells_are_refused_in_words() -> None:
    x = torch.randn(1, 16, 6, 7)
    with pytest.raises(ConfigError, match=r"the keys of `\.` are no grid of 2 dimensions"):
        nlprobe.attention_map(operators()["asymmetric_pyramid"], x, [(0, 0)])
    with pytest.raises(ConfigError, match=r"the positions of `\.` are no grid of 2 dimensions"):
        nlprobe.attention_map(operators()["channel_attention"], x, [(0, 0)])


def test_further_metrics_are_those_of_the_pairwise_map_and_reach_needs_places() -> None:
    for name in ("channel_attention", "asymmetric_pyramid"):
        att = probed(operators()[name], metrics=("attention_distance", "jsd")).frame().query("quantity == 'att'")
        assert att["attention_distance"].isna().all()
        assert att["jsd"].notna().all()
    frame = probed(operators()["dnl_mmseg"], metrics=("attention_distance",)).frame().query("quantity == 'att'")
    assert frame.loc[frame["head"] == "pairwise", "attention_distance"].notna().all()
    assert frame.loc[frame["head"] != "pairwise", "attention_distance"].isna().all()


def test_a_rectangle_is_measured_of_one_map_and_refused_of_two() -> None:
    rectangle = (slice(0, 10), slice(5, 30))
    frame = probed(operators()["position_attention"], rectangle=rectangle).frame()
    assert (frame["positions"] == "rectangle").any()
    with pytest.raises(ConfigError, match="a unary map beside its pairwise maps cannot be measured on a rectangle"):
        probed(operators()["dnl_mmseg"], rectangle=rectangle)


def test_channels_of_images_of_several_sizes_have_distances_and_no_data_set_mean() -> None:
    block = operators()["channel_attention"]
    with nlprobe.probe(block) as probe, torch.no_grad():
        block(torch.randn(2, 16, 6, 7))
        block(torch.randn(1, 16, 5, 5))
        block(torch.randn(1, 16, 5, 5))
    frame = probe.frame()
    assert frame["avg_dist"].notna().all()
    assert np.isnan(list(probe.energy()["."].values())).all()
    assert probe.centres() == {".": {}}


@EACH
def test_a_redrawn_block_is_measured_beside_the_trained_one(name: str) -> None:
    block = operators()[name]
    inputs = inputs_of(block)
    with nlprobe.probe(block) as probe, init_block(probe, draws=2) as twins, torch.no_grad():
        block(*inputs)
    draws = twins.draws(".")
    assert len(draws) == 2
    for draw in draws:
        output = draw.frame[draw.frame["quantity"] == "output"]
        assert output["avg_dist"].notna().all()
        assert not (output["avg_dist"] == probe.frame().query("quantity == 'output'")["avg_dist"].to_numpy()).any()


def test_every_operator_is_found_and_described() -> None:
    model = nn.ModuleDict(operators())
    sites = find_sites(model)
    assert [site.name for site in sites] == list(model)
    for site in sites:
        assert site.settings["block"] == site.block == model[site.name].config.block
        assert site.settings["channels"] == 16
    assert isinstance(model["asymmetric_fusion"], AsymmetricFusion)
    assert isinstance(model["object_context"], ObjectContext)
