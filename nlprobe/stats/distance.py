"""The average cosine distance of a set of rows, and what else one pass over the rows gives."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nlprobe.stats.streaming import BLOCK_ELEMENTS, kernel, require_finite, spans, wide

REFINE_BELOW = 1e-8
"""Where a distance, or the ratio spread/energy, is smaller, `1 − ‖mean‖²` has lost digits in float64: shift and redo."""


@dataclass(frozen=True)
class RowStatistics:
    """What one pass over the rows v_i gives, for each set of rows.

    Attributes:
        avg_dist: 1/N² Σ_i Σ_j (1 − cos(v_i, v_j))/2 over the rows that are not zero; NaN where all are.
        zero_rows: How many rows are zero and so have no direction.
        mean: mean_i v_i.
        energy: mean_i ‖v_i‖².
        spread: mean_i ‖v_i − mean‖², from the residuals; √(spread/energy) is `mean_map_error`.
    """

    avg_dist: Float64[Tensor, "*batch"]
    zero_rows: Int64[Tensor, "*batch"]
    mean: Float64[Tensor, "*batch c"]
    energy: Float64[Tensor, "*batch"]
    spread: Float64[Tensor, "*batch"]


def avg_dist(v: Float[Tensor, "*batch n c"]) -> Float64[Tensor, "*batch"]:
    """Average cosine distance between the rows of v, every row with every row and itself (section 3.3).

    avg_dist = 1/N² Σ_i Σ_j (1 − cos(v_i, v_j))/2 = ½ mean_i ‖v̂_i − m‖², v̂_i = v_i/‖v_i‖, m = mean_i v̂_i.

    O(N·C), streamed in blocks that fit the cache, in float64: the relative error is below 1e-5 down to a distance of
    1e-9 and beyond. Rows may be contiguous, or the transposed view of a (C, N) tensor (`x.flatten(2).mT`), which is not
    copied. Zero rows have no direction and are left out; if all rows are zero the distance is NaN.

    Args:
        v: Sets of N rows with C columns; half precision is widened first.

    Returns:
        One distance for each set, between 0 and 1.

    Raises:
        NlprobeError: v holds NaN or infinity.
    """
    return row_statistics(v).avg_dist


@kernel
def row_statistics(v: Float[Tensor, "*batch n c"]) -> RowStatistics:
    """The average cosine distance of the rows of v, with their mean, energy and spread: see `RowStatistics`.

    One pass in float64; a second one, over rows shifted by the means that the first found, only for sets whose distance
    or spread/energy is so small (`REFINE_BELOW`) that the first has lost digits. O(N·C), memory O(C).

    Args:
        v: Sets of N rows with C columns, in any layout; half precision is widened first.

    Raises:
        NlprobeError: v holds NaN or infinity.
    """
    sets = _as_sets(v)
    scale = _scale(sets)
    moments = _moments(sets, scale)
    if not bool(torch.isfinite(moments.energy).all()):
        require_finite(v=v)
    distance, spread = moments.distance(), moments.spread()
    small = (distance < REFINE_BELOW) | (spread < REFINE_BELOW * moments.energy)
    if bool(small.any()):
        residual_distance, residual_spread = _residuals(sets, scale, moments, small)
        distance = torch.where(small, residual_distance, distance)
        spread = torch.where(small, residual_spread, spread)
    batch = v.shape[:-2]
    return RowStatistics(
        avg_dist=distance.reshape(batch),
        zero_rows=(sets.shape[2] - moments.count).long().reshape(batch),
        mean=(moments.mean * scale.unsqueeze(-1)).reshape(*batch, v.shape[-1]),
        energy=(moments.energy * scale.square()).reshape(batch),
        spread=(spread * scale.square()).reshape(batch),
    )


def _as_sets(v: Tensor) -> Tensor:
    """View (*batch, n, c) as (a, h, n, c), without copying where the layout is one that models produce.

    h > 1 where the last batch dimension (heads, transposed to the front) does not merge with those before it.
    """
    n, c = v.shape[-2:]
    if v.numel() == 0:
        return v.reshape(v.shape[:-2].numel(), 1, n, c)
    try:
        return v.view(-1, 1, n, c)
    except RuntimeError:
        return v.reshape(-1, *v.shape[-3:])


def _scale(sets: Tensor) -> Tensor:
    """What each set is divided by, (a, h): squares of float64 input over- and underflow unless its size is about 1."""
    ones = wide(sets.new_ones(sets.shape[:2]))
    if sets.dtype != torch.float64 or sets.numel() == 0:
        return ones
    largest = torch.maximum(sets.amax((-2, -1)), -sets.amin((-2, -1)))
    return torch.where(largest > 0, largest, ones)


@dataclass(frozen=True)
class _Block:
    """The same range of r rows of g sets, in float64.

    Rows of float64 input are divided by their largest entry; `size` puts that back, relative to the set's scale.
    """

    rows: Tensor  # (g, r, c)
    inverse_norm: Tensor  # (g, r), 0 for zero rows
    size: Tensor  # (g, r)
    energy: Tensor  # (g,)


def _blocks(sets: Tensor, scale: Tensor, wanted: Tensor | None = None) -> Iterator[tuple[tuple[slice, slice], _Block]]:
    """Walk over the sets in blocks that fit the cache: several small sets, or a range of rows of one large set."""
    images, heads, n, c = sets.shape
    transposed = sets.stride(-2) == 1 and sets.stride(-1) != 1
    buffer = scale.new_empty(max(BLOCK_ELEMENTS, c))
    fitting = max(1, BLOCK_ELEMENTS // max(1, n * c))
    for image_span in spans(images, fitting // max(1, heads)):
        for head_span in spans(heads, fitting):
            at = image_span, head_span
            if wanted is not None and not bool(wanted[at].any()):
                continue
            for row_span in spans(n, BLOCK_ELEMENTS // max(1, c)):
                source = sets[image_span, head_span, row_span]
                a, h, r, _ = source.shape
                flat = buffer[: source.numel()]
                rows = flat.view(a, h, c, r).mT if transposed else flat.view(a, h, r, c)
                rows.copy_(source)
                yield at, _block(rows.flatten(0, 1), sets.dtype, scale[at].reshape(-1, 1))


def _block(rows: Tensor, dtype: torch.dtype, scale: Tensor) -> _Block:
    if dtype == torch.float64:
        largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=-1)
        rows.div_(torch.where(largest > 0, largest, 1.0).unsqueeze(-1))
        size = largest / scale
    else:
        size = rows.new_ones(rows.shape[:2])
    norm = torch.linalg.vector_norm(rows, dim=-1)
    inverse = torch.where(norm > 0, norm.reciprocal(), 0.0)
    return _Block(rows, inverse, size, (norm * size).square().sum(-1))


@dataclass(frozen=True)
class _Moments:
    """Means over the rows of each set: of the unit rows, of the rows and of their squared norms; and the rows counted."""

    direction: Tensor  # (a, h, c)
    mean: Tensor  # (a, h, c)
    energy: Tensor  # (a, h)
    count: Tensor  # (a, h): rows that are not zero

    def distance(self) -> Tensor:
        return (0.5 * (1 - self.direction.square().sum(-1))).clamp_min(0)

    def spread(self) -> Tensor:
        return (self.energy - self.mean.square().sum(-1)).clamp_min(0)


def _moments(sets: Tensor, scale: Tensor) -> _Moments:
    sums = scale.new_zeros(*scale.shape, 2, sets.shape[-1])
    energy, count = torch.zeros_like(scale), torch.zeros_like(scale)
    for at, block in _blocks(sets, scale):
        weights = torch.stack((block.inverse_norm, block.size), dim=-2)
        sums[at] += (weights @ block.rows).view_as(sums[at])
        energy[at] += block.energy.view_as(energy[at])
        count[at] += (block.inverse_norm > 0).sum(-1).view_as(count[at])
    n = sets.shape[2]
    return _Moments(sums[:, :, 0] / count.unsqueeze(-1), sums[:, :, 1] / n, energy / n, count)


def _residuals(sets: Tensor, scale: Tensor, moments: _Moments, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and spread of the wanted sets from v̂_i − m and v_i − mean: nothing cancels.

    m and the mean carry rounding errors of their own; ‖mean of the residuals‖² takes them out again.
    """
    squares = scale.new_zeros(*scale.shape, 2)
    sums = scale.new_zeros(*scale.shape, 2, sets.shape[-1])
    for at, block in _blocks(sets, scale, wanted):
        present = (block.inverse_norm > 0).to(block.rows.dtype)
        for which, (weight, presence, centre) in enumerate(
            (
                (block.inverse_norm, present, moments.direction[at]),
                (block.size, torch.ones_like(present), moments.mean[at]),
            )
        ):
            centre = centre.flatten(0, 1).unsqueeze(-2)
            residual = torch.mul(block.rows, weight.unsqueeze(-1)).addcmul_(presence.unsqueeze(-1), centre, value=-1)
            squares[(*at, which)] += residual.square().sum((-2, -1)).view_as(squares[(*at, which)])
            sums[(*at, which)] += residual.sum(-2).view_as(sums[(*at, which)])
    rows = torch.stack((moments.count, torch.full_like(moments.count, sets.shape[2])), dim=-1)
    variance = squares / rows - (sums / rows.unsqueeze(-1)).square().sum(-1)
    return 0.5 * variance[..., 0].clamp_min(0), variance[..., 1].clamp_min(0)
