"""The average cosine distance of a set of rows, and what else the same pass over the rows gives."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nlprobe.stats.streaming import UNDERFLOW, block_elements, kernel, require_finite, spans, wide

REFINE_BELOW = 1e-8
"""Where a distance or spread/energy is smaller, `1 − ‖mean‖²` has lost digits even in float64: redo from residuals."""

SINGLE_DOWN_TO = 0.05
"""Smallest distance, and spread/energy, for which one pass in float32 keeps 1e-5 even if all its rounding adds up."""

_MANY_ROWS = 1024  # from here on a float32 pass saves more than looking at a sample costs
_MANY_NUMBERS = 1 << 18  # in several short sets, from where on trying a float32 pass costs less than it mostly saves
_SAMPLED_ROWS = 32

FEW_SETS = 16
"""Sets of several heads up to which each is taken by itself, as it lies in memory."""

_SMALLEST_NORM = 1e-300
"""Any row that is not zero is longer; the reciprocal, times a zero row, is still zero."""


@dataclass(frozen=True)
class RowStatistics:
    """What one pass over the rows v_i gives, for each set of rows.

    Attributes:
        avg_dist: 1/N² Σ_i Σ_j (1 − cos(v_i, v_j))/2 over the rows that are not zero; NaN where all are.
        zero_rows: How many rows are zero and so have no direction.
        direction: mean_i v_i/‖v_i‖ over the rows that are not zero; NaN where all are.
        mean: mean_i v_i.
        energy: mean_i ‖v_i‖².
        spread: mean_i ‖v_i − mean‖², from the residuals where it is small; √(spread/energy) is `mean_map_error`.
    """

    avg_dist: Float64[Tensor, "*batch"]
    zero_rows: Int64[Tensor, "*batch"]
    direction: Float64[Tensor, "*batch c"]
    mean: Float64[Tensor, "*batch c"]
    energy: Float64[Tensor, "*batch"]
    spread: Float64[Tensor, "*batch"]


@kernel
def avg_dist(v: Float[Tensor, "*batch n c"]) -> Float64[Tensor, "*batch"]:
    """Average cosine distance between the rows of v, every row with every row and itself (section 3.2.2).

    avg_dist = 1/N² Σ_i Σ_j (1 − cos(v_i, v_j))/2 = ½ (1 − ‖m‖²) = ½ mean_i ‖v̂_i − m‖², v̂_i = v_i/‖v_i‖, m = mean_i v̂_i.

    O(N·C) and O(N + C) memory, in blocks that fit the cache, with sums in float64: by the second form, in float32 where
    the distance is large (`SINGLE_DOWN_TO`) and in float64 where it is not, and by the third where it is below
    `REFINE_BELOW`. The relative error stays under 1e-5 down to a distance of 1e-9 and beyond. Rows may be contiguous,
    or the transposed view of a (C, N) tensor (`x.flatten(2).mT`), which is not copied. Zero rows have no direction and
    are left out; if all rows are zero the distance is NaN.

    Args:
        v: Sets of N rows with C columns; half precision is widened first.

    Returns:
        One distance for each set, between 0 and 1.

    Raises:
        NlprobeError: v holds NaN or infinity.
    """
    sets = _as_sets(v)
    (moments,) = _moments(sets, with_rows=False)
    _refuse_non_finite(v, moments)
    return _distance(sets, moments).reshape(v.shape[:-2])


@kernel
def row_statistics(v: Float[Tensor, "*batch n c"]) -> RowStatistics:
    """The average cosine distance of the rows of v, with their mean, energy and spread: see `RowStatistics`.

    As `avg_dist`, whose pass gives the other sums too; the spread is redone from residuals where spread/energy is below
    `REFINE_BELOW`. O(N·C), memory O(N + C).

    Args:
        v: Sets of N rows with C columns, in any layout; half precision is widened first.

    Raises:
        NlprobeError: v holds NaN or infinity.
    """
    sets = _as_sets(v)
    (moments,) = _moments(sets, with_rows=True)
    _refuse_non_finite(v, moments)
    return _statistics(v, sets, moments)


@kernel
def row_statistics_beside_prefix(v: Float[Tensor, "*batch n c"], prefix: int) -> list[RowStatistics]:
    """`row_statistics` of all rows, and of those after the first `prefix`, from the same pass.

    Args:
        v: Sets of rows.
        prefix: How many of the first rows are left out the second time; fewer than there are rows.

    Raises:
        NlprobeError: v holds NaN or infinity.
    """
    sets = _as_sets(v)
    everything, rest = _moments(sets, with_rows=True, prefix=prefix)
    _refuse_non_finite(v, everything)
    return [_statistics(v, sets, everything), _statistics(v, sets[:, :, prefix:], rest)]


def _statistics(v: Tensor, sets: Tensor, moments: "_Moments") -> RowStatistics:
    batch, square = v.shape[:-2], moments.scale.square()
    return RowStatistics(
        avg_dist=_distance(sets, moments).reshape(batch),
        zero_rows=(~moments.present).sum(-1).reshape(batch),
        direction=moments.direction.reshape(*batch, v.shape[-1]),
        mean=(moments.mean * moments.scale.unsqueeze(-1)).reshape(*batch, v.shape[-1]),
        energy=(moments.energy * square).reshape(batch),
        spread=(_spread(sets, moments) * square).reshape(batch),
    )


@dataclass(frozen=True)
class _Moments:
    """Sums over the n rows of each of s sets, in float64.

    Rows of float64 input are divided by their largest entry, because squares of them over- and underflow; `size` is
    that entry relative to `scale`, the largest of the set. All other input has size and scale 1.
    """

    scale: Tensor  # (s,)
    size: Tensor  # (s, n)
    norms: Tensor  # (s, n), of the rows so divided, and no smaller than _SMALLEST_NORM
    direction: Tensor  # (s, c): mean unit row of the rows that are not zero
    mean: Tensor  # (s, c), divided by scale; of no meaning unless asked for
    energy: Tensor  # (s,), divided by scale²

    @property
    def present(self) -> Tensor:
        return self.norms > _SMALLEST_NORM

    def distance(self) -> Tensor:
        return (0.5 * (1 - self.direction.square().sum(-1))).clamp_min(0)

    def spread(self) -> Tensor:
        return (self.energy - self.mean.square().sum(-1)).clamp_min(0)


def _as_sets(v: Tensor) -> Tensor:
    """View (*batch, n, c) as (a, h, n, c), without copying where the layout is one that models produce.

    h > 1 where the last batch dimension (heads, transposed to the front) does not merge with those before it. The set
    (a, h) has the index a·h_total + h.
    """
    n, c = v.shape[-2:]
    if v.numel() == 0:
        return v.reshape(v.shape[:-2].numel(), 1, n, c)
    try:
        return v.view(-1, 1, n, c)
    except RuntimeError:
        return v.reshape(-1, *v.shape[-3:])


def _blocks(
    sets: Tensor, wanted: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Walk over the sets in blocks (g, r, c) of `dtype` that fit the cache, in the layout that the sets have.

    A block is several small sets, or a range of rows of one large set; which sets and which rows come first. With it
    comes spare room of the same shape and layout, because memory taken anew for each block is cleared each time by the
    operating system. The next block overwrites both; a block that needs no conversion is the input itself.
    """
    images, heads, n, c = sets.shape
    transposed = sets.stride(-2) == 1 and sets.stride(-1) != 1
    room = block_elements(sets.device) * torch.float64.itemsize // dtype.itemsize
    buffers = wide(sets.new_empty(0)).new_empty(2, max(room, c), dtype=dtype)
    fitting = max(1, room // max(1, n * c))
    # the heads of one image lie evenly in memory, and need no copy
    evenly = sets.dtype == dtype != torch.float64 and heads > 1 and images <= FEW_SETS
    for image_span in spans(images, 1 if evenly else fitting // max(1, heads)):
        for head_span in spans(heads, fitting):
            first = image_span.start * heads + head_span.start
            at = slice(first, first + (image_span.stop - image_span.start) * (head_span.stop - head_span.start))
            if wanted is not None and not bool(wanted[at].any()):
                continue
            for row_span in spans(n, room // max(1, c)):
                source = sets[image_span, head_span, row_span]
                shape = source.mT.shape if transposed else source.shape
                rows, spare = (buffer[: source.numel()].view(shape) for buffer in buffers)
                if transposed:
                    rows, spare = rows.mT, spare.mT
                if source.dtype == dtype != torch.float64 and 1 in source.shape[:2]:
                    rows = source
                else:
                    rows.copy_(source)
                yield at, row_span, rows.flatten(0, 1), spare.flatten(0, 1)


def _moments(sets: Tensor, with_rows: bool, prefix: int = 0) -> list[_Moments]:
    """Of all rows, and with a prefix of those after it."""
    many = sets.shape[2] >= _MANY_ROWS
    if sets.dtype == torch.float32 and (many or sets.numel() >= _MANY_NUMBERS) and sets.device.type != "mps":
        sample = sets[:, :, :: max(1, sets.shape[2] // _SAMPLED_ROWS)]
        if not many or bool((_sums(sample, False, torch.float64)[0].distance() > SINGLE_DOWN_TO).all()):
            found = _sums(sets, with_rows, torch.float32, prefix)
            good = found[0].norms.amin(-1) > UNDERFLOW**0.5
            for one in found:
                good &= (one.distance() >= SINGLE_DOWN_TO) & torch.isfinite(one.energy)
                if with_rows:
                    good &= one.spread() >= SINGLE_DOWN_TO * one.energy
            if bool(good.all()):
                return found
    return _sums(sets, with_rows, torch.float64, prefix)


def _sums(sets: Tensor, with_rows: bool, dtype: torch.dtype, prefix: int = 0) -> list[_Moments]:
    double = sets.dtype == torch.float64
    n, c = sets.shape[-2:]
    size = wide(sets.new_ones(sets.shape[:2].numel(), n))
    scale = _largest(sets) if double else wide(sets.new_ones(size.shape[0]))
    norms = torch.empty_like(size, dtype=dtype)
    # of the rows after the prefix, and of the prefix
    parts = 2 if prefix else 1
    weights = norms.new_ones(size.shape[0], parts, 1 + with_rows, n)
    weights[:, 0, :, :prefix] = 0
    weights[:, 1:, :, prefix:] = 0
    sums = size.new_zeros(size.shape[0], parts, 1 + with_rows, c)
    for at, row_span, rows, spare in _blocks(sets, dtype=dtype):
        weight, norm = weights[at, ..., row_span], norms[at, row_span]
        if double:
            size[at, row_span] = _divide_by_largest(rows) / scale[at].unsqueeze(-1)
            weight[:, :, 1:].mul_(size[at, None, None, row_span])
        _norms(rows, spare, norm)
        weight[:, :, 0].mul_(norm.reciprocal().unsqueeze(1))
        sums[at].add_((weight.flatten(1, 2) @ rows).view_as(sums[at]))
    norms = norms.double()
    everything = _of_rows(scale, size, norms, sums.sum(1) if prefix else sums[:, 0])
    return [everything, _of_rows(scale, size[:, prefix:], norms[:, prefix:], sums[:, 0])] if prefix else [everything]


def _of_rows(scale: Tensor, size: Tensor, norms: Tensor, sums: Tensor) -> _Moments:
    n = norms.shape[-1]
    count = (norms > _SMALLEST_NORM).sum(-1, keepdim=True)
    energy = (norms * size).square().sum(-1) / n
    return _Moments(scale, size, norms, direction=sums[:, 0] / count, mean=sums[:, -1] / n, energy=energy)


def _distance(sets: Tensor, moments: _Moments) -> Tensor:
    distance = moments.distance()
    small = distance < REFINE_BELOW
    if not bool(small.any()):
        return distance
    present = moments.present.to(distance.dtype)
    residual = _variance(sets, moments.norms.reciprocal(), present, moments.direction, small)
    return torch.where(small, 0.5 * residual, distance)


def _spread(sets: Tensor, moments: _Moments) -> Tensor:
    spread = moments.spread()
    small = spread < REFINE_BELOW * moments.energy
    if not bool(small.any()):
        return spread
    everything = torch.ones_like(moments.size)
    return torch.where(small, _variance(sets, moments.size, everything, moments.mean, small), spread)


def _variance(sets: Tensor, weight: Tensor, present: Tensor, centre: Tensor, wanted: Tensor) -> Tensor:
    """Variance of weight_i v_i over the rows that are present, from its residuals to an approximate mean.

    mean ‖weight_i v_i − centre‖² − ‖mean (weight_i v_i − centre)‖²: the second term removes the centre's rounding.
    """
    squares, sums = torch.zeros_like(weight), torch.zeros_like(centre).unsqueeze(1)
    origin = -centre.unsqueeze(1)
    for at, row_span, rows, spare in _blocks(sets, wanted):
        if sets.dtype == torch.float64:
            _divide_by_largest(rows)
        residual = torch.addcmul(origin[at], rows, weight[at, row_span].unsqueeze(-1), out=spare)
        _norms(residual, rows, squares[at, row_span])
        sums[at].baddbmm_(present[at, row_span].unsqueeze(1), residual)
    count = present.sum(-1)
    mean_square = (squares.square() * present).sum(-1) / count
    return (mean_square - (sums.squeeze(1) / count.unsqueeze(-1)).square().sum(-1)).clamp_min(0)


def _norms(rows: Tensor, spare: Tensor, out: Tensor) -> None:
    """The norms of rows, no smaller than _SMALLEST_NORM, into `out`."""
    if rows.stride(-1) == 1:
        torch.linalg.vector_norm(rows, dim=-1, out=out)
    else:
        # a reduction over a strided dimension is not vectorised, a product with ones is
        torch.mul(rows, rows, out=spare)
        ones = rows.new_ones(1, 1, rows.shape[-1]).expand(rows.shape[0], -1, -1)
        torch.bmm(ones, spare.mT, out=out.unsqueeze(1))
        out.sqrt_()
    out.clamp_min_(_SMALLEST_NORM)


def _largest(sets: Tensor) -> Tensor:
    """Largest magnitude of each set, 1 where that is zero."""
    if sets.numel() == 0:
        return sets.new_ones(sets.shape[:2]).flatten()
    largest = torch.maximum(sets.amax((-2, -1)), -sets.amin((-2, -1))).flatten()
    return torch.where(largest > 0, largest, 1.0)


def _divide_by_largest(rows: Tensor) -> Tensor:
    """Divide each row in place by its largest magnitude, which is returned; a zero row stays."""
    largest = torch.maximum(rows.amax(-1), -rows.amin(-1))
    rows.div_(torch.where(largest > 0, largest, 1.0).unsqueeze(-1))
    return largest


def _refuse_non_finite(v: Tensor, moments: _Moments) -> None:
    # the sums of finite float32 cannot overflow here: one look at them tells, and the input is searched only then
    if not bool(torch.isfinite(moments.energy).all()):
        require_finite(v=v)
