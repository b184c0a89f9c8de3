"""The global reasoning unit: its formula, what it is at the start, its parameters."""

import pytest
import torch
from blocks_reference import assert_value_and_gradients, batch_norm, convolved, randomised, relative_error
from torch import Tensor

from nlprobe.blocks import GloRe, GloReConfig
from nlprobe.errors import ConfigError


def formula(block: GloRe, x: Tensor) -> Tensor:
    """With every sum over positions and nodes written out."""
    state, assignment = (convolved(layer, x).flatten(2) for layer in (block.state, block.assignment))
    positions = state.shape[2]
    nodes = torch.einsum("bsi,bni->bns", state, assignment) / (positions if block.config.normalise else 1)
    mixed = nodes + torch.einsum("nk,bks->bns", block.mix_nodes.weight, nodes) + block.mix_nodes.bias[:, None]
    reasoned = torch.einsum("ts,bns->bnt", block.mix_states.weight, mixed.clamp(min=0))
    back = torch.einsum("bni,bnt->bti", assignment, reasoned).unflatten(2, x.shape[2:])
    return x + batch_norm(block.norm, convolved(block.output, back))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("spatial", [(9,), (5, 7), (2, 3, 4)], ids=str)
def test_value_and_gradients_are_those_of_the_written_out_formula(
    spatial: tuple[int, ...], normalise: bool, training: bool
) -> None:
    block = randomised(GloRe(16, GloReConfig(4, normalise))).double().train(training)
    x = torch.randn(3, 16, *spatial, dtype=torch.float64)
    assert_value_and_gradients(block, lambda x: formula(block, x), [x])


def test_it_starts_as_the_identity_unless_told_otherwise() -> None:
    x = torch.randn(2, 16, 3, 4, 5)
    assert torch.equal(GloRe(16)(x), x)
    assert not torch.allclose(GloRe(16, GloReConfig(zero_init=False))(x), x, atol=1e-2)


def test_every_position_is_given_the_same_nodes() -> None:
    """Positions that are assigned alike get the same update, wherever they lie."""
    block = randomised(GloRe(8)).eval()
    x = torch.randn(1, 8, 4, 5)
    x[..., 3, 4] = x[..., 0, 0]
    update = block(x) - x
    torch.testing.assert_close(update[..., 3, 4], update[..., 0, 0])


def test_shuffling_positions_shuffles_the_result() -> None:
    block = randomised(GloRe(16)).double().eval()
    x = torch.randn(1, 16, 24, dtype=torch.float64)
    order = torch.randperm(24)
    assert relative_error(block(x[..., order]), block(x)[..., order]) < 1e-12


@pytest.mark.parametrize("frames", [1, 3])
def test_normalised_it_does_not_depend_on_how_often_all_positions_repeat(frames: int) -> None:
    block = randomised(GloRe(16, GloReConfig(normalise=True))).double().eval()
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    z = block(x.unsqueeze(2).repeat(1, 1, frames, 1, 1))
    assert relative_error(z, block(x).unsqueeze(2).expand_as(z)) < 1e-12


def test_it_has_as_many_nodes_and_states_as_the_authors_networks() -> None:
    unit = GloRe(512)
    assert (unit.assignment.out_features, unit.state.out_features) == (128, 256)
    assert unit.norm.eps == 1e-4
    assert unit.output.bias is unit.mix_states.bias is None


def test_a_reset_draws_other_weights_and_the_same_from_the_same_seed() -> None:
    block = GloRe(32)
    before = block.state.weight.clone()
    torch.manual_seed(5)
    block.reset_parameters()
    first = block.state.weight.clone()
    assert not torch.equal(first, before)
    torch.manual_seed(5)
    block.reset_parameters()
    assert torch.equal(block.state.weight, first)


def test_the_memory_layout_of_the_input_is_kept() -> None:
    block = randomised(GloRe(16)).eval()
    x = torch.randn(2, 16, 5, 4)
    z = block(x)
    assert z.is_contiguous()
    last = block(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, z)


def test_settings_print_and_other_channels_are_refused_in_words() -> None:
    block = GloRe(16, GloReConfig(2))
    assert "16, reduction=2, normalise=False, zero_init=True" in str(block)
    with pytest.raises(ConfigError, match=r"`GloRe` of 16 channels got an input of shape `\(2, 8, 4, 4\)`"):
        block(torch.randn(2, 8, 4, 4))
