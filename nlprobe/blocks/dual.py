"""The two halves of DANet's dual attention (Fu et al. 2019): between positions, and between channels."""

from dataclasses import dataclass, fields
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.attention import PairwiseAttention
from nlprobe.blocks.gamma import Gamma
from nlprobe.blocks.rows import add_rows, to_rows
from nlprobe.blocks.settings import BlockConfig, check_feature_map, check_positive_integer, check_switch


@dataclass(frozen=True)
class PositionAttentionConfig(BlockConfig):
    """Settings of a `PositionAttention` block; the defaults are DANet's.

    Attributes:
        reduction: Width d = max(C // reduction, 1) of queries and keys; values keep all C channels.
        zero_init: γ starts at 0, and the block as the identity; otherwise at 1.

    Raises:
        ConfigError: a value that the setting cannot take.
    """

    block: ClassVar[str] = "position_attention"

    reduction: int = 8
    zero_init: bool = True

    def __post_init__(self) -> None:
        check_positive_integer(self.block, "reduction", self.reduction)
        check_switch(self.block, "zero_init", self.zero_init)

    def inner_width(self, channels: int) -> int:
        """Width d of queries and keys."""
        return max(channels // self.reduction, 1)


class PositionAttention(nn.Module):
    """z_i = x_i + γ Σ_j softmax_j(q_i·k_j) v_j: an embedded Gaussian without scale and W_z, with γ in their place.

    | here | paper | DANet `PAM_Module` | mmsegmentation `PAM` |
    | --- | --- | --- | --- |
    | `query` | B | `query_conv` | `query_project` |
    | `key` | C | `key_conv` | `key_project` |
    | `value` | D | `value_conv` | `value_project` |
    | `gate.gamma` | α | `gamma` | `gamma.scale` |

    All three 1x1 convolutions have a bias, and are linear layers on rows here. The N x N map is never built: O(N C)
    memory, O(N² (C/8 + C)) time. 2 (C d + d) + C² + C + 1 parameters.

    Args:
        channels: C.
        config: All other settings.

    Raises:
        ConfigError: an input without spatial axes or with another number of channels.
    """

    def __init__(self, channels: int, config: PositionAttentionConfig = PositionAttentionConfig()) -> None:
        super().__init__()
        check_positive_integer(config.block, "channels", channels)
        self.channels = channels
        self.config = config
        width = config.inner_width(channels)
        self.query = nn.Linear(channels, width)
        self.key = nn.Linear(channels, width)
        self.value = nn.Linear(channels, channels)
        self.attention = PairwiseAttention("embedded_gaussian", width)
        self.gate = Gamma(0.0 if config.zero_init else 1.0)

    def reset_parameters(self) -> None:
        """Draw all weights anew, as torch draws a 1x1 convolution, and set γ to what it starts at."""
        for part in (self.query, self.key, self.value, self.gate):
            part.reset_parameters()

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in the memory layout of x."""
        check_feature_map(type(self).__name__, self.channels, x)
        rows = to_rows(x)
        return add_rows(x, self.gate(self.attention(self.query(rows), self.key(rows), self.value(rows))))

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"


@dataclass(frozen=True)
class ChannelAttentionConfig(BlockConfig):
    """Settings of a `ChannelAttention` block.

    Attributes:
        zero_init: γ starts at 0, and the block as the identity; otherwise at 1.

    Raises:
        ConfigError: a value that the setting cannot take.
    """

    block: ClassVar[str] = "channel_attention"

    zero_init: bool = True

    def __post_init__(self) -> None:
        check_switch(self.block, "zero_init", self.zero_init)


class ChannelAttention(nn.Module):
    """z_a = x_a + γ Σ_b softmax_b(max_c x_a·x_c − x_a·x_b) x_b, with x_a the N values of channel a.

    Channels attend to each other, those most that are least alike; the maximum is the same for a whole row and cancels
    in the softmax, which is that of −X Xᵀ. No convolutions and no scale: γ (`gate.gamma`; `gamma` in DANet's
    `CAM_Module`, `gamma.scale` in mmsegmentation's `CAM`) is the only parameter.

    Positions may be permuted, channels too. The map is C x C; O(C² N) time, O(C N + C²) memory.

    Args:
        channels: C.
        config: All other settings.

    Raises:
        ConfigError: an input without spatial axes or with another number of channels.
    """

    def __init__(self, channels: int, config: ChannelAttentionConfig = ChannelAttentionConfig()) -> None:
        super().__init__()
        check_positive_integer(config.block, "channels", channels)
        self.channels = channels
        self.config = config
        self.attention = PairwiseAttention("gaussian", logit_scale=-1.0)
        self.gate = Gamma(0.0 if config.zero_init else 1.0)

    def reset_parameters(self) -> None:
        """Set γ to what it starts at."""
        self.gate.reset_parameters()

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in the memory layout of x."""
        check_feature_map(type(self).__name__, self.channels, x)
        maps = x.flatten(2).contiguous()  # (b, c, n): a channel is a row
        update: Tensor = self.gate(self.attention(maps, maps, maps))
        return x + update.view(x.shape)

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        return f"{self.channels}, zero_init={self.config.zero_init!r}"
