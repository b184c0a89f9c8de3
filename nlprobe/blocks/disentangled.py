"""The disentangled non-local block (Yin et al. 2020) in the forms in which it was published."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.attention import PairwiseAttention
from nlprobe.blocks.context import ContextBlock, ContextConfig
from nlprobe.blocks.gamma import Gamma
from nlprobe.blocks.rows import add_rows, to_rows
from nlprobe.blocks.settings import (
    BlockConfig,
    check_choice,
    check_feature_map,
    check_positive_integer,
    check_positive_number,
    check_switch,
)
from nlprobe.errors import ConfigError

Whitening = Literal["positions", "image", "mixed", "none"]
DisentangledScale = Literal["none", "inv_sqrt", "sqrt"]
Unary = Literal["shared", "own", "none"]
Output = Literal["project", "project_apart", "gamma"]
DisentangledNorm = Literal["none", "batch"]


@dataclass(frozen=True)
class DisentangledConfig(BlockConfig):
    """Settings of a `Disentangled` block; the defaults are the paper's formula with the field's batch norm on W_z.

    Public code gives four different blocks the one name, and each of them has a constructor here: `mmseg`,
    `object_detection`, `scene_parsing` and `non_local_2d`.

    Attributes:
        reduction: Inner width d = max(C // reduction, 1) of queries and keys, and of values but for "gamma".
        whitening: What is taken off queries and keys before their product. "positions": from each its mean over the
            positions of the image, one for each channel (the paper). "image": one number, the mean over positions and
            channels. "mixed": from a query the mean over its own channels, from the keys the mean over positions, which
            is what the DNL authors' `NonLocal2D(whiten_type="channel")` does: it averages axis 2 of both, and its
            queries lie (B, N, d) where its keys lie (B, d, N). "none". A constant taken off all keys changes no
            softmax, so only what is taken off the queries tells these apart.
        scale: Factor of the logits: "none" (the paper), "inv_sqrt" 1/√d, or "sqrt" √d (`NonLocal2D` without
            `fixbug`).
        temperature: The logits are divided by it.
        unary: The second map softmax_j(W_m x_j), one for all queries. "shared": it averages the same values as the
            pairwise map. "own": it is a global context block of its own, bottleneck of C // reduction channels, with a
            value transform of its own. "none": whitening only.
        output: "project": W_z, and the norm, of pairwise and unary term together. "project_apart": of each by itself,
            so that a norm shifts twice, and in training takes its statistics of each (of two or more images then).
            "gamma": no W_z, values are C wide, and γ multiplies the pairwise term alone.
        norm: "batch" norm behind W_z, or "none"; none with "gamma".
        bias: Bias on W_q and W_k.
        value_bias: Bias on W_v.
        output_bias: Bias on W_z.
        zero_init: The pairwise term starts at zero, and with "project" the whole block as the identity: norm weight
            and bias, without norm W_z and its bias, or γ. Otherwise γ starts at 1.

    Raises:
        ConfigError: a value that the setting cannot take, or settings that contradict each other.
    """

    block: ClassVar[str] = "disentangled"

    reduction: int = 2
    whitening: Whitening = "positions"
    scale: DisentangledScale = "none"
    temperature: float = 1.0
    unary: Unary = "shared"
    output: Output = "project"
    norm: DisentangledNorm = "batch"
    bias: bool = True
    value_bias: bool = True
    output_bias: bool = True
    zero_init: bool = True

    def __post_init__(self) -> None:
        check_choice(self.block, "whitening", self.whitening, get_args(Whitening))
        check_choice(self.block, "scale", self.scale, get_args(DisentangledScale))
        check_choice(self.block, "unary", self.unary, get_args(Unary))
        check_choice(self.block, "output", self.output, get_args(Output))
        check_choice(self.block, "norm", self.norm, get_args(DisentangledNorm))
        check_positive_integer(self.block, "reduction", self.reduction)
        check_positive_number(self.block, "temperature", self.temperature)
        for switch in ("bias", "value_bias", "output_bias", "zero_init"):
            check_switch(self.block, switch, getattr(self, switch))
        if self.output == "gamma" and (self.norm != "none" or self.output_bias):
            raise ConfigError(
                f"with `output` = `gamma` there is no W_z, yet `norm` is `{self.norm}` and `output_bias` is "
                f"`{self.output_bias}`",
                "set them to `none` and False (as `DisentangledConfig.scene_parsing()` does), or take `project`",
            )
        if self.output == "project_apart" and self.unary != "shared":
            raise ConfigError(
                f"`output` = `project_apart` takes W_z of the unary term too, yet `unary` is `{self.unary}`",
                "take `unary` = `shared`, or `output` = `project`",
            )

    @classmethod
    def mmseg(cls, reduction: int = 2) -> "DisentangledConfig":
        """The block of mmsegmentation, `DisentangledNonLocal2d`.

        Whitened over positions, 1/√d and temperature 0.05, one set of d-wide values for both terms, and W_z with its
        batch norm applied to each term by itself.
        """
        return cls(
            reduction, scale="inv_sqrt", temperature=0.05, output="project_apart", norm="batch", output_bias=False
        )

    @classmethod
    def object_detection(cls, reduction: int = 4) -> "DisentangledConfig":
        """The authors' block for detection, `NonLocal2dGc` as their configurations have it.

        Whitened over positions, 1/√d and temperature 0.05, C-wide values without bias for both terms, no W_z, and γ on
        the pairwise term alone.
        """
        return cls(
            reduction,
            scale="inv_sqrt",
            temperature=0.05,
            output="gamma",
            norm="none",
            value_bias=False,
            output_bias=False,
        )

    @classmethod
    def scene_parsing(cls, reduction: int = 2) -> "DisentangledConfig":
        """The authors' block for segmentation, `NonLocal2d_nowd` with `ln_nostd`.

        One mean over positions and channels taken off, neither scale nor temperature, C-wide values without bias for
        both terms, no W_z, and γ on the pairwise term alone.
        """
        return cls(reduction, "image", output="gamma", norm="none", value_bias=False, output_bias=False)

    @classmethod
    def non_local_2d(cls, reduction: int = 4) -> "DisentangledConfig":
        """The authors' other block, `NonLocal2D` with `whiten_type="channel"`, `fixbug` and a context block beside it.

        Mixed whitening, 1/√d, d-wide values, W_z without norm, and a unary term with a transform of its own.
        """
        return cls(reduction, "mixed", "inv_sqrt", unary="own", norm="none")

    def inner_width(self, channels: int) -> int:
        """Width d of queries and keys."""
        return max(channels // self.reduction, 1)

    def value_width(self, channels: int) -> int:
        """Width of the values."""
        return channels if self.output == "gamma" else self.inner_width(channels)

    def logit_scale(self, channels: int) -> float:
        """Scale and temperature folded into the one factor of the logits."""
        width = self.inner_width(channels)
        factor = {"none": 1.0, "inv_sqrt": 1 / math.sqrt(width), "sqrt": math.sqrt(width)}[self.scale]
        return factor / self.temperature


class UnaryTerm(nn.Module):
    """Σ_j softmax_j(W_m x_j) v_j: one weighted mean of the values for all queries. O(N C).

    A module of its own so that forward hooks see its logits (at `mask`), its values and its result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mask = nn.Linear(channels, 1)

    def forward(self, rows: Float[Tensor, "b n c"], value: Float[Tensor, "b n dv"]) -> Float[Tensor, "b dv"]:
        """The mean, one row for each image."""
        weights = self.mask(rows).softmax(1)  # (b, n, 1)
        return (weights.to(value.dtype).mT @ value).squeeze(1)


class Disentangled(nn.Module):
    """z_i = x_i + W_z (Σ_j softmax_j((q_i − μ_q)·(k_j − μ_k) s) v_j + Σ_j softmax_j(W_m x_j) v_j).

    Yin et al. 2020: a pairwise term without what all queries have in common, and a unary term that is nothing
    else. Which μ, which s, whose values and what W_z is are settings.

    | here | paper | mmsegmentation | DNL-Object-Detection, DNL-Semantic-Segmentation |
    | --- | --- | --- | --- |
    | `query`, `key` | W_q, W_k | `theta`, `phi` | `conv_query`, `conv_key` |
    | `value` | W_v | `g` | `conv_value` |
    | `unary.mask` | W_m | `conv_mask` | `conv_mask` |
    | `output`, `norm` | W_z | `conv_out.conv`, `conv_out.bn` | none, or `conv_out` and `out_bn` |
    | `gate` | - | - | `gamma` |
    | `context` | - | - | `gc_block` of `NonLocal2D` |

    Their 1x1 convolutions are linear layers on rows here. The N x N map is never built: O(N C) memory and O(N² d) time.
    Their max-pool of keys and values (`downsample`) is off in all their configurations and not built.

    Args:
        channels: C.
        config: All other settings.

    Raises:
        ConfigError: an input without spatial axes or with another number of channels.
    """

    def __init__(self, channels: int, config: DisentangledConfig = DisentangledConfig()) -> None:
        super().__init__()
        check_positive_integer(config.block, "channels", channels)
        self.channels = channels
        self.config = config
        width, value_width = config.inner_width(channels), config.value_width(channels)
        self.query = nn.Linear(channels, width, bias=config.bias)
        self.key = nn.Linear(channels, width, bias=config.bias)
        self.value = nn.Linear(channels, value_width, bias=config.value_bias)
        self.attention = PairwiseAttention("embedded_gaussian", width, config.logit_scale(channels))
        projects = config.output != "gamma"
        self.gate = None if projects else Gamma(0.0 if config.zero_init else 1.0)
        self.output = nn.Linear(value_width, channels, bias=config.output_bias) if projects else None
        self.norm = nn.BatchNorm1d(channels) if config.norm == "batch" else nn.Identity()
        self.unary = UnaryTerm(channels) if config.unary == "shared" else None
        own = config.unary == "own"
        self.context = (
            ContextBlock(channels, ContextConfig(reduction=config.reduction, zero_init=config.zero_init))
            if own
            else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew: N(0, 0.01) with zero biases, and what `zero_init` asks for set to zero."""
        mask = None if self.unary is None else self.unary.mask
        for linear in (self.query, self.key, self.value, self.output, mask):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.01)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        for part in (self.norm, self.gate, self.context):
            if isinstance(part, nn.BatchNorm1d | Gamma | ContextBlock):
                part.reset_parameters()
        if self.config.zero_init and self.output is not None:
            last = self.norm if isinstance(self.norm, nn.BatchNorm1d) else self.output
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in the memory layout of x."""
        check_feature_map(type(self).__name__, self.channels, x)
        rows = to_rows(x)
        query, key = self.whiten(self.query(rows), self.key(rows))
        value = self.value(rows)
        pairwise = self.attention(query, key, value)  # (b, n, dv)
        unary = None if self.unary is None else self.unary(rows, value).unsqueeze(1)  # (b, 1, dv)
        base = x if self.context is None else self.context(x)
        return add_rows(base, self._update(pairwise, unary))

    def whiten(
        self, query: Float[Tensor, "b n d"], key: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Queries and keys as they enter the product."""
        whitening = self.config.whitening
        if whitening == "none":
            return query, key
        query_axes = {"positions": (1,), "image": (1, 2), "mixed": (2,)}[whitening]
        key_axes = (1, 2) if whitening == "image" else (1,)
        return query - query.mean(query_axes, keepdim=True), key - key.mean(key_axes, keepdim=True)

    def _update(self, pairwise: Tensor, unary: Tensor | None) -> Tensor:
        if self.gate is not None:
            gated: Tensor = self.gate(pairwise)
            return gated if unary is None else gated + unary
        if unary is None:
            return self._project(pairwise)
        if self.config.output == "project_apart":
            if self.training and self.config.norm == "batch" and len(unary) == 1:
                raise ConfigError(
                    "with `output` = `project_apart` the batch norm of `Disentangled` sees one unary row for each "
                    "image, and there is one image",
                    "train with two or more images in a batch, or take `output` = `project`",
                )
            return self._project(pairwise) + self._project(unary)
        return self._project(pairwise + unary)

    def _project(self, rows: Tensor) -> Tensor:
        assert self.output is not None
        projected = self.output(rows)  # (b, n or 1, c)
        normed: Tensor = self.norm(projected.flatten(0, 1))
        return normed.view(projected.shape)

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"
