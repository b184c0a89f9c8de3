"""Point-wise spatial attention (PSANet): maps over all positions that a convolution predicts, in two directions."""

from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.row_transform import RowTransform
from nlprobe.blocks.rows import to_map, to_rows
from nlprobe.blocks.settings import (
    BlockConfig,
    check_choice,
    check_positive_integer,
    check_positive_number,
    check_switch,
)
from nlprobe.errors import ConfigError

Branches = Literal["both", "collect", "distribute"]
Direction = Literal["collect", "distribute"]
PointWiseFusion = Literal["none", "add"]
Alignment = Literal["corners", "parity"]


@dataclass(frozen=True)
class PointWiseConfig(BlockConfig):
    """Settings of a `PointWise` block; the defaults are those of PSANet's second release (465 x 465 crops, stride 8).

    Attributes:
        mask_height: Height of the mask that every position predicts, in positions of the shrunken map. With 2 h − 1 it
            reaches everything from everywhere. Where it does not reach, the logit is 0, which is no −∞: such sources
            have the weight exp(0)/Z. What reaches beyond the image is not used. Images of any size are taken.
        mask_width: Its width, likewise. The position itself is entry (mask − 1) // 2.
        reduction: Inner width max(C // reduction, 1) of the branches; 2048 to 512 in PSANet.
        branches: Both directions, or one of them.
        shrink: The branches work on a map of (H − 1) // shrink + 1 positions, bilinear with aligned corners.
        alignment: "corners", as `shrink` says, which is PSANet's; or "parity", which is mmsegmentation's: that where
            shrink divides neither H nor W, and otherwise H // shrink positions without aligned corners, back too.
        compact: Every position predicts one number for each position of the shrunken map, by its place and not by its
            offset: the mask must then have just the size of that map.
        normalisation: The weighted sums are divided by it; 1 in the released configurations, mask_height · mask_width
            where other code is given `None`.
        border: A border of zeros around the sums before `proj`, as mmsegmentation has it by a padding of its 1x1
            convolution; the result is resized to the input, so it is a little smaller within it.
        fusion: "none": z is what `proj` gives, and the head concatenates it with x, as published; "add": x + it.

    Raises:
        ConfigError: a value that the setting cannot take, or a border without shrinking.
    """

    block: ClassVar[str] = "point_wise"

    mask_height: int = 59
    mask_width: int = 59
    reduction: int = 4
    branches: Branches = "both"
    shrink: int = 2
    alignment: Alignment = "corners"
    compact: bool = False
    normalisation: float = 1.0
    border: bool = False
    fusion: PointWiseFusion = "none"

    def __post_init__(self) -> None:
        for setting in ("mask_height", "mask_width", "reduction", "shrink"):
            check_positive_integer(self.block, setting, getattr(self, setting))
        check_choice(self.block, "branches", self.branches, get_args(Branches))
        check_choice(self.block, "fusion", self.fusion, get_args(PointWiseFusion))
        check_choice(self.block, "alignment", self.alignment, get_args(Alignment))
        check_switch(self.block, "compact", self.compact)
        check_switch(self.block, "border", self.border)
        check_positive_number(self.block, "normalisation", self.normalisation)
        if self.border and self.shrink == 1:
            raise ConfigError(
                "a `border` without shrinking gives a map that is larger than the input, and nothing resizes it",
                "leave `border` off, or set `shrink` to 2 or more",
            )

    def aligned(self, height: int, width: int) -> bool:
        """Whether a map of that size is shrunken, and its sums are enlarged, with aligned corners."""
        return self.alignment == "corners" or bool(height % self.shrink and width % self.shrink)

    def inner_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of the shrunken map."""
        if self.aligned(height, width):
            return (height - 1) // self.shrink + 1, (width - 1) // self.shrink + 1
        return height // self.shrink, width // self.shrink

    def inner_width(self, channels: int) -> int:
        """Width of a branch."""
        return max(channels // self.reduction, 1)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The branches that there are."""
        return ("collect", "distribute") if self.branches == "both" else (self.branches,)


