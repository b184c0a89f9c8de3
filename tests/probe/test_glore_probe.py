"""What a probe measures of global reasoning units, in pictures and clips, and what it says is not there."""

import numpy as np
import pytest
import torch
from probe_reference import brute_avg_dist
from torch import Tensor

import nlprobe
from nlprobe.blocks import GloRe, GloReConfig
from nlprobe.errors import CaptureError, ConfigError
from nlprobe.probe.baselines import init_block

SIZES = [(5, 6), (3, 4, 5)]


def randomised(normalise: bool = True) -> GloRe:
    block = GloRe(16, GloReConfig(4, normalise))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
        block.norm.running_mean.normal_(std=0.1)
    return block.eval()


def maps(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(2, 16, *size) + torch.randn(2, 16, *[1] * len(size))).to(dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_input_output_update_and_energy_are_those_of_z_minus_x_in_float64(size: tuple[int, ...]) -> None:
    block, x = randomised(), maps(size)
    with nlprobe.probe(block) as probe, torch.no_grad():
        block(x)
    frame = probe.frame()
    assert set(frame["quantity"]) == {"input", "output"}
    with torch.no_grad():
        wide = (block.double()(x.double()) - x.double()).flatten(2).mT
    rows = x.double().flatten(2).mT
    for name, tensor in (("input", rows), ("output", wide)):
        found = frame[frame["quantity"] == name]
        np.testing.assert_allclose(found["avg_dist"], [brute_avg_dist(each) for each in tensor], rtol=1e-4)
        assert set(found["n_queries"]) == {rows.shape[1]}
    updates = [float(each.norm() / one.norm()) for each, one in zip(wide, rows, strict=True)]
    np.testing.assert_allclose(frame.query("quantity == 'output'")["update"], updates, rtol=1e-4)
    means, energy = wide.mean(1), wide.square().sum(2).mean()
    shares = {
        "constant": means.mean(0).square().sum() / energy,
        "context": (means - means.mean(0)).square().sum(1).mean() / energy,
        "pairwise_part": (wide - means[:, None]).square().sum(2).mean() / energy,
    }
    assert probe.energy()["."] == pytest.approx({key: float(value) for key, value in shares.items()}, rel=1e-4)


def test_the_attention_quantities_are_absent_and_it_is_said_why() -> None:
    block = randomised()
    with nlprobe.probe(block) as probe, torch.no_grad():
        block(maps((5, 6)))
    (audit,) = probe.audit()
    assert audit.status == "passed"
    assert "neither normalised nor a map of one query" in audit.not_counted[0]
    for x, query in ((maps((5, 6)), (1, 1)), (maps((3, 4, 5)), (0, 1, 1))):
        with pytest.raises(ConfigError, match=r"`\.` has no map to draw: it assigns positions to nodes"):
            nlprobe.attention_map(block, x[0], queries=[query])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_an_honest_unit_passes_the_audit_in_every_precision_and_mode(
    dtype: torch.dtype, normalise: bool, training: bool
) -> None:
    block = randomised(normalise).to(dtype).train(training)
    with nlprobe.probe(block) as probe, torch.no_grad():
        block(maps((3, 4, 5), dtype))
    (audit,) = probe.audit()
    assert audit.error <= audit.tolerance
    assert set(audit.errors) == {
        *("state", "assignment", "nodes", "mix_nodes", "reasoning", "mix_states", "back", "W_z", "norm", "x + output")
    }


TAMPERED = {
    "state": "state",
    "assignment": "assignment",
    "mix_nodes": "mix_nodes",
    "reasoning": "relu",
    "mix_states": "mix_states",
    "W_z": "output",
    "norm": "norm",
}


@pytest.mark.parametrize("part", TAMPERED)
def test_a_part_that_computes_otherwise_is_caught(part: str) -> None:
    block = randomised()
    handle = block.get_submodule(TAMPERED[part]).register_forward_hook(lambda _, args, output: output * 1.02)
    with pytest.raises(CaptureError, match=f"`{part}` is off by"), nlprobe.probe(block), torch.no_grad():
        block(maps((5, 6)))
    handle.remove()


def test_an_assignment_that_is_made_a_softmax_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    block = randomised()

    def forward(self: GloRe, x: Tensor) -> Tensor:
        rows = x.flatten(2).mT
        assigned = self.assignment(rows).softmax(2)
        nodes = assigned.mT @ self.state(rows) / rows.shape[1]
        reasoned = self.mix_states(self.relu(nodes + self.mix_nodes(nodes.mT).mT))
        update = self.output(assigned @ reasoned)
        return x + self.norm(update.flatten(0, 1)).view(update.shape).mT.unflatten(2, x.shape[2:])

    monkeypatch.setattr(GloRe, "forward", forward)
    with pytest.raises(CaptureError, match=r"`nodes` is off by.*`back` is off by"), nlprobe.probe(block):
        block(maps((5, 6)))


def test_it_is_redrawn_for_the_null_model() -> None:
    block, x = GloRe(16).eval(), maps((3, 4, 5))
    with nlprobe.probe(block) as probe, init_block(probe, draws=2) as null, torch.no_grad():
        block(x)
    assert probe.frame().query("quantity == 'output'")["avg_dist"].isna().all()
    drawn = [draw.frame.query("quantity == 'output'")["avg_dist"] for draw in null.draws(".")]
    assert len(drawn) == 2
    assert all(values.notna().all() for values in drawn)
