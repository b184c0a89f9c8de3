"""Gather-excite (Hu, Shen, Albanie, Sun and Vedaldi 2018), whose context the paper calls position-adaptive."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.settings import BlockConfig, check_choice, check_image, check_positive_integer
from nlprobe.errors import ConfigError

Variant = Literal["theta_minus", "theta", "theta_plus"]
Extent = Literal["global", 2, 4, 8]


@dataclass(frozen=True)
class GatherExciteConfig(BlockConfig):
    """Settings of a `GatherExcite` block.

    Attributes:
        variant: What has weights: "theta_minus" (GE-θ⁻: nothing), "theta" (GE-θ: the gathering) or "theta_plus"
            (GE-θ⁺: the gathering and a bottleneck behind it).
        extent: e: over what a position gathers: "global", the published networks' choice, or windows of about 2 e
            positions around every e-th one.
        size: Height and width of the map at the block's site. GE-θ and GE-θ⁺ of global extent gather with one weight a
            position and channel, so they are made for one size; the others have none. In a ResNet at 224 x 224 it is
            (56, 56) in c2, (28, 28) in c3, (14, 14) in c4 and (7, 7) in c5.
        reduction: r of the bottleneck, GE-θ⁺ only; its hidden width is max(C // r, 1).

    Raises:
        ConfigError: a value that the setting cannot take, a `size` that is missing or has no use, or a `reduction`
            without bottleneck.
    """

    block: ClassVar[str] = "gather_excite"

    variant: Variant = "theta_minus"
    extent: Extent = "global"
    size: tuple[int, int] | None = None
    reduction: int = 16

    def __post_init__(self) -> None:
        check_choice(self.block, "variant", self.variant, get_args(Variant))
        if type(self.extent) not in (str, int) or self.extent not in get_args(Extent):
            raise ConfigError(f"`extent` of the block `{self.block}` is `{self.extent!r}`", "use `global`, 2, 4 or 8")
        check_positive_integer(self.block, "reduction", self.reduction)
        if self.variant != "theta_plus" and self.reduction != 16:
            raise ConfigError(
                f"`{self.variant}` has no bottleneck, yet `reduction` is `{self.reduction}`",
                "leave it out, or take `theta_plus`",
            )
        if not self.sized():
            if self.size is not None:
                raise ConfigError(
                    f"`{self.variant}` of extent `{self.extent}` takes maps of any size, yet `size` is `{self.size}`",
                    "leave it out",
                )
            return
        if not isinstance(self.size, tuple) or len(self.size) != 2:
            raise ConfigError(
                f"`{self.variant}` of global extent has a weight for each position, and `size` is `{self.size!r}`",
                "give height and width of the map at its site, such as (14, 14) for c4 at 224 x 224",
            )
        for side in self.size:
            check_positive_integer(self.block, "size", side)

    def sized(self) -> bool:
        """Whether the block is made for one size of map."""
        return self.variant != "theta_minus" and self.extent == "global"

    def hidden_width(self, channels: int) -> int:
        """Width C / r of the bottleneck."""
        return max(channels // self.reduction, 1)


class GatherExcite(nn.Module):
    """z = x · sigmoid(interpolate(excite(gather(x)))), every channel gathered for itself.

    - gather without weights: the mean of the map, or means of (2e − 1) x (2e − 1) windows around every e-th position,
      of what of them is inside of the map;
    - gather with weights: one depthwise convolution as large as the map and a batch norm, or log2 e depthwise 3x3
      convolutions of stride 2 with a batch norm each and ReLUs between;
    - excite: nothing, or in GE-θ⁺ ReLU, 1x1 to C/r, ReLU, 1x1 to C, both with bias;
    - interpolate: each position takes the value of its nearest gathered one.

    The layers are those of the authors' Caffe networks (`gather`, `gather/bn`, `excite/1x1_down`, `excite/1x1_up`),
    whose weights were never published. GE-θ⁻ with a bottleneck would be `SqueezeExcitation`. The original stands at the
    end of every residual branch, before the add (`after_1x1`), in c2 to c5.

    O(N C) time, with a bottleneck and C²/r for each gathered position; no parameters, C (H W + 2) or C (9 log2 e + 2
    log2 e), and 2 C C/r + C/r + C in the bottleneck.

    Args:
        channels: C.
        config: All other settings.

    Raises:
        ConfigError: an input that is not (B, C, H, W), or of another size than the block was made for.
    """

    def __init__(self, channels: int, config: GatherExciteConfig = GatherExciteConfig()) -> None:
        super().__init__()
        check_positive_integer(config.block, "channels", channels)
        self.channels = channels
        self.config = config
        self.gather = _gather(channels, config)
        self.excite = _excite(channels, config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew: the gathering from He's normal, the bottleneck from N(0, 0.01) with zero biases."""
        for module in self.gather.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for module in self.excite.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in the memory layout of x."""
        self._check(x)
        logits = self.excite(self.gather(x))
        return x * torch.sigmoid(nearest(logits, x.shape[2:]))

    def _check(self, x: Tensor) -> None:
        check_image(type(self).__name__, self.channels, x)
        size = self.config.size
        if size is not None and tuple(x.shape[2:]) != size:
            raise ConfigError(
                f"`GatherExcite` was made for maps of {size[0]} x {size[1]} and got {x.shape[2]} x {x.shape[3]}: with "
                "global extent it has a weight for each position",
                "give images of the size that it was made for, or take `theta_minus` or another `extent`",
            )

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"


def nearest(gathered: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c h_out w_out"]:
    """For every position of a map of `size` the nearest gathered one: of row i of H it is row floor(i h / H).

    In whole numbers, which `interpolate(mode="nearest")` computes in float32 and gets wrong for some sizes. A single
    gathered position stays one, and is broadcast.
    """
    if gathered.shape[2:] == (1, 1):
        return gathered
    rows, columns = (
        torch.arange(length, device=gathered.device) * count // length
        for length, count in zip(size, gathered.shape[2:], strict=True)
    )
    return gathered[:, :, rows[:, None], columns]


def _gather(channels: int, config: GatherExciteConfig) -> nn.Module:
    extent = config.extent
    if config.variant == "theta_minus":
        if extent == "global":
            return nn.AdaptiveAvgPool2d(1)
        return nn.AvgPool2d(2 * extent - 1, stride=extent, padding=extent - 1, count_include_pad=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if extent == "global":
        assert config.size is not None
        layers["conv1"] = nn.Conv2d(channels, channels, config.size, groups=channels, bias=False)
        layers["norm1"] = nn.BatchNorm2d(channels)
        return nn.Sequential(layers)
    count = extent.bit_length() - 1
    for number in range(1, count + 1):
        layers[f"conv{number}"] = nn.Conv2d(channels, channels, 3, 2, padding=1, groups=channels, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(channels)
        if number < count:
            layers[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(layers)


def _excite(channels: int, config: GatherExciteConfig) -> nn.Module:
    if config.variant != "theta_plus":
        return nn.Identity()
    hidden = config.hidden_width(channels)
    return nn.Sequential(
        OrderedDict(
            relu1=nn.ReLU(),
            reduce=nn.Conv2d(channels, hidden, 1),
            relu2=nn.ReLU(),
            expand=nn.Conv2d(hidden, channels, 1),
        )
    )
