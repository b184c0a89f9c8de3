"""What a probe measures of blocks that scale: squeeze-and-excitation, CBAM and gather-excite."""

import numpy as np
import pytest
import torch
from probe_reference import brute_avg_dist
from torch import Tensor, nn

import nlprobe
from nlprobe.blocks import CBAM, CBAMConfig, GatherExcite, GatherExciteConfig, SqueezeExcitation
from nlprobe.errors import CaptureError, ConfigError

SIZE = (9, 10)
MAPLESS = {
    "cbam": CBAM(16, CBAMConfig(4)),
    "cbam of timm": CBAM(16, CBAMConfig.timm()),
    "theta_minus": GatherExcite(16),
    "theta_minus 4": GatherExcite(16, GatherExciteConfig("theta_minus", 4)),
    "theta": GatherExcite(16, GatherExciteConfig("theta", size=SIZE)),
    "theta 4": GatherExcite(16, GatherExciteConfig("theta", 4)),
    "theta_plus": GatherExcite(16, GatherExciteConfig("theta_plus", size=SIZE)),
    "theta_plus 8": GatherExcite(16, GatherExciteConfig("theta_plus", 8)),
}


def randomised(name: str) -> nn.Module:
    block = SqueezeExcitation(16) if name == "se" else MAPLESS[name]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    return block.float().eval()


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(2, 16, *SIZE) + torch.randn(2, 16, 1, 1)).to(dtype)


def rows(grid: Tensor) -> Tensor:
    return grid.flatten(2)[0].T


@pytest.mark.parametrize("name", ["se", *MAPLESS])
def test_input_output_update_and_energy_are_those_of_z_minus_x_in_float64(name: str) -> None:
    block, x = randomised(name), images()
    with nlprobe.probe(block) as probe, torch.no_grad():
        block(x)
    frame = probe.frame()
    assert set(frame["quantity"]) == ({"input", "att", "output"} if name == "se" else {"input", "output"})
    with torch.no_grad():
        wide = block.double()(x.double()) - x.double()
    for name, tensor in (("input", x.double()), ("output", wide)):
        found = frame[frame["quantity"] == name]
        expected = [brute_avg_dist(rows(tensor[index : index + 1])) for index in range(2)]
        np.testing.assert_allclose(found["avg_dist"], expected, rtol=1e-5)
        assert not found["by_construction"].any()
    output = frame.query("quantity == 'output'")
    updates = [float(wide[index].norm() / x[index].double().norm()) for index in range(2)]
    np.testing.assert_allclose(output["update"], updates, rtol=1e-5)
    means = wide.mean((2, 3))
    energies = wide.square().sum(1).mean((1, 2)).mean()
    shares = {
        "constant": means.mean(0).square().sum() / energies,
        "context": (means - means.mean(0)).square().sum(1).mean() / energies,
        "pairwise_part": (wide - means[:, :, None, None]).square().sum(1).mean((1, 2)).mean() / energies,
    }
    assert probe.energy()["."] == pytest.approx({key: float(value) for key, value in shares.items()}, rel=1e-4)


def test_an_output_of_gates_near_one_keeps_its_digits() -> None:
    """1 − sigmoid(14) is 8e-7: z − x in float32 would hold one digit of it."""
    for block in (SqueezeExcitation(16), CBAM(16), GatherExcite(16, GatherExciteConfig("theta", size=SIZE))):
        x = images()
        last = {SqueezeExcitation: "excite.expand", CBAM: "channel_gate.mlp.expand", GatherExcite: "gather.norm1"}
        biases = [block.get_submodule(last[type(block)]).bias]
        biases += [block.spatial_gate.norm.bias] if isinstance(block, CBAM) else []
        with torch.no_grad():
            for bias in biases:
                bias.fill_(14.0)
        block.eval()
        with nlprobe.probe(block) as probe, torch.no_grad():
            block(x)
        with torch.no_grad():
            wide = block.double()(x.double()) - x.double()
        expected = [float(wide[index].norm() / x[index].double().norm()) for index in range(2)]
        np.testing.assert_allclose(probe.frame().query("quantity == 'output'")["update"], expected, rtol=1e-5)


def test_the_map_of_squeeze_and_excitation_is_flat_by_construction() -> None:
    block = randomised("se")
    with nlprobe.probe(block) as probe, torch.no_grad():
        block(images())
    att = probe.frame().query("quantity == 'att'")
    assert att["by_construction"].all()
    assert (att["avg_dist"] == 0).all()
    np.testing.assert_allclose(att["entropy"], 1)
    np.testing.assert_allclose(att["n_eff"], 90)
    assert probe.sites[0].block == "squeeze_excitation"


def test_blocks_without_a_map_say_so() -> None:
    for name, words in (("cbam", "its gates are sigmoids"), ("theta", "it gathers positions channel by channel")):
        block = randomised(name)
        with nlprobe.probe(block) as probe, torch.no_grad():
            block(images())
        (audit,) = probe.audit()
        assert audit.status == "passed"
        assert words in audit.not_counted[0]
        with pytest.raises(ConfigError, match=f"`.` has no map to draw: {words}"):
            nlprobe.attention_map(block, images()[0], queries=[(1, 1)])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["se", *MAPLESS])
def test_an_honest_block_passes_the_audit_in_every_precision_and_mode(
    name: str, dtype: torch.dtype, training: bool
) -> None:
    block = randomised(name).to(dtype).train(training)
    with nlprobe.probe(block) as probe, torch.no_grad():
        block(images(dtype))
    (audit,) = probe.audit()
    assert audit.error <= audit.tolerance


TAMPERED = {
    "channel gate": ("cbam", "channel_gate"),
    "spatial gate": ("cbam", "spatial_gate.conv"),
    "gather": ("theta 4", "gather.conv1"),
    "excite": ("theta_plus", "excite.expand"),
}


@pytest.mark.parametrize("part", TAMPERED)
def test_a_part_that_computes_otherwise_is_caught(part: str) -> None:
    name, path = TAMPERED[part]
    block = randomised(name)
    handle = block.get_submodule(path).register_forward_hook(lambda _, args, output: output * 1.02)
    with pytest.raises(CaptureError, match=f"`{part}` is off by"), nlprobe.probe(block), torch.no_grad():
        block(images())
    handle.remove()


@pytest.mark.parametrize(("name", "words"), [("cbam", "x·gates"), ("theta", "x·gate"), ("se", "fusion")])
def test_a_gate_that_is_applied_otherwise_is_caught(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = randomised(name)
    forward = type(block).forward
    monkeypatch.setattr(type(block), "forward", lambda self, x: 0.99 * forward(self, x))
    with pytest.raises(CaptureError, match=f"`{words}` is off by"), nlprobe.probe(block), torch.no_grad():
        block(images())
    monkeypatch.setattr(type(block), "forward", lambda self, x: x)
    with pytest.raises(CaptureError, match="ran without calling its parts"), nlprobe.probe(block), torch.no_grad():
        block(images())


def test_the_data_set_means_of_outputs_can_be_removed() -> None:
    block, x = randomised("cbam"), images()
    with nlprobe.probe(block) as first, torch.no_grad():
        block(x)
    with nlprobe.probe(block, centres=first.centres()) as second, torch.no_grad():
        block(x)
    with torch.no_grad():
        wide = block.double()(x.double()) - x.double()
    expected = [brute_avg_dist(rows(wide[i : i + 1]) - wide.mean((0, 2, 3))) for i in range(2)]
    found = second.frame().query("quantity == 'output'")["centred_dist"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
