"""The squeeze-and-excitation block in its original form (Hu, Shen and Sun 2018), which the paper compares with."""

from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.settings import BlockConfig, check_feature_map, check_positive_integer, check_switch


@dataclass(frozen=True)
class SqueezeExcitationConfig(BlockConfig):
    """Settings of a `SqueezeExcitation` block; the defaults are the original's.

    Attributes:
        reduction: r; the hidden width is max(C // r, 1).
        bias: Bias on both linear layers; some reimplementations have none.

    Raises:
        ConfigError: a value that the setting cannot take.
    """

    block: ClassVar[str] = "squeeze_excitation"

    reduction: int = 16
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive_integer(self.block, "reduction", self.reduction)
        check_switch(self.block, "bias", self.bias)

    def hidden_width(self, channels: int) -> int:
        """Width C / r of the bottleneck."""
        return max(channels // self.reduction, 1)


class SqueezeExcitation(nn.Module):
    """z_i = x_i · sigmoid(W_2 ReLU(W_1 mean_j x_j)): every channel is scaled by one gate for all positions.

    In the framework of section 4.2: average pooling, a bottleneck without norm, scale fusion. It is what a
    `ContextBlock` computes with those settings; the paper's "SE with layer norm" is another block,
    `ContextConfig.se_with_ln()`.

    | here | paper of SE | timm `SEModule`, torchvision `SqueezeExcitation` |
    | --- | --- | --- |
    | `excite.reduce` | W_1 | `fc1` |
    | `excite.expand` | W_2 | `fc2` |

    The original stands at the end of every residual branch, before the add (`after_1x1`), in c2 to c5.

    O(N C + C²/r) time; 2 C C/r + C/r + C parameters.

    Args:
        channels: C.
        config: All other settings.

    Raises:
        ConfigError: an input without spatial axes or with another number of channels.
    """

    def __init__(self, channels: int, config: SqueezeExcitationConfig = SqueezeExcitationConfig()) -> None:
        super().__init__()
        check_positive_integer(config.block, "channels", channels)
        self.channels = channels
        self.config = config
        hidden = config.hidden_width(channels)
        self.excite = nn.Sequential(
            OrderedDict(
                reduce=nn.Linear(channels, hidden, bias=config.bias),
                relu=nn.ReLU(),
                expand=nn.Linear(hidden, channels, bias=config.bias),
            )
        )

    def reset_parameters(self) -> None:
        """Draw both linear layers anew, as torch draws them."""
        for module in self.excite:
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in the memory layout of x."""
        check_feature_map(type(self).__name__, self.channels, x)
        gate = torch.sigmoid(self.excite(x.flatten(2).mean(2)))  # (b, c)
        return x * gate.view(*gate.shape, *(1,) * (x.ndim - 2))

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"
