"""The map that several criss-cross steps make together, A = A_R ··· A_2 A_1, streamed over blocks of queries."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from nlprobe.stats.cross_maps import CrossRows, cross_weights, joined_statistics, shared_part
from nlprobe.stats.results import MapStatistics
from nlprobe.stats.streaming import block_elements, kernel, require_finite, spans

_SMALLEST = 1e-300
"""A weight whose logarithm is still a number; 0 times it is 0."""


@kernel
def composed_map_statistics(
    query: Float[Tensor, "steps b h w d"],
    key: Float[Tensor, "steps b h w d"],
    counted: Bool[Tensor, "b h w"] | None = None,
) -> MapStatistics:
    """Statistics of the rows of A = A_R ··· A_2 A_1, over all N positions, which two crosses reach.

    A_r is the N×N map of step r, ω on the crosses and zero elsewhere. With W_v and γ left aside, A is how the values
    of the block's input reach its output by way of all R steps; the residual paths (x itself, and shorter products of
    the steps) are left out. Rows sum to 1.

    In float64, from residuals of the flat row: with c_i = a_i − 1/N, p_i = c_i/‖a_i‖, α_i = √(1 − ‖p_i‖²),
    avg_dist = ½ (mean ‖p_i‖² − ‖mean p_i‖² + var α_i). The first two steps cost O(N²) in all, because a cross has only
    H + W − 1 entries, any further one O(N² (H + W)); memory O(R N (H + W)) and one block of rows.

    Args:
        query: Queries of each step, in the order in which the steps are applied; two steps or more.
        key: Keys of each step.
        counted: Which queries' rows are meant; all by default, and at least one of each image.

    Raises:
        NlprobeError: query or key holds NaN or infinity.
    """
    require_finite(query=query, key=key)
    counted = query.new_ones(query.shape[1:4], dtype=torch.bool) if counted is None else counted
    found = [_statistics(maps, which) for maps, which in zip(_images(query, key), counted.flatten(1), strict=True)]
    return joined_statistics(found, query)


@kernel
def composed_rows(
    query: Float[Tensor, "steps b h w d"], key: Float[Tensor, "steps b h w d"], rows: Int64[Tensor, " r"]
) -> Float64[Tensor, "b r n"]:
    """Rows of A = A_R ··· A_1 (see `composed_map_statistics`) for chosen queries. O(r N) and O(r N (H + W)) from R = 3.

    Args:
        query: Queries of each step, in the order in which the steps are applied; two steps or more.
        key: Keys of each step.
        rows: Indices of queries, in row-major order.
    """
    width = query.shape[3]
    places = [divmod(int(row), width) for row in rows]
    return torch.stack(
        [torch.cat([_block(maps, y, slice(x, x + 1)).flatten(1) for y, x in places]) for maps in _images(query, key)]
    )


@kernel
def composed_mean_map(
    query: Float[Tensor, "steps b h w d"],
    key: Float[Tensor, "steps b h w d"],
    counted: Bool[Tensor, "b h w"] | None = None,
) -> Float64[Tensor, "b n"]:
    """The mean row of A = A_R ··· A_1, by applying each step to the mean row of those after it. O(R N (H + W) d).

    Args:
        query: Queries of each step, in the order in which the steps are applied; one step or more.
        key: Keys of each step.
        counted: Which queries' rows are meant; all by default.
    """
    means = []
    counted = query.new_ones(query.shape[1:4], dtype=torch.bool) if counted is None else counted
    for maps, which in zip(_images(query, key), counted, strict=True):
        mean = which.to(maps[0].row) / which.sum()
        for step in reversed(maps):
            mean = step.weighted(mean)
        means.append(mean.flatten())
    return torch.stack(means)


def _images(query: Tensor, key: Tensor) -> Iterator[list[CrossRows]]:
    """Image by image, the maps of each step."""
    for queries, keys in zip(query.unbind(1), key.unbind(1), strict=True):
        yield [cross_weights(*pair) for pair in zip(queries, keys, strict=True)]


def _statistics(maps: Sequence[CrossRows], counted: Tensor) -> dict[str, Tensor]:
    height, width = maps[0].row.shape[:2]
    n, rows_counted = height * width, counted.sum()
    squares, nats, apart = (maps[0].row.new_empty(n) for _ in range(3))
    sums = maps[0].row.new_zeros(2, n)  # Σ c_i/‖a_i‖ and Σ c_i
    for rows, block in _blocks(maps):
        nats[rows] = -block.clamp_min(_SMALLEST).log_().mul_(block).sum(-1)
        uneven = block.sub_(1 / n)
        residual = torch.linalg.vector_norm(uneven, dim=-1).square()
        squares[rows] = residual + (2 * uneven.sum(-1) + 1) / n
        apart[rows] = residual
        inverse = squares[rows].rsqrt()
        sums += torch.stack((inverse, torch.ones_like(inverse))).mul_(counted[rows]) @ uneven
    squares, nats, apart = squares[counted], nats[counted], apart[counted]
    parts = apart / squares  # ‖p_i‖²
    along = (1 - parts).clamp_min(0).sqrt()
    mean = sums / rows_counted
    distance = 0.5 * (parts.mean() - mean[0].square().sum() + along.var(correction=0))
    return {
        "avg_dist": distance.clamp_min(0),
        "zero_rows": torch.zeros_like(distance, dtype=torch.int64),
        "entropy": nats.mean() / math.log(n) if n > 1 else torch.full_like(distance, math.nan),
        "n_eff": squares.reciprocal().mean(),
        "shared": shared_part(mean[1].square().sum(), apart.mean(), n),
    }


def _blocks(maps: Sequence[CrossRows]) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows (r, n), each of queries on one row of the image."""
    height, width = maps[0].row.shape[:2]
    step = max(1, block_elements(maps[0].row.device) // (height * width))
    for y in range(height):
        for x in spans(width, step):
            yield slice(y * width + x.start, y * width + x.stop), _block(maps, y, x).flatten(1)


def _block(maps: Sequence[CrossRows], y: int, x: slice) -> Float64[Tensor, "r h w"]:
    """Rows of A for the queries (y, x), for a range of x."""
    *before, first, last = maps
    block = _two_steps(last, first, y, x)
    for step in reversed(before):
        block = _one_more(block, step)
    return block


def _two_steps(last: CrossRows, first: CrossRows, y: int, x: slice) -> Float64[Tensor, "r h w"]:
    """Rows of A_last A_first: a position off the cross is reached round two corners, one on it along the arm.

    With p the row of A_last, the entry at (v, u) is p(y, u)·first((y, u) → (v, u)) + p(v, x)·first((v, x) → (v, u)),
    and in addition, on the column u = x, Σ_v' p(v', x)·first((v', x) → (v, x)), and on the row v = y,
    Σ_u' p(y, u')·first((y, u') → (y, u)).
    """
    level, upright = last.row[y, x], last.column[x, y]  # p(y, ·): (r, w); p(·, x): (r, h), without the position itself
    block = level.unsqueeze(1) * first.column[:, y].mT  # (r, 1, w) * (h, w)
    block.addcmul_(upright.unsqueeze(2), first.row[:, x].transpose(0, 1))  # (r, h, 1) * (r, h, w)
    block[:, y] += level @ first.row[y]
    at = torch.arange(block.shape[0], device=block.device)
    block[at, :, x.start + at] += (upright.unsqueeze(1) @ first.column[x]).squeeze(1)
    return block


def _one_more(block: Float64[Tensor, "r h w"], step: CrossRows) -> Float64[Tensor, "r h w"]:
    """The rows times a further map."""
    along_columns = block.permute(2, 0, 1) @ step.column  # (w, r, h)
    along_rows = block.transpose(0, 1) @ step.row  # (h, r, w)
    return along_columns.permute(1, 2, 0) + along_rows.transpose(0, 1)
