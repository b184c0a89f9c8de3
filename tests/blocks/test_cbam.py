"""CBAM: its formula in both variants, what a new one computes, and its parameters."""

import pytest
import torch
from blocks_reference import assert_value_and_gradients, batch_norm, randomised, relative_error
from torch import Tensor

from nlprobe.blocks import CBAM, CBAMConfig
from nlprobe.errors import ConfigError

VARIANTS = pytest.mark.parametrize(
    "config",
    [CBAMConfig(4), CBAMConfig(4, bias=False, order="mean_max", momentum=0.1, zero_init=False, kernel_size=3)],
    ids=["original", "timm"],
)


def formula(block: CBAM, x: Tensor) -> Tensor:
    """Both gates with the convolution as a sum over shifted maps."""
    config, (reduce, _, expand) = block.config, block.channel_gate.mlp
    logits = torch.zeros_like(x[:, :, 0, 0])
    for pooled in (x.flatten(2).mean(2), x.flatten(2).max(2).values):
        hidden = pooled @ reduce.weight.T + (0 if reduce.bias is None else reduce.bias)
        logits = logits + hidden.clamp(min=0) @ expand.weight.T + (0 if expand.bias is None else expand.bias)
    y = x / (1 + torch.exp(-logits))[:, :, None, None]
    maps = [y.max(1).values, y.mean(1)]
    maps = maps if config.order == "max_mean" else maps[::-1]
    half, (height, width) = config.kernel_size // 2, x.shape[2:]
    total = torch.zeros_like(maps[0])
    for channel, one in enumerate(maps):
        padded = torch.nn.functional.pad(one, (half,) * 4)
        for dy in range(config.kernel_size):
            for dx in range(config.kernel_size):
                weight = block.spatial_gate.conv.weight[0, channel, dy, dx]
                total = total + weight * padded[:, dy : dy + height, dx : dx + width]
    spatial = batch_norm(block.spatial_gate.norm, total.unsqueeze(1))
    return y / (1 + torch.exp(-spatial))


@VARIANTS
@pytest.mark.parametrize("training", [True, False])
def test_value_and_gradient_are_those_of_the_written_out_formula(config: CBAMConfig, training: bool) -> None:
    block = randomised(CBAM(16, config)).double().train(training)
    x = torch.randn(3, 16, 5, 6, dtype=torch.float64)
    assert_value_and_gradients(block, lambda x: formula(block, x), [x])


def test_a_new_block_has_a_spatial_gate_of_one_half_and_learns_its_scale_first() -> None:
    block = CBAM(16).eval()
    x = torch.randn(2, 16, 5, 6)
    scaled = x * torch.sigmoid(block.channel_gate(x))[:, :, None, None]
    assert torch.equal(block(x), scaled / 2)
    block(x).square().sum().backward()
    assert block.spatial_gate.norm.weight.grad.abs() > 0
    assert not torch.equal(CBAM(16, CBAMConfig(zero_init=False)).eval()(x), scaled / 2)


def test_a_new_block_starts_with_zero_biases_and_the_momentum_of_its_settings() -> None:
    block = CBAM(32)
    assert not block.channel_gate.mlp.reduce.bias.any()
    assert not block.channel_gate.mlp.expand.bias.any()
    assert block.spatial_gate.norm.momentum == 0.01
    assert CBAM(32, CBAMConfig.timm()).spatial_gate.norm.momentum == 0.1


def test_swapping_the_channels_of_the_convolution_is_the_other_order() -> None:
    original = randomised(CBAM(16, CBAMConfig(4))).double().eval()
    other = CBAM(16, CBAMConfig(4, order="mean_max")).double().eval()
    state = original.state_dict()
    other.load_state_dict(state)
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    assert relative_error(other(x), original(x)) > 1e-3
    other.load_state_dict(state | {"spatial_gate.conv.weight": state["spatial_gate.conv.weight"].flip(1)})
    assert relative_error(other(x), original(x)) < 1e-14


@pytest.mark.parametrize(("channels", "hidden"), [(256, 16), (2048, 128), (8, 1)])
def test_it_has_these_parameters(channels: int, hidden: int) -> None:
    def count(config: CBAMConfig) -> int:
        return sum(parameter.numel() for parameter in CBAM(channels, config).parameters())

    assert count(CBAMConfig()) == 2 * channels * hidden + hidden + channels + 2 * 49 + 2
    assert count(CBAMConfig(bias=False, kernel_size=3)) == 2 * channels * hidden + 2 * 9 + 2


def test_the_memory_layout_of_the_input_is_kept() -> None:
    block = randomised(CBAM(16)).eval()
    x = torch.randn(2, 16, 5, 4)
    z = block(x)
    assert z.is_contiguous()
    last = block(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last, z, atol=1e-6)


def test_settings_print_and_what_is_no_image_is_refused_in_words() -> None:
    assert "order='mean_max'" in str(CBAM(16, CBAMConfig.timm()))
    for shape in ((2, 8, 4, 4), (2, 16, 4), (2, 16, 3, 4, 4)):
        with pytest.raises(
            ConfigError, match=r"`CBAM` of 16 channels got an input of shape .*\nit takes \(B, 16, H, W"
        ):
            CBAM(16)(torch.randn(shape))
