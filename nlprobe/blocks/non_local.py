"""The non-local block of section 3.1: four instantiations, each a setting."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.attention import INSTANTIATIONS, SOFTMAX_INSTANTIATIONS, Instantiation, PairwiseAttention
from nlprobe.blocks.rows import add_rows, to_map, to_rows
from nlprobe.blocks.settings import (
    BlockConfig,
    check_choice,
    check_positive_integer,
    check_positive_number,
    check_switch,
)
from nlprobe.errors import ConfigError

Scale = Literal["none", "inv_sqrt", "inv_sqrt_in", "sqrt"]
SubSample = Literal["none", "pool_then_project", "project_then_pool"]
NonLocalNorm = Literal["none", "batch"]


@dataclass(frozen=True)
class NonLocalConfig(BlockConfig):
    """Settings of a `NonLocal` block; the defaults are the paper's formula with the field's batch norm on W_z.

    Attributes:
        instantiation: Which ω_ij of section 3.1.
        reduction: Inner width d = max(C // reduction, 1) of queries, keys and values; 2 in the paper. Gaussian has
            C-wide queries and keys, x itself, and only its values are d wide.
        scale: Factor of the logits: "none" as in the paper; "inv_sqrt" 1/√d_qk (mmcv, Caffe2, SlowFast); "inv_sqrt_in"
            1/√C (timm); "sqrt" √d_qk, which the released GCNet code multiplies by where it meant to divide. Softmax
            modes only.
        temperature: The logits are divided by it; softmax modes only.
        sub_sample: Keys and values at fewer positions, by a max-pool of 2 (1-D), 2x2 (2-D) or 1x2x2 (3-D): of x before
            W_k and W_v ("pool_then_project": Caffe2, SlowFast, and what the paper's costs on COCO imply) or of their
            results ("project_then_pool": mmcv, mmaction2). Odd sizes round down.
        norm: "batch" norm behind W_z, as in most code, or "none", as in the paper's formula and in mmdetection.
        zero_init: The block starts as the identity: the norm's weight and bias are zero, without norm W_z and its bias.
        bias: Bias on W_q, W_k and W_v.
        output_bias: Bias on W_z.

    Raises:
        ConfigError: a value that the setting cannot take, or `scale` or `temperature` with a mode that has no softmax.
    """

    block: ClassVar[str] = "non_local"

    instantiation: Instantiation = "embedded_gaussian"
    reduction: int = 2
    scale: Scale = "none"
    temperature: float = 1.0
    sub_sample: SubSample = "none"
    norm: NonLocalNorm = "batch"
    zero_init: bool = True
    bias: bool = True
    output_bias: bool = True

    def __post_init__(self) -> None:
        check_choice(self.block, "instantiation", self.instantiation, INSTANTIATIONS)
        check_choice(self.block, "scale", self.scale, get_args(Scale))
        check_choice(self.block, "sub_sample", self.sub_sample, get_args(SubSample))
        check_choice(self.block, "norm", self.norm, get_args(NonLocalNorm))
        check_positive_integer(self.block, "reduction", self.reduction)
        for switch in ("zero_init", "bias", "output_bias"):
            check_switch(self.block, switch, getattr(self, switch))
        check_positive_number(self.block, "temperature", self.temperature)
        if self.instantiation not in SOFTMAX_INSTANTIATIONS and (self.scale != "none" or self.temperature != 1):
            raise ConfigError(
                f"`{self.instantiation}` has no softmax, yet `scale` is `{self.scale}` and `temperature` is "
                f"`{self.temperature}`",
                "leave them at `none` and 1, or take `gaussian` or `embedded_gaussian`",
            )

    def inner_width(self, channels: int) -> int:
        """Width d of the values, and of queries and keys but for Gaussian."""
        return max(channels // self.reduction, 1)

    def logit_scale(self, channels: int) -> float:
        """Scale and temperature folded into the one factor of the logits."""
        width = channels if self.instantiation == "gaussian" else self.inner_width(channels)
        factor = {
            "none": 1.0,
            "inv_sqrt": 1 / math.sqrt(width),
            "inv_sqrt_in": 1 / math.sqrt(channels),
            "sqrt": math.sqrt(width),
        }[self.scale]
        return factor / self.temperature


class NonLocal(nn.Module):
    """z_i = x_i + W_z sum_j ω_ij (W_v x_j), eq. 1 of the paper.

    | here | paper | mmcv, SlowFast, Caffe2, "Non-local Neural Networks" |
    | --- | --- | --- |
    | `query` | W_q | `theta`, θ |
    | `key` | W_k | `phi`, φ |
    | `value` | W_v | `g` |
    | `attention` | ω | the pairwise function `f` and its normaliser; concat's `concat_project` is in here |
    | `output`, `norm` | W_z | `conv_out`, `W` and the norm on it, `bn` |

    The 1x1 convolutions of those are linear layers on rows here: one row of channels for each position, in row-major
    order. Gaussian has neither `query` nor `key` (both `None`): x_i itself stands in.

    The N x N map is never built: memory is O(N C) in every mode, forward and backward. Time is O(N² d) for the softmax
    modes, O(N d²) for dot product and O(N (log N + d²)) for concat, W's included.

    Args:
        channels: C.
        dimension: Spatial dimensions, 1, 2 or 3; a video is (B, C, T, H, W).
        config: All other settings.

    Raises:
        ConfigError: a setting that does not fit, or an input of another shape than the block was made for.
    """

    def __init__(self, channels: int, dimension: int = 2, config: NonLocalConfig = NonLocalConfig()) -> None:
        super().__init__()
        check_positive_integer("non_local", "channels", channels)
        if dimension not in (1, 2, 3):
            raise ConfigError(f"`dimension` of the block `non_local` is `{dimension!r}`", "it must be 1, 2 or 3")
        self.channels = channels
        self.dimension = dimension
        self.config = config
        width = config.inner_width(channels)
        embeds = config.instantiation != "gaussian"
        self.query = nn.Linear(channels, width, bias=config.bias) if embeds else None
        self.key = nn.Linear(channels, width, bias=config.bias) if embeds else None
        self.value = nn.Linear(channels, width, bias=config.bias)
        self.attention = PairwiseAttention(config.instantiation, width, config.logit_scale(channels))
        self.output = nn.Linear(width, channels, bias=config.output_bias)
        self.norm = nn.BatchNorm1d(channels) if config.norm == "batch" else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew: N(0, 0.01) with zero biases, and what `zero_init` asks for set to zero."""
        for linear in (self.query, self.key, self.value, self.output):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.01)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        self.attention.reset_parameters()
        if isinstance(self.norm, nn.BatchNorm1d):
            self.norm.reset_parameters()
        if self.config.zero_init:
            last = self.norm if isinstance(self.norm, nn.BatchNorm1d) else self.output
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in the memory layout of x."""
        self._check(x)
        spatial = x.shape[2:]
        rows = to_rows(x)
        pooled = to_rows(self._pool(x)) if self.config.sub_sample == "pool_then_project" else rows
        query = rows if self.query is None else self.query(rows)
        key = pooled if self.key is None else self.key(pooled)
        value = self.value(pooled)
        if self.config.sub_sample == "project_then_pool":
            key = to_rows(self._pool(to_map(key, spatial)))
            value = to_rows(self._pool(to_map(value, spatial)))
        update = self.output(self.attention(query, key, value))  # (b, n, c)
        update = self.norm(update.flatten(0, 1)).view(update.shape)
        return add_rows(x, update)

    def _pool(self, x: Tensor) -> Tensor:
        if self.dimension == 1:
            return F.max_pool1d(x, 2)
        if self.dimension == 2:
            return F.max_pool2d(x, 2)
        return F.max_pool3d(x, (1, 2, 2))

    def _check(self, x: Tensor) -> None:
        shape = tuple(x.shape)
        names = "B, C, " + ", ".join(("T", "H", "W")[-self.dimension :] if self.dimension > 1 else "L")
        if len(shape) != self.dimension + 2:
            raise ConfigError(
                f"a {self.dimension}-dimensional `NonLocal` got an input of shape `{shape}`",
                f"it takes ({names}); for other inputs choose another `dimension`",
            )
        if shape[1] != self.channels:
            raise ConfigError(
                f"`NonLocal` was made for {self.channels} channels and got an input of shape `{shape}`",
                f"axis 1 of ({names}) must be {self.channels} long",
            )
        pooled = shape[-min(self.dimension, 2) :]
        if self.config.sub_sample != "none" and min(pooled) < 2:
            raise ConfigError(
                f"an input of shape `{shape}` is too small for `sub_sample` = `{self.config.sub_sample}`, which pools "
                "by 2 and would leave no keys",
                "take a larger input, or `sub_sample` = `none`",
            )

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, dimension={self.dimension}, {settings}"
