"""The global context framework of section 4.2: SNL, GC, SE with layer norm, and everything between them."""

import math
from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.settings import BlockConfig, check_choice, check_feature_map, check_positive_integer, check_switch
from nlprobe.errors import ConfigError

Pooling = Literal["attention", "average"]
Transform = Literal["linear", "bottleneck"]
ContextNorm = Literal["layer", "batch", "group", "none"]
Fusion = Literal["add", "scale"]


@dataclass(frozen=True)
class ContextConfig(BlockConfig):
    """Settings of a `ContextBlock`; the defaults are the paper's GC block with r = 16.

    Attributes:
        pooling: α_j: "attention" (softmax_j(W_k x_j)) or "average" (1/N_p).
        transform: δ: "linear" (one 1x1, C to C) or "bottleneck" (C to C/r to C).
        reduction: r; the hidden width is max(C // r, 1). Bottleneck only.
        activation: ReLU in the bottleneck.
        norm: Norm in the bottleneck, before the ReLU. "group" norm has up to 32 groups, as many as divide the hidden
            width.
        fusion: F: "add" (x + t) or "scale" (x · sigmoid(t)).
        zero_init: The last linear layer of δ starts at zero, weight and bias: with "add" the block starts as the
            identity, with "scale" it starts as x / 2.

    Raises:
        ConfigError: a value that the setting cannot take, or a setting of the bottleneck with the linear transform.
    """

    block: ClassVar[str] = "context"

    pooling: Pooling = "attention"
    transform: Transform = "bottleneck"
    reduction: int = 16
    activation: bool = True
    norm: ContextNorm = "layer"
    fusion: Fusion = "add"
    zero_init: bool = True

    def __post_init__(self) -> None:
        check_choice(self.block, "pooling", self.pooling, get_args(Pooling))
        check_choice(self.block, "transform", self.transform, get_args(Transform))
        check_choice(self.block, "norm", self.norm, get_args(ContextNorm))
        check_choice(self.block, "fusion", self.fusion, get_args(Fusion))
        check_positive_integer(self.block, "reduction", self.reduction)
        check_switch(self.block, "activation", self.activation)
        check_switch(self.block, "zero_init", self.zero_init)
        if self.transform == "linear" and (self.reduction, self.activation, self.norm) != (1, False, "none"):
            raise ConfigError(
                f"the `linear` transform has no bottleneck, yet `reduction` is `{self.reduction}`, `activation` is "
                f"`{self.activation}` and `norm` is `{self.norm}`",
                "set them to 1, False and `none` (as `ContextConfig.snl()` does), or take `bottleneck`",
            )

    @classmethod
    def snl(cls) -> "ContextConfig":
        """The simplified non-local block, eq. 3: attention pooling, one 1x1, add."""
        return cls("attention", "linear", reduction=1, activation=False, norm="none", fusion="add")

    @classmethod
    def gc(cls, reduction: int = 16) -> "ContextConfig":
        """The global context block, eq. 5: attention pooling, bottleneck with layer norm, add."""
        return cls("attention", "bottleneck", reduction=reduction, activation=True, norm="layer", fusion="add")

    @classmethod
    def se_with_ln(cls, reduction: int = 16) -> "ContextConfig":
        """The squeeze-excitation block with layer norm: average pooling, bottleneck, scale."""
        return cls("average", "bottleneck", reduction=reduction, activation=True, norm="layer", fusion="scale")

    def hidden_width(self, channels: int) -> int:
        """Width C / r inside the bottleneck."""
        return max(channels // self.reduction, 1)


class ContextBlock(nn.Module):
    """z_i = F(x_i, δ(sum_j α_j x_j)), eq. 4 of the paper: one context vector for all positions.

    | here | paper | mmcv, GCNet | timm `GlobalContext` |
    | --- | --- | --- | --- |
    | `mask` | W_k | `conv_mask` | `conv_attn` |
    | `transform` | δ; W_v, or W_v1, LN, ReLU, W_v2 | `channel_add_conv`, `channel_mul_conv` | `mlp_add`, `mlp_scale` |

    A forward hook on `mask` sees the logits (B, N, 1); with average pooling there is no mask and it is `None`. One on
    `transform` sees t = δ(context), (B, C).

    The transform is outside the pooling as in eq. 3: O(N C + C²/r) time, and no more memory than x itself.

    Args:
        channels: C.
        config: All other settings.

    Raises:
        ConfigError: an input without spatial axes or with another number of channels.
    """

    def __init__(self, channels: int, config: ContextConfig = ContextConfig()) -> None:
        super().__init__()
        check_positive_integer("context", "channels", channels)
        self.channels = channels
        self.config = config
        self.mask = nn.Linear(channels, 1) if config.pooling == "attention" else None
        self.transform = _transform(channels, config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew: the mask from He's normal, the transform as torch draws linear layers and norms."""
        if self.mask is not None:
            nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(self.mask.bias)
        for module in self.transform:
            if isinstance(module, nn.Linear | nn.LayerNorm | nn.BatchNorm1d | nn.GroupNorm):
                module.reset_parameters()
        if self.config.zero_init:
            for parameter in self.transform[-1].parameters():
                nn.init.zeros_(parameter)

    def context(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c"]:
        """sum_j α_j x_j."""
        positions = x.flatten(2)  # (b, c, n)
        if self.mask is None:
            return positions.mean(2)
        weights = self.mask(positions.mT).softmax(1)  # (b, n, 1)
        return (positions @ weights.to(positions.dtype)).squeeze(2)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in the memory layout of x."""
        check_feature_map(type(self).__name__, self.channels, x)
        t = self.transform(self.context(x))
        t = t.view(*t.shape, *(1,) * (x.ndim - 2))
        return x + t if self.config.fusion == "add" else x * torch.sigmoid(t)

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"


def _transform(channels: int, config: ContextConfig) -> nn.Sequential:
    if config.transform == "linear":
        return nn.Sequential(OrderedDict(project=nn.Linear(channels, channels)))
    hidden = config.hidden_width(channels)
    layers: OrderedDict[str, nn.Module] = OrderedDict(reduce=nn.Linear(channels, hidden))
    if config.norm == "layer":
        layers["norm"] = nn.LayerNorm(hidden)
    elif config.norm == "batch":
        layers["norm"] = nn.BatchNorm1d(hidden)
    elif config.norm == "group":
        layers["norm"] = nn.GroupNorm(math.gcd(32, hidden), hidden)
    if config.activation:
        layers["relu"] = nn.ReLU()
    layers["expand"] = nn.Linear(hidden, channels)
    return nn.Sequential(layers)
