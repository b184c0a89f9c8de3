"""Position and channel attention: their formulas with the whole map written out."""

import pytest
import torch
from blocks_reference import assert_value_and_gradients, convolved, randomised, relative_error
from torch import Tensor, nn

from nlprobe.blocks import ChannelAttention, ChannelAttentionConfig, PositionAttention
from nlprobe.errors import ConfigError

BOTH = pytest.mark.parametrize("kind", [PositionAttention, ChannelAttention])


def positions(block: PositionAttention, x: Tensor) -> Tensor:
    query, key, value = (convolved(layer, x).flatten(2) for layer in (block.query, block.key, block.value))
    weights = (query.mT @ key).softmax(-1)
    return block.gate.gamma * (value @ weights.mT).unflatten(2, x.shape[2:]) + x


def channels(block: ChannelAttention, x: Tensor) -> Tensor:
    rows = x.flatten(2)
    energy = rows @ rows.mT
    weights = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
    return block.gate.gamma * (weights @ rows).unflatten(2, x.shape[2:]) + x


FORMULAS = {PositionAttention: positions, ChannelAttention: channels}


@BOTH
@pytest.mark.parametrize("spatial", [(9,), (5, 7), (2, 3, 4)], ids=["1d", "2d", "3d"])
def test_value_and_gradient_are_those_of_the_written_out_formula(kind, spatial: tuple[int, ...]) -> None:
    block = randomised(kind(16)).double()
    x = torch.randn(2, 16, *spatial, dtype=torch.float64).mul_(0.5)
    assert_value_and_gradients(block, lambda x: FORMULAS[kind](block, x), [x])


def test_channel_attention_goes_to_the_channels_that_are_least_alike() -> None:
    block = ChannelAttention(3, ChannelAttentionConfig(zero_init=False)).double()
    x = torch.tensor([[[9.0, 0, 0], [0, 9.0, 0], [-9.0, 0, 0]]], dtype=torch.float64)
    assert torch.allclose((block(x) - x)[0, 0], x[0, 2])  # -81 against 0 and 81


@BOTH
def test_permuting_the_positions_permutes_the_output(kind) -> None:
    block = randomised(kind(16)).double()
    x, order = torch.randn(2, 16, 12, dtype=torch.float64), torch.randperm(12)
    assert relative_error(block(x[..., order]), block(x)[..., order]) < 1e-12


def test_permuting_the_channels_permutes_the_output_of_channel_attention() -> None:
    block = randomised(ChannelAttention(16)).double()
    x, order = torch.randn(2, 16, 12, dtype=torch.float64), torch.randperm(16)
    assert relative_error(block(x[:, order]), block(x)[:, order]) < 1e-12


@BOTH
def test_a_new_block_is_the_identity_and_its_gate_learns_first(kind) -> None:
    block = kind(16)
    x = torch.randn(2, 16, 4, 5)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.gate.gamma.grad.abs() > 0


@BOTH
def test_without_zero_init_the_gate_is_open_and_a_reset_opens_it_again(kind) -> None:
    block = kind(16, type(kind(16).config)(zero_init=False))
    x = torch.randn(2, 16, 4, 5)
    assert not torch.equal(block(x), x)
    nn.init.zeros_(block.gate.gamma)
    block.reset_parameters()
    assert block.gate.gamma == 1


@pytest.mark.parametrize("channels, width", [(512, 64), (64, 8), (4, 1)])
def test_position_attention_has_these_parameters(channels: int, width: int) -> None:
    count = sum(parameter.numel() for parameter in PositionAttention(channels).parameters())
    assert count == 2 * (channels * width + width) + channels * channels + channels + 1
    assert sum(parameter.numel() for parameter in ChannelAttention(channels).parameters()) == 1


@BOTH
def test_the_memory_layout_of_the_input_is_kept(kind) -> None:
    block = randomised(kind(16))
    x = torch.randn(2, 16, 5, 4)
    z = block(x)
    assert z.is_contiguous()
    last = block(x.to(memory_format=torch.channels_last))
    assert torch.allclose(last, z, atol=1e-5)
    assert torch.allclose(block(torch.cat([x, x], 3)[..., :4]), z, atol=1e-5)


@BOTH
def test_settings_survive_json_and_print(kind) -> None:
    config = type(kind(16).config)(zero_init=False)
    assert type(config).from_dict(config.as_dict()) == config
    assert "zero_init=False" in str(kind(16, config))


@BOTH
def test_an_input_with_other_channels_is_refused_in_words(kind) -> None:
    with pytest.raises(ConfigError, match=rf"`{kind.__name__}` of 16 channels got an input of shape `\(2, 8, 4, 4\)`"):
        kind(16)(torch.randn(2, 8, 4, 4))
