"""Criss-cross attention (CCNet): softmax attention in which a position sees its own column and row only."""

from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.gamma import Gamma
from nlprobe.blocks.rows import add_rows, to_rows
from nlprobe.blocks.settings import BlockConfig, check_positive_integer, check_switch
from nlprobe.errors import ConfigError


@dataclass(frozen=True)
class CrissCrossConfig(BlockConfig):
    """Settings of a `CrissCross` block; the defaults are CCNet's.

    Attributes:
        reduction: Width d = max(C // reduction, 1) of queries and keys; values are C wide.
        recurrence: R, how often the attention is applied one after another with the same weights. Two steps reach every
            position from every other.
        bias: Bias on W_q, W_k and W_v.
        zero_init: γ starts at zero, so the block starts as the identity; otherwise it starts at one.

    Raises:
        ConfigError: a value that the setting cannot take.
    """

    block: ClassVar[str] = "criss_cross"

    reduction: int = 8
    recurrence: int = 2
    bias: bool = True
    zero_init: bool = True

    def __post_init__(self) -> None:
        check_positive_integer(self.block, "reduction", self.reduction)
        check_positive_integer(self.block, "recurrence", self.recurrence)
        check_switch(self.block, "bias", self.bias)
        check_switch(self.block, "zero_init", self.zero_init)

    def inner_width(self, channels: int) -> int:
        """Width d of queries and keys."""
        return max(channels // self.reduction, 1)


class CrissCrossAttention(nn.Module):
    """y_i = sum_{j ∈ S_i} ω_ij v_j with ω_i = softmax_{j ∈ S_i}(q_i·k_j); S_i, the cross: the column and the row of i.

    The position itself stands in both and is counted once, with the row: a cross has H + W − 1 keys. There is one
    softmax over both arms. Nothing of size N x N is built: O(N (H + W) (d + dv)) time, O(N (H + W + d + dv)) memory,
    forward and backward.

    The module is always called, so a forward hook sees exactly the queries, keys and values that enter the product.
    Logits and softmax are computed in float32 at least, also under autocast and in half precision.
    """

    def forward(
        self, query: Float[Tensor, "b h w d"], key: Float[Tensor, "b h w d"], value: Float[Tensor, "b h w dv"]
    ) -> Float[Tensor, "b h w dv"]:
        """The weighted sums of the values on each position's cross."""
        device = query.device.type
        dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if autocast and dtype != torch.float64:  # which autocast leaves alone
            dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            weights = cross_logits(query.to(wide), key.to(wide)).softmax(-1).to(dtype)
            height = query.shape[1]
            output = weights[..., height:] @ value
            columns = weights[..., :height].transpose(1, 2) @ value.transpose(1, 2)  # (b, w, h, dv)
            return output.add_(columns.transpose(1, 2))


def cross_logits(query: Float[Tensor, "b h w d"], key: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w keys"]:
    """q_i·k_j over the cross of i: first the H keys of its column, itself at −∞ there, then the W keys of its row."""
    column = query.transpose(1, 2) @ key.transpose(1, 2).mT  # (b, w, h, h)
    column.diagonal(dim1=2, dim2=3).fill_(-torch.inf)
    return torch.cat((column.transpose(1, 2), query @ key.mT), -1)  # (b, h, w, h + w)


class CrissCross(nn.Module):
    """R steps x ← x + γ sum_{j ∈ S_i} ω_ij (W_v x_j) with shared weights, S_i the column and row of i.

    | here | paper (CCNet) | CCNet's and mmcv's code |
    | --- | --- | --- |
    | `query` | Q | `query_conv` |
    | `key` | K | `key_conv` |
    | `value` | V | `value_conv` |
    | `attention` | A, affinity and aggregation | `INF`, the softmax over the concatenation, two `bmm` / `einsum` |
    | `gamma.gamma` | - | `gamma` (CCNet, shape [1]), `gamma.scale` (mmcv, shape []) |
    | `recurrence` | R | the head's loop over one module |

    The 1x1 convolutions of those are linear layers on rows here, drawn as torch draws both. There is no W_z and no
    scale of the logits. Codes carry H + W keys, one of them at −∞; mmcv before 1.3.13 had H + W − 1 in another order.

    The block's output is z − x = γ sum_r y^(r), y^(r) = A^(r) W_v x^(r) of its R steps.

    Args:
        channels: C.
        dimension: Spatial dimensions; 2 is the only choice.
        config: All other settings.

    Raises:
        ConfigError: another dimension than 2, or an input of another shape than (B, C, H, W).
    """

    def __init__(self, channels: int, dimension: int = 2, config: CrissCrossConfig = CrissCrossConfig()) -> None:
        super().__init__()
        check_positive_integer("criss_cross", "channels", channels)
        if dimension != 2:
            raise ConfigError(
                f"`dimension` of the block `criss_cross` is `{dimension!r}`",
                "it must be 2: a cross has a column and a row",
            )
        self.channels = channels
        self.config = config
        width = config.inner_width(channels)
        self.query = nn.Linear(channels, width, bias=config.bias)
        self.key = nn.Linear(channels, width, bias=config.bias)
        self.value = nn.Linear(channels, channels, bias=config.bias)
        self.attention = CrissCrossAttention()
        self.gamma = Gamma(0.0 if config.zero_init else 1.0)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, as torch draws linear layers; γ is 0 or 1, as `zero_init` says."""
        for linear in (self.query, self.key, self.value):
            linear.reset_parameters()
        self.gamma.reset_parameters()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """z, in the memory layout of x."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ConfigError(
                f"`CrissCross` of {self.channels} channels got an input of shape `{tuple(x.shape)}`",
                f"it takes (B, {self.channels}, H, W)",
            )
        rows = to_rows(x).unflatten(1, x.shape[2:])  # (b, h, w, c)
        update = self.step(rows)
        for _ in range(self.config.recurrence - 1):
            update = update + self.step(rows + update)
        return add_rows(x, update.flatten(1, 2))

    def step(self, rows: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """γ y of one step."""
        update: Tensor = self.gamma(self.attention(self.query(rows), self.key(rows), self.value(rows)))
        return update

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"
