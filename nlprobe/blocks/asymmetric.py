"""The two blocks of the asymmetric non-local network (Zhu et al. 2019), whose keys are the cells of a pyramid."""

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
from nlprobe.errors import ConfigError

PYRAMID = (1, 3, 6, 8)
"""Cells along each side of the grids that an image is averaged over: 1 + 9 + 36 + 64 = 110 keys."""

ProjectedActivation = Literal["relu", "leaky_relu"]


@dataclass(frozen=True)
class _AsymmetricConfig(BlockConfig):
    """What both blocks can be told; see their own classes."""

    reduction: int = 2
    pyramid: tuple[int, ...] = PYRAMID
    activation: ProjectedActivation = "relu"
    norm_bias: bool = False
    dropout: float = 0.05
    zero_init: bool = True

    def __post_init__(self) -> None:
        check_positive_integer(self.block, "reduction", self.reduction)
        check_choice(self.block, "activation", self.activation, get_args(ProjectedActivation))
        check_switch(self.block, "norm_bias", self.norm_bias)
        check_share(self.block, "dropout", self.dropout)
        check_switch(self.block, "zero_init", self.zero_init)
        if not isinstance(self.pyramid, tuple) or not self.pyramid:
            raise ConfigError(
                f"`pyramid` of the block `{self.block}` is `{self.pyramid!r}`",
                "give one or more sizes, such as 1,3,6,8",
            )
        for size in self.pyramid:
            check_positive_integer(self.block, "pyramid", size)

    def inner_width(self, channels: int) -> int:
        """Width d of queries, keys and values."""
        return max(channels // self.reduction, 1)

    @property
    def keys(self) -> int:
        """How many keys there are, whatever the size of the image."""
        return sum(size * size for size in self.pyramid)


@dataclass(frozen=True)
class AsymmetricPyramidConfig(_AsymmetricConfig):
    """Settings of an `AsymmetricPyramid` block; the defaults are the network's on 512 channels.

    Attributes:
        reduction: Width d = max(C // reduction, 1) of queries, keys and values.
        pyramid: Sides of the grids of cells that keys and values are averaged over; 1, 3, 6, 8 are 110 keys.
        activation: Behind the norms of key transform and fusion: "relu", or "leaky_relu" with slope 0.01.
        norm_bias: Bias on the convolutions that have a batch norm behind them: on in the original, off in mmseg.
        dropout: Share of the fused channels that training drops, whole channels at a time (mmsegmentation: none here).
        zero_init: W_z and its bias start at zero: the context does, though not the block, which has no residual add.

    Raises:
        ConfigError: a value that the setting cannot take.
    """

    block: ClassVar[str] = "asymmetric_pyramid"


@dataclass(frozen=True)
class AsymmetricFusionConfig(_AsymmetricConfig):
    """Settings of an `AsymmetricFusion` block; the defaults are the network's on c4 and c5.

    Attributes:
        reduction: Width d = max(C // reduction, 1) of queries, keys and values, C the channels of the high map.
        low_channels: Channels of the low map.
        pyramid: As in `AsymmetricPyramidConfig`.
        activation: Behind the norms of query and key transform; the fusion has none.
        norm_bias: As in `AsymmetricPyramidConfig`.
        dropout: As in `AsymmetricPyramidConfig`.
        zero_init: As in `AsymmetricPyramidConfig`.

    Raises:
        ConfigError: a value that the setting cannot take.
    """

    block: ClassVar[str] = "asymmetric_fusion"

    reduction: int = 8
    low_channels: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_integer(self.block, "low_channels", self.low_channels)


class PyramidPooling(nn.Module):
    """Means over the cells of several grids: (b, n, c) rows of a map -> (b, m, c), grid by grid, in row-major order.

    Cells are those of adaptive average pooling: cell a of s along a side of L covers ⌊a L / s⌋ to ⌈(a + 1) L / s⌉, so
    that cells overlap where s does not divide L, and repeat positions where L < s.
    """

    def __init__(self, sizes: tuple[int, ...] = PYRAMID) -> None:
        super().__init__()
        self.pools = nn.ModuleList([nn.AdaptiveAvgPool2d(size) for size in sizes])

    def forward(self, rows: Float[Tensor, "b n c"], spatial: tuple[int, ...]) -> Float[Tensor, "b m c"]:
        """The cells' means."""
        grid = to_map(rows, spatial)
        return torch.cat([pool(grid).flatten(2) for pool in self.pools], 2).mT.contiguous()


class _Asymmetric(nn.Module):
    """What both blocks share: W_v, the pyramid, the product, W_z and the fusion."""

    config: _AsymmetricConfig

    def __init__(self, channels: int, low_channels: int, fused: Literal["relu", "leaky_relu", "none"]) -> None:
        super().__init__()
        config = self.config
        check_positive_integer(config.block, "channels", channels)
        self.channels = channels
        width = config.inner_width(channels)
        self.key = RowTransform(low_channels, width, config.activation, config.norm_bias)
        self.value = nn.Linear(low_channels, width)
        self.pool = PyramidPooling(config.pyramid)
        self.attention = PairwiseAttention("embedded_gaussian", width, 1 / math.sqrt(width))
        self.output = nn.Linear(width, channels)
        self.fuse = RowTransform(2 * channels, channels, fused, config.norm_bias)

    def reset_parameters(self) -> None:
        """Draw all weights anew, as torch draws 1x1 convolutions, and W_z at zero where `zero_init` asks for it."""
        for part in self.children():
            if isinstance(part, RowTransform | nn.Linear):
                part.reset_parameters()
        if self.config.zero_init:
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def _fused(self, rows: Tensor, query: Tensor, key: Tensor, value: Tensor, spatial: tuple[int, ...]) -> Tensor:
        context = self.output(self.attention(query, key, value))  # (b, n, c)
        fused = to_map(self.fuse(torch.cat([context, rows.to(context.dtype)], 2)), spatial)
        return drop_channels(fused, self.config.dropout, self.training)

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"


class AsymmetricPyramid(_Asymmetric):
    """APNB: z_i = fuse([W_z Σ_j softmax_j(k_i·k̄_j / √d) v̄_j, x_i]), k = act(BN(W_k x)), j over 110 pyramid cells.

    The bar is the mean over a cell, taken of keys and values after their transforms; keys before pooling serve as
    queries. The context stands beside the features, it is not added to them.

    | here | ANN `APNB` | mmsegmentation `APNB` |
    | --- | --- | --- |
    | `key` | `stages.0.f_key`, which is `f_query` | `stages.0.key_project` |
    | `value`, `output` | `stages.0.f_value`, `stages.0.W` | `value_project`, `out_project` |
    | `pool` | `psp` | `key_downsample` |
    | `fuse` | `conv_bn_dropout` | `bottleneck` |

    O(N M d) time with M = 110 keys for any N, O(N C) memory. One query scale, as in all configurations.

    Args:
        channels: C, of the result too.
        config: All other settings.

    Raises:
        ConfigError: an input that is not (B, C, H, W).
    """

    config: AsymmetricPyramidConfig

    def __init__(self, channels: int, config: AsymmetricPyramidConfig = AsymmetricPyramidConfig()) -> None:
        self.config = config
        super().__init__(channels, channels, config.activation)
        self.reset_parameters()

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in a channels-last layout."""
        _check_image_map(type(self).__name__, self.channels, x)
        spatial = tuple(x.shape[2:])
        rows = to_rows(x)
        query = self.key(rows)
        key, value = self.pool(query, spatial), self.pool(self.value(rows), spatial)
        return self._fused(rows, query, key, value, spatial)


class AsymmetricFusion(_Asymmetric):
    """AFNB: z_i = fuse([W_z Σ_j softmax_j(q_i·k̄_j / √d) v̄_j, x_i]), q from a high map x, k̄ and v̄ from a low one.

    q = act(BN(W_q x)), k = act(BN(W_k l)), v = W_v l; the bar is the mean over one of 110 pyramid cells. The fusion has
    a norm and no activation, and no residual add.

    | here | ANN `AFNB` | mmsegmentation `AFNB` |
    | --- | --- | --- |
    | `query`, `key` | `stages.0.f_query`, `stages.0.f_key` | `stages.0.query_project`, `stages.0.key_project` |
    | others | as in `AsymmetricPyramid` | as in `AsymmetricPyramid` |

    It takes two maps, so it belongs to a head and can neither be inserted into a residual block nor stand in the place
    of a context operator: `build_block` does not know it. The low map may have another size than the high one.

    Args:
        channels: C of the high map (c5), of the result too.
        config: All other settings, the channels of the low map (c4) among them.

    Raises:
        ConfigError: inputs that are not (B, C_low, H', W') and (B, C, H, W).
    """

    config: AsymmetricFusionConfig

    def __init__(self, channels: int, config: AsymmetricFusionConfig = AsymmetricFusionConfig()) -> None:
        self.config = config
        super().__init__(channels, config.low_channels, "none")
        self.query = RowTransform(channels, config.inner_width(channels), config.activation, config.norm_bias)
        self.reset_parameters()

    def forward(
        self, low: Float[Tensor, "b c_low *low_spatial"], high: Float[Tensor, "b c *spatial"]
    ) -> Float[Tensor, "b c *spatial"]:
        """Z on the grid of the high map, in a channels-last layout."""
        name = type(self).__name__
        _check_image_map(name, self.key.linear.in_features, low)
        _check_image_map(name, self.channels, high)
        spatial, low_spatial = tuple(high.shape[2:]), tuple(low.shape[2:])
        rows, low_rows = to_rows(high), to_rows(low)
        key, value = self.pool(self.key(low_rows), low_spatial), self.pool(self.value(low_rows), low_spatial)
        return self._fused(rows, self.query(rows), key, value, spatial)


def _check_image_map(name: str, channels: int, x: Tensor) -> None:
    check_feature_map(name, channels, x)
    if x.ndim != 4:
        raise ConfigError(
            f"`{name}` pools over the cells of an image, and got an input of shape `{tuple(x.shape)}`",
            f"it takes (B, {channels}, H, W)",
        )
