"""Gather-excite: its formula in every variant and extent, the size it is made for, and its parameters."""

from math import ceil, log2

import pytest
import torch
from blocks_reference import assert_value_and_gradients, batch_norm, randomised, relative_error
from torch import Tensor, nn

from nlprobe.blocks import ContextBlock, ContextConfig, GatherExcite, GatherExciteConfig
from nlprobe.blocks.gather_excite import nearest
from nlprobe.errors import ConfigError

SIZE = (9, 11)
CONFIGS = [
    GatherExciteConfig(),
    *(GatherExciteConfig("theta_minus", extent) for extent in (2, 4, 8)),
    GatherExciteConfig("theta", size=SIZE),
    *(GatherExciteConfig("theta", extent) for extent in (2, 4, 8)),
    GatherExciteConfig("theta_plus", size=SIZE, reduction=4),
    GatherExciteConfig("theta_plus", 4, reduction=4),
]
EACH = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.variant}-{config.extent}")


def mean_of_windows(x: Tensor, extent: int) -> Tensor:
    """The mean over {e u + δ : |δ| ≤ e − 1} in both directions, as far as it is inside of the map."""
    height, width = x.shape[2:]
    rows = []
    for u in range(ceil(height / extent)):
        row = []
        for v in range(ceil(width / extent)):
            top, left = max(0, extent * u - extent + 1), max(0, extent * v - extent + 1)
            row.append(x[:, :, top : extent * u + extent, left : extent * v + extent].mean((2, 3)))
        rows.append(torch.stack(row, 2))
    return torch.stack(rows, 2)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Every channel convolved for itself by a 3x3 of stride 2, as a sum over shifted maps."""
    height, width = ceil(x.shape[2] / 2), ceil(x.shape[3] / 2)
    padded = nn.functional.pad(x, (1, 2, 1, 2))
    shifted = [
        weight[:, 0, dy, dx, None, None] * padded[:, :, dy::2, dx::2][:, :, :height, :width]
        for dy in range(3)
        for dx in range(3)
    ]
    return torch.stack(shifted).sum(0)


def formula(block: GatherExcite, x: Tensor) -> Tensor:
    config, layers = block.config, dict(block.gather.named_children())
    gathered = x
    if config.variant == "theta_minus":
        gathered = x.mean((2, 3), keepdim=True) if config.extent == "global" else mean_of_windows(x, config.extent)
    elif config.extent == "global":
        gathered = batch_norm(layers["norm1"], (x * layers["conv1"].weight[:, 0]).sum((2, 3), keepdim=True))
    else:
        count = int(log2(config.extent))
        for number in range(1, count + 1):
            gathered = depthwise(gathered, layers[f"conv{number}"].weight)
            gathered = batch_norm(layers[f"norm{number}"], gathered)
            gathered = gathered.clamp(min=0) if number < count else gathered
    if config.variant == "theta_plus":
        reduce, expand = block.excite.reduce, block.excite.expand
        for layer in (reduce, expand):
            gathered = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], gathered.clamp(min=0))
            gathered = gathered + layer.bias[:, None, None]
    height, width = x.shape[2:]
    cells = [
        gathered[:, :, i * gathered.shape[2] // height, j * gathered.shape[3] // width]
        for i in range(height)
        for j in range(width)
    ]
    return x / (1 + torch.exp(-torch.stack(cells, 2).unflatten(2, (height, width))))


@EACH
@pytest.mark.parametrize("training", [True, False])
def test_value_and_gradient_are_those_of_the_written_out_formula(config: GatherExciteConfig, training: bool) -> None:
    block = randomised(GatherExcite(8, config)).double().train(training)
    x = torch.randn(3, 8, *SIZE, dtype=torch.float64)
    assert_value_and_gradients(block, lambda x: formula(block, x), [x])


@pytest.mark.parametrize("extent", [2, 4, 8])
def test_every_position_takes_the_value_of_the_nearest_gathered_one_exactly(extent: int) -> None:
    for height in range(1, 400):
        count = ceil(height / extent)
        found = nearest(torch.arange(float(count)).view(1, 1, count, 1).expand(1, 1, count, 2), (height, 2))
        assert found[0, 0, :, 0].tolist() == [i * count // height for i in range(height)]


def test_without_weights_and_with_a_bottleneck_it_would_be_squeeze_and_excitation() -> None:
    """GE-θ⁺ of a gathering that averages, and whose norm does nothing, is SE of positive features."""
    block = GatherExcite(16, GatherExciteConfig("theta_plus", size=(4, 5), reduction=4)).double().eval()
    nn.init.constant_(block.gather.conv1.weight, 1 / 20)
    block.gather.norm1.eps = 0.0
    framework = ContextBlock(16, ContextConfig("average", reduction=4, norm="none", fusion="scale")).double()
    for name in ("reduce", "expand"):
        weights = block.excite.get_submodule(name).state_dict()
        framework.transform.get_submodule(name).load_state_dict(
            {key: value.flatten(1) if value.ndim == 4 else value for key, value in weights.items()}
        )
    x = torch.rand(2, 16, 4, 5, dtype=torch.float64)
    assert relative_error(block(x), framework(x)) < 1e-14


@pytest.mark.parametrize("channels", [8, 64])
def test_it_has_these_parameters(channels: int) -> None:
    def count(*settings: object, **more: object) -> int:
        block = GatherExcite(channels, GatherExciteConfig(*settings, **more))  # type: ignore[arg-type]
        return sum(parameter.numel() for parameter in block.parameters())

    hidden = max(channels // 16, 1)
    bottleneck = 2 * channels * hidden + hidden + channels
    assert count() == count("theta_minus", 8) == 0
    assert count("theta", size=(14, 7)) == channels * (14 * 7 + 2)
    assert count("theta", 8) == channels * 3 * (9 + 2)
    assert count("theta_plus", size=(14, 7)) == channels * (14 * 7 + 2) + bottleneck
    assert count("theta_plus", 2) == channels * (9 + 2) + bottleneck


@pytest.mark.parametrize("variant", ["theta", "theta_plus"])
def test_a_map_of_another_size_than_it_was_made_for_is_refused_in_words(variant: str) -> None:
    block = GatherExcite(8, GatherExciteConfig(variant, size=(14, 14)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"was made for maps of 14 x 14 and got 16 x 12(.|\n)*`theta_minus`"):
        block(torch.randn(2, 8, 16, 12))
    with pytest.raises(ConfigError, match=r"of 8 channels got an input of shape `\(2, 4, 14, 14\)`"):
        block(torch.randn(2, 4, 14, 14))


def test_only_blocks_of_one_size_have_one_and_they_must() -> None:
    with pytest.raises(ConfigError, match=r"`theta` of global extent has a weight for each position, and `size` is `N"):
        GatherExciteConfig("theta")
    with pytest.raises(ConfigError, match="`theta_minus` of extent `global` takes maps of any size"):
        GatherExciteConfig(size=(14, 14))
    with pytest.raises(ConfigError, match="`theta` of extent `4` takes maps of any size"):
        GatherExciteConfig("theta", 4, (14, 14))
    with pytest.raises(ConfigError, match="`theta` has no bottleneck, yet `reduction` is `8`"):
        GatherExciteConfig("theta", 4, reduction=8)


@EACH
def test_the_memory_layout_of_the_input_is_kept(config: GatherExciteConfig) -> None:
    block = randomised(GatherExcite(8, config)).eval()
    x = torch.randn(2, 8, *SIZE)
    z = block(x)
    assert z.is_contiguous()
    last = block(x.to(memory_format=torch.channels_last))
    assert torch.allclose(last, z, atol=1e-5)
    assert f"extent={config.extent!r}" in str(block)


@EACH
def test_a_reset_draws_the_same_weights_from_the_same_seed(config: GatherExciteConfig) -> None:
    blocks = [randomised(GatherExcite(8, config)) for _ in range(2)]
    for block in blocks:
        torch.manual_seed(3)
        block.reset_parameters()
    for ours, theirs in zip(*(block.parameters() for block in blocks), strict=True):
        assert torch.equal(ours, theirs)
