"""The convolutional block attention module (Woo et al. 2018), which the paper compares with."""

from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.settings import (
    BlockConfig,
    check_choice,
    check_image,
    check_positive_integer,
    check_positive_number,
    check_switch,
)
from nlprobe.errors import ConfigError

Order = Literal["max_mean", "mean_max"]


@dataclass(frozen=True)
class CBAMConfig(BlockConfig):
    """Settings of a `CBAM` block; the defaults are the authors' code.

    Attributes:
        reduction: r of the channel gate's MLP; the hidden width is max(C // r, 1).
        bias: Bias on both layers of the MLP; timm has none.
        order: What the two channels of the spatial gate's convolution are: "max_mean" (the authors) or "mean_max"
            (timm). Weights of one fit the other once these two channels of `spatial_gate.conv` are swapped.
        kernel_size: Side of that convolution, odd.
        momentum: Of its batch norm; timm has 0.1.
        zero_init: The scale of that norm starts at zero, with which the spatial gate is 1/2 everywhere (the authors'
            ResNets); otherwise at 1.

    Raises:
        ConfigError: a value that the setting cannot take.
    """

    block: ClassVar[str] = "cbam"

    reduction: int = 16
    bias: bool = True
    order: Order = "max_mean"
    kernel_size: int = 7
    momentum: float = 0.01
    zero_init: bool = True

    def __post_init__(self) -> None:
        check_positive_integer(self.block, "reduction", self.reduction)
        check_switch(self.block, "bias", self.bias)
        check_choice(self.block, "order", self.order, get_args(Order))
        check_positive_integer(self.block, "kernel_size", self.kernel_size)
        check_positive_number(self.block, "momentum", self.momentum)
        check_switch(self.block, "zero_init", self.zero_init)
        if self.kernel_size % 2 == 0:
            raise ConfigError(
                f"`kernel_size` of the block `cbam` is `{self.kernel_size}`", "it must be odd, to keep the map's size"
            )

    @classmethod
    def timm(cls) -> "CBAMConfig":
        """What timm's `CbamModule` computes by default."""
        return cls(bias=False, order="mean_max", momentum=0.1, zero_init=False)

    def hidden_width(self, channels: int) -> int:
        """Width C / r of the MLP."""
        return max(channels // self.reduction, 1)


class ChannelGate(nn.Module):
    """The logits of the gate over channels, MLP(mean_j x_j) + MLP(max_j x_j) with one MLP for both.

    A maximum that several positions share hands its gradient to all of them in equal parts.
    """

    def __init__(self, channels: int, config: CBAMConfig) -> None:
        super().__init__()
        hidden = config.hidden_width(channels)
        self.mlp = nn.Sequential(
            OrderedDict(
                reduce=nn.Linear(channels, hidden, bias=config.bias),
                relu=nn.ReLU(),
                expand=nn.Linear(hidden, channels, bias=config.bias),
            )
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """One logit a channel."""
        total: Tensor = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        return total


class SpatialGate(nn.Module):
    """The logits of the gate over positions, BN(W * [max_c x, mean_c x]); one map for all channels, without softmax."""

    def __init__(self, config: CBAMConfig) -> None:
        super().__init__()
        self.order = config.order
        side = config.kernel_size
        self.conv = nn.Conv2d(2, 1, side, padding=side // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=config.momentum)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """One logit a position."""
        largest, mean = x.amax(1, keepdim=True), x.mean(1, keepdim=True)
        pooled = [largest, mean] if self.order == "max_mean" else [mean, largest]
        logits: Tensor = self.norm(self.conv(torch.cat(pooled, 1)))
        return logits


class CBAM(nn.Module):
    """y = x · sigmoid(channel gate of x), z = y · sigmoid(spatial gate of y).

    | here | the authors' code | timm `CbamModule` |
    | --- | --- | --- |
    | `channel_gate.mlp.reduce`, `.expand` | `ChannelGate.mlp.1`, `.3` | `channel.fc1`, `.fc2` |
    | `spatial_gate.conv` | `SpatialGate.spatial.conv` | `spatial.conv.conv` |
    | `spatial_gate.norm` | `SpatialGate.spatial.bn` | `spatial.conv.bn` |

    The original stands at the end of every residual branch, before the add (`after_1x1`), in c2 to c5.

    O(N C + C²/r + k² N) time; 2 C C/r + C/r + C + 2 k² + 2 parameters, k the side of the convolution.

    Args:
        channels: C.
        config: All other settings.

    Raises:
        ConfigError: an input that is not (B, C, H, W).
    """

    def __init__(self, channels: int, config: CBAMConfig = CBAMConfig()) -> None:
        super().__init__()
        check_positive_integer(config.block, "channels", channels)
        self.channels = channels
        self.config = config
        self.channel_gate = ChannelGate(channels, config)
        self.spatial_gate = SpatialGate(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew: the MLP as torch draws it but with zero biases, the convolution from He's normal."""
        for module in self.channel_gate.mlp:
            if isinstance(module, nn.Linear):
                module.reset_parameters()
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.kaiming_normal_(self.spatial_gate.conv.weight, mode="fan_out")
        self.spatial_gate.norm.reset_parameters()
        if self.config.zero_init:
            nn.init.zeros_(self.spatial_gate.norm.weight)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in the memory layout of x."""
        check_image(type(self).__name__, self.channels, x)
        y = x * torch.sigmoid(self.channel_gate(x))[:, :, None, None]
        return y * torch.sigmoid(self.spatial_gate(y))

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"