class SourceAttention(nn.Module):
    """y_i = sum_j softmax_j(s_ij) v_j for logits that are given, N x N of them by nature: j are the sources.

    The module is always called, so a forward hook sees the logits and values that enter the product. The softmax is
    computed in float32 at least. O(N² c) time; one map is kept for the backward.
    """

    def forward(self, logits: Float[Tensor, "b n n"], value: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The weighted sums."""
        device = value.device.type
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast and value.dtype != torch.float64 else value.dtype
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            return logits.to(wide).softmax(-1).to(dtype) @ value.to(dtype)


class PointWiseBranch(nn.Module):
    """One direction: each position predicts a mask, the masks make a map s_ij, and y_i = sum_j softmax_j(s_ij) v_j / F.

    Collect: the receiver i predicts how much it takes from the source j; distribute: the source j predicts how much it
    gives to the receiver i. The softmax runs over the sources in both. v_j is the branch's own input at j, the reduced
    features that the masks are predicted from, too.

    Args:
        width: Channels of the branch.
        direction: "collect" or "distribute".
        config: The block's settings.
    """

    def __init__(self, width: int, direction: Direction, config: PointWiseConfig) -> None:
        super().__init__()
        self.width = width
        self.direction = direction
        self.config = config
        self.hidden = RowTransform(width, width)
        self.mask = nn.Linear(width, config.mask_height * config.mask_width, bias=False)
        self.attention = SourceAttention()

    def reset_parameters(self) -> None:
        """Draw all weights anew, as torch draws convolutions and norms."""
        self.hidden.reset_parameters()
        self.mask.reset_parameters()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """y, of the shape of x."""
        rows, grid = to_rows(x), x.shape[2:]
        masks = self.mask(self.hidden(rows))  # (b, n, mask)
        logits = masks if self.config.compact else self._placed(masks, grid[0], grid[1])
        if self.direction == "distribute":
            logits = logits.mT
        return to_map(self.attention(logits, rows) / self.config.normalisation, grid)

    def _placed(self, masks: Float[Tensor, "b n m"], height: int, width: int) -> Float[Tensor, "b n n"]:
        """From masks by offset to maps by place: entry (y, x) → (v, u) is that of the offset (v − y, u − x)."""
        mask = (self.config.mask_height, self.config.mask_width)
        offsets = masks.unflatten(2, mask).unflatten(1, (height, width))  # (b, y, x, dy, dx)
        offsets = _by_place(offsets.transpose(2, 3))  # (b, y, dy, x, u)
        places = _by_place(offsets.permute(0, 3, 4, 1, 2))  # (b, x, u, y, v)
        return places.permute(0, 3, 1, 4, 2).reshape(masks.shape[0], height * width, height * width)

    def extra_repr(self) -> str:
        """Direction and width."""
        return f"{self.direction}, {self.width}"


def _by_place(offsets: Float[Tensor, "*batch s m"]) -> Float[Tensor, "*batch s s"]:
    """out[y, v] = offsets[y, v − y + centre], 0 where there is no such entry.

    The offsets −(s − 1) … s − 1 of all rows, one after another, hold out[y, v] at y (2 s − 1) + v − y + s − 1: read in
    rows of 2 s − 2 from s − 1 on, they stand in place.
    """
    size, length = offsets.shape[-2:]
    centre = (length - 1) // 2
    every = F.pad(offsets, (size - 1 - centre, size - 1 - (length - 1 - centre)))  # (…, s, 2 s − 1); negative: cropped
    if size == 1:
        return every
    skewed = every.flatten(-2).narrow(-1, size - 1, size * (2 * size - 2))
    return skewed.unflatten(-1, (size, 2 * size - 2))[..., :size]


class PointWise(nn.Module):
    """z = proj[y_collect, y_distribute], y_i = 1/F sum_j softmax_j(s_ij) v_j in each branch, with predicted s_ij.

    | here | paper (PSANet) | semseg `PSA` | mmsegmentation `PSAHead` |
    | --- | --- | --- | --- |
    | `reduce_collect`, `reduce_distribute` | the first 1x1 of each branch | `reduce`, `reduce_p` | the same |
    | `collect.hidden`, `collect.mask` | the over-complete map H^c | `attention` | the same |
    | `distribute.hidden`, `distribute.mask` | H^d | `attention_p` | the same |
    | placing by offset | attention map A^c, A^d | `psa_mask`, types 0 and 1 | `PSAMask` |
    | `proj` | the last 1x1 | `proj` | `proj`, with `border` |
    | `branches`, `shrink`, `normalisation` | - | `psa_type`, `shrink_factor`, `normalization_factor` | the same |

    The 1x1 convolutions of those are linear layers on rows here. `collect` and `distribute` are modules of their own:
    each is a site, its input the reduced and shrunken features and its output the y of the branch. With both branches
    the compact variant of the two codes is the same, and that of a single branch is semseg's: mmsegmentation transposes
    the other one. The paper's maps without a softmax are not offered.

    The logits are N x N by nature, N positions of the shrunken map: O(N²) memory, one map a branch kept for the
    backward; the masks they are placed from have N · mask_height · mask_width numbers for the time being.

    Args:
        channels: C.
        dimension: Spatial dimensions; 2 is the only choice.
        config: All other settings.

    Raises:
        ConfigError: another dimension than 2, an input of another shape than (B, C, H, W), or for `compact` of another
            size than the mask.
    """

    def __init__(self, channels: int, dimension: int = 2, config: PointWiseConfig = PointWiseConfig()) -> None:
        super().__init__()
        check_positive_integer("point_wise", "channels", channels)
        if dimension != 2:
            raise ConfigError(
                f"`dimension` of the block `point_wise` is `{dimension!r}`", "it must be 2: masks have two axes"
            )
        self.channels = channels
        self.config = config
        width = config.inner_width(channels)
        for direction in config.directions:
            self.add_module(f"reduce_{direction}", RowTransform(channels, width))
            self.add_module(direction, PointWiseBranch(width, direction, config))
        self.proj = RowTransform(width * len(config.directions), channels)

    def reset_parameters(self) -> None:
        """Draw all weights anew, as torch draws convolutions and norms."""
        for part in self.children():
            part.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """z, of the shape of x."""
        grid = self._inner_grid(x)
        rows = to_rows(x)
        sums = [self._branch(direction, rows, x.shape[2:], grid) for direction in self.config.directions]
        joined = torch.cat(sums, 1)
        if self.config.border:
            joined = F.pad(joined, (1, 1, 1, 1))
        z = to_map(self.proj(to_rows(joined)), joined.shape[2:])
        if self.config.shrink != 1:
            aligned = self.config.aligned(*x.shape[2:])
            z = F.interpolate(z, x.shape[2:], mode="bilinear", align_corners=aligned)
        return x + z if self.config.fusion == "add" else z

    def _branch(self, direction: Direction, rows: Tensor, outer: torch.Size, inner: tuple[int, int]) -> Tensor:
        """The branch's sums on the shrunken map, (b, width, h, w)."""
        reduced = to_map(self.get_submodule(f"reduce_{direction}")(rows), outer)
        if self.config.shrink != 1:
            aligned = self.config.aligned(*outer)
            reduced = F.interpolate(reduced, inner, mode="bilinear", align_corners=aligned)
        sums: Tensor = self.get_submodule(direction)(reduced)
        return sums

    def _inner_grid(self, x: Tensor) -> tuple[int, int]:
        shape = tuple(x.shape)
        if len(shape) != 4 or shape[1] != self.channels:
            raise ConfigError(
                f"`PointWise` of {self.channels} channels got an input of shape `{shape}`",
                f"it takes (B, {self.channels}, H, W)",
            )
        height, width = self.config.inner_size(*shape[2:])
        mask = (self.config.mask_height, self.config.mask_width)
        if self.config.compact and mask != (height, width):
            raise ConfigError(
                f"a compact `PointWise` with masks of {mask[0]}x{mask[1]} got an input of shape `{shape}`, whose "
                f"shrunken map is {height}x{width}",
                f"give inputs that shrink to {mask[0]}x{mask[1]}, or leave `compact` off",
            )
        return height, width

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"
