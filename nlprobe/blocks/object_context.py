"""OCNet's object context pooling (Yuan & Wang 2018), in its base form."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.attention import PairwiseAttention
from nlprobe.blocks.row_transform import RowTransform, drop_channels
from nlprobe.blocks.rows import to_map, to_rows
from nlprobe.blocks.settings import (
    BlockConfig,
    check_choice,
    check_feature_map,
    check_positive_integer,
    check_share,
    check_switch,
)

ContextActivation = Literal["relu", "leaky_relu"]


@dataclass(frozen=True)
class ObjectContextConfig(BlockConfig):
    """Settings of an `ObjectContext` block.

    Attributes:
        reduction: Width d = max(C // reduction, 1) of keys, queries and values.
        activation: Behind the norm of the key transform: "relu", or "leaky_relu" with slope 0.01, which the original
            has because InPlaceABN applies it by default.
        fused_activation: Behind the norm of the fusion, the same.
        norm_bias: Bias on the convolutions that have a batch norm behind them: on in the original, off in most code.
        dropout: Share of the fused channels that training drops, whole channels at a time.
        zero_init: W_z and its bias start at zero: the context does, though not the block, which has no residual add.

    Raises:
        ConfigError: a value that the setting cannot take.
    """

    block: ClassVar[str] = "object_context"

    reduction: int = 2
    activation: ContextActivation = "relu"
    fused_activation: ContextActivation = "relu"
    norm_bias: bool = False
    dropout: float = 0.05
    zero_init: bool = True

    def __post_init__(self) -> None:
        check_positive_integer(self.block, "reduction", self.reduction)
        check_choice(self.block, "activation", self.activation, get_args(ContextActivation))
        check_choice(self.block, "fused_activation", self.fused_activation, get_args(ContextActivation))
        check_switch(self.block, "norm_bias", self.norm_bias)
        check_share(self.block, "dropout", self.dropout)
        check_switch(self.block, "zero_init", self.zero_init)

    @classmethod
    def original(cls) -> "ObjectContextConfig":
        """As OCNet's code has it: leaky ReLU behind both norms, and biases before them."""
        return cls(activation="leaky_relu", fused_activation="leaky_relu", norm_bias=True)

    def inner_width(self, channels: int) -> int:
        """Width d of keys, queries and values."""
        return max(channels // self.reduction, 1)


class ObjectContext(nn.Module):
    """z_i = fuse([W_z Σ_j softmax_j(k_i·k_j / √d) v_j, x_i]), k = act(BN(W_k x)) serving as query too.

    The context stands beside the features and is not added to them: `fuse` is a 1x1 convolution from 2 C to C with
    batch norm, activation and dropout.

    | here | OCNet `BaseOC_Module` |
    | --- | --- |
    | `key` | `f_key`, which is `f_query` |
    | `value`, `output` | `f_value`, `W` |
    | `fuse` | `conv_bn_dropout` |

    Of OCNet's three forms this is the base one. Its pyramid form is the same pooling within tiles, its ASP form is this
    one beside dilated convolutions; neither is built. The N x N map is never held: O(N C) memory, O(N² d) time.

    Args:
        channels: C, of the result too.
        config: All other settings.

    Raises:
        ConfigError: an input without spatial axes or with another number of channels.
    """

    def __init__(self, channels: int, config: ObjectContextConfig = ObjectContextConfig()) -> None:
        super().__init__()
        check_positive_integer(config.block, "channels", channels)
        self.channels = channels
        self.config = config
        width = config.inner_width(channels)
        self.key = RowTransform(channels, width, config.activation, config.norm_bias)
        self.value = nn.Linear(channels, width)
        self.attention = PairwiseAttention("embedded_gaussian", width, 1 / math.sqrt(width))
        self.output = nn.Linear(width, channels)
        self.fuse = RowTransform(2 * channels, channels, config.fused_activation, config.norm_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, as torch draws 1x1 convolutions, and W_z at zero where `zero_init` asks for it."""
        for part in (self.key, self.value, self.output, self.fuse):
            part.reset_parameters()
        if self.config.zero_init:
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in a channels-last layout."""
        check_feature_map(type(self).__name__, self.channels, x)
        rows = to_rows(x)
        key = self.key(rows)
        context = self.output(self.attention(key, key, self.value(rows)))  # (b, n, c)
        fused = to_map(self.fuse(torch.cat([context, rows.to(context.dtype)], 2)), x.shape[2:])
        return drop_channels(fused, self.config.dropout, self.training)

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"
