"""The null model `init-block`."""

import numpy as np
import pytest
import torch
from probe_reference import brute_avg_dist, brute_block

import nlprobe
from nlprobe.blocks import (
    CBAM,
    ContextBlock,
    ContextConfig,
    GatherExcite,
    GatherExciteConfig,
    NonLocal,
    NonLocalConfig,
    SqueezeExcitation,
)
from nlprobe.errors import ConfigError
from nlprobe.probe.baselines import redraw


def test_a_redrawn_block_measures_what_it_would_in_place_of_the_trained_one() -> None:
    block = NonLocal(16, 2, NonLocalConfig(zero_init=False)).eval()
    x = 30 * torch.randn(3, 16, 5, 6)
    with torch.no_grad(), nlprobe.probe(block) as probe, nlprobe.init_block(probe, draws=2, seed=7) as null:  # noqa: SIM117
        with probe.images(["a", "b", "c"]):
            block(x)
    draws = null.draws(".")
    assert [draw.number for draw in draws] == [0, 1]
    for draw in draws:
        twin = redraw(block, 7 + draw.number)
        assert list(draw.frame.query("quantity == 'att'")["image"]) == ["a", "b", "c"]
        for index in range(3):
            found = brute_block(twin, x[index : index + 1])
            for quantity, rows in found.items():
                measured = draw.frame.loc[draw.frame["quantity"] == quantity, "avg_dist"].to_numpy()[index]
                assert measured == pytest.approx(brute_avg_dist(rows), rel=1e-4, abs=1e-9), quantity
    assert not np.allclose(draws[0].frame["avg_dist"], draws[1].frame["avg_dist"])


def test_a_redrawn_block_has_the_null_models_weights() -> None:
    block = NonLocal(256).double().eval()
    twin = redraw(block, 0)
    assert twin.config.zero_init is False
    assert float(twin.output.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert torch.equal(twin.norm.weight, torch.ones_like(twin.norm.weight))
    assert next(twin.parameters()).dtype == torch.float64
    assert not twin.training
    context = redraw(ContextBlock(64, ContextConfig.gc(4)), 0)
    assert float(context.transform[-1].weight.detach().std()) == pytest.approx(0.01, rel=0.1)


def test_drawing_twins_changes_neither_the_model_nor_the_random_state() -> None:
    block = NonLocal(16, 2, NonLocalConfig(zero_init=False))
    x = torch.randn(2, 16, 5, 6)
    plain = block.eval()(x)
    state = torch.get_rng_state()
    with nlprobe.probe(block) as probe, nlprobe.init_block(probe, draws=1):
        probed = block(x)
    assert torch.equal(plain, probed)
    assert torch.equal(state, torch.get_rng_state())
    assert not block._forward_hooks
    assert not block._forward_pre_hooks


def test_blocks_that_scale_are_redrawn_as_new_ones_whose_gates_do_something() -> None:
    blocks = [SqueezeExcitation(16), CBAM(16), GatherExcite(16, GatherExciteConfig("theta", size=(5, 6)))]
    for block in blocks:
        twin = redraw(block.double().eval(), 3)
        assert type(twin) is type(block)
        assert next(twin.parameters()).dtype == torch.float64
        assert not torch.equal(next(twin.parameters()), next(block.parameters()))
        assert torch.equal(next(twin.parameters()), next(redraw(block, 3).parameters()))
    assert torch.equal(redraw(CBAM(16), 3).spatial_gate.norm.weight, torch.ones(1))


def test_a_block_without_weights_is_no_null_model_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"`GatherExcite` has no weights to redraw\nuse the null model init-all"):
        redraw(GatherExcite(16), 0)
