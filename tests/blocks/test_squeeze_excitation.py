"""Squeeze-and-excitation: its formula, what it is in the framework of section 4.2, and its parameters."""

import pytest
import torch
from blocks_reference import assert_value_and_gradients, randomised, relative_error
from torch import Tensor

from nlprobe.blocks import ContextBlock, ContextConfig, SqueezeExcitation, SqueezeExcitationConfig
from nlprobe.errors import ConfigError


def formula(block: SqueezeExcitation, x: Tensor) -> Tensor:
    """Channel by channel, with every sum written out."""
    reduce, expand = block.excite.reduce, block.excite.expand
    squeezed = torch.stack([x[:, c].flatten(1).sum(1) / x[0, 0].numel() for c in range(x.shape[1])], 1)
    hidden = torch.einsum("hc,bc->bh", reduce.weight, squeezed) + (0 if reduce.bias is None else reduce.bias)
    logits = torch.einsum("ch,bh->bc", expand.weight, hidden.clamp(min=0))
    logits = logits if expand.bias is None else logits + expand.bias
    gate = 1 / (1 + torch.exp(-logits))
    return torch.stack([x[:, c] * gate[:, c].view(-1, *(1,) * (x.ndim - 2)) for c in range(x.shape[1])], 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial", [(9,), (5, 7), (2, 3, 4), (1, 1)], ids=str)
def test_value_and_gradient_are_those_of_the_written_out_formula(spatial: tuple[int, ...], bias: bool) -> None:
    block = randomised(SqueezeExcitation(16, SqueezeExcitationConfig(4, bias))).double()
    x = torch.randn(3, 16, *spatial, dtype=torch.float64)
    assert_value_and_gradients(block, lambda x: formula(block, x), [x])


def test_it_is_average_pooling_with_a_bottleneck_without_norm_and_scale_fusion() -> None:
    block = SqueezeExcitation(32).double()
    settings = ContextConfig("average", norm="none", fusion="scale", zero_init=False)
    framework = ContextBlock(32, settings).double()
    framework.transform.load_state_dict(block.excite.state_dict())
    x = torch.randn(2, 32, 6, 5, dtype=torch.float64)
    assert relative_error(block(x), framework(x)) < 1e-14


@pytest.mark.parametrize(("channels", "hidden"), [(256, 16), (2048, 128), (8, 1)])
def test_it_has_these_parameters(channels: int, hidden: int) -> None:
    def count(config: SqueezeExcitationConfig) -> int:
        return sum(parameter.numel() for parameter in SqueezeExcitation(channels, config).parameters())

    assert count(SqueezeExcitationConfig()) == 2 * channels * hidden + hidden + channels
    assert count(SqueezeExcitationConfig(bias=False)) == 2 * channels * hidden


def test_a_reset_draws_other_weights_and_the_same_from_the_same_seed() -> None:
    block = SqueezeExcitation(32)
    before = block.excite.reduce.weight.clone()
    torch.manual_seed(5)
    block.reset_parameters()
    assert not torch.equal(block.excite.reduce.weight, before)
    torch.manual_seed(5)
    assert torch.equal(SqueezeExcitation(32).excite.reduce.weight, block.excite.reduce.weight)


def test_the_memory_layout_of_the_input_is_kept() -> None:
    block = randomised(SqueezeExcitation(16))
    x = torch.randn(2, 16, 5, 4)
    z = block(x)
    assert z.is_contiguous()
    last = block(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last, z, atol=1e-6)


def test_settings_print_and_other_channels_are_refused_in_words() -> None:
    block = SqueezeExcitation(16, SqueezeExcitationConfig(4, bias=False))
    assert "16, reduction=4, bias=False" in str(block)
    with pytest.raises(ConfigError, match=r"`SqueezeExcitation` of 16 channels got an input of shape `\(2, 8, 4, 4\)`"):
        block(torch.randn(2, 8, 4, 4))
