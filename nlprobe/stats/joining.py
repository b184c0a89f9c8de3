"""Statistics of all rows from those of two parts of them: prefix tokens are a few rows beside the others."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.stats.distance import RowStatistics
from nlprobe.stats.streaming import kernel, wide


@kernel
def few_row_statistics(v: Float[Tensor, "*batch n c"]) -> RowStatistics:
    """`row_statistics` of a few rows, straight from the definitions in float64. O(N·C), memory of a float64 copy.

    Args:
        v: Sets of a few rows.
    """
    rows = wide(v)
    largest = rows.abs().amax(-1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1.0)
    norms = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    present = norms > 0
    count = present.sum(-2)
    units = torch.where(present, scaled / norms, 0.0)
    direction = units.sum(-2) / count
    spread = torch.where(present, units - direction.unsqueeze(-2), 0.0).square().sum((-2, -1)) / count.squeeze(-1)
    mean = rows.mean(-2)
    return RowStatistics(
        avg_dist=0.5 * spread,
        zero_rows=v.shape[-2] - count.squeeze(-1),
        direction=direction,
        mean=mean,
        energy=rows.square().sum(-1).mean(-1),
        spread=(rows - mean.unsqueeze(-2)).square().sum(-1).mean(-1),
    )


def joined_distance(
    distances: tuple[Tensor, Tensor], directions: tuple[Tensor, Tensor], counts: tuple[Tensor, Tensor]
) -> Tensor:
    """avg_dist of all rows from those of two parts: the variance of unit rows within the parts and between them.

    D = (n₁ D₁ + n₂ D₂)/n + ½ n₁ n₂/n² ‖m₁ − m₂‖², with m the parts' mean unit rows: nothing cancels.

    Args:
        distances: D₁ and D₂; NaN for a part without rows.
        directions: m₁ and m₂, with a last dimension more.
        counts: n₁ and n₂, rows that are not zero.
    """
    shares = joined_shares(counts)
    within = sum(
        torch.where(share > 0, share * distance, 0.0) for share, distance in zip(shares, distances, strict=True)
    )
    apart = (directions[0] - directions[1]).square().sum(-1)
    between = torch.where((shares[0] > 0) & (shares[1] > 0), shares[0] * shares[1] * apart, 0.0)
    return torch.where(counts[0] + counts[1] > 0, within + 0.5 * between, math.nan)


def joined_shares(counts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """n₁/n and n₂/n; 0 where there are no rows at all."""
    first, second = wide(counts[0]), wide(counts[1])
    total = (first + second).clamp_min(1)
    return first / total, second / total


def joined_rows(first: RowStatistics, second: RowStatistics, n_first: int, n_second: int) -> RowStatistics:
    """`row_statistics` of the rows of two parts together, without looking at them again. O(C).

    Args:
        first: Statistics of some rows.
        second: Statistics of the others.
        n_first: How many rows the first part has, zero rows included.
        n_second: The same of the second.
    """
    counts = (n_first - first.zero_rows, n_second - second.zero_rows)
    shares = joined_shares(counts)
    n = n_first + n_second
    parts = (n_first / n, n_second / n)
    apart = (first.mean - second.mean).square().sum(-1)
    directions = [
        torch.where((share > 0).unsqueeze(-1), share.unsqueeze(-1) * part.direction, 0.0)
        for share, part in zip(shares, (first, second), strict=True)
    ]
    return RowStatistics(
        avg_dist=joined_distance((first.avg_dist, second.avg_dist), (first.direction, second.direction), counts),
        zero_rows=first.zero_rows + second.zero_rows,
        direction=torch.where((counts[0] + counts[1] > 0).unsqueeze(-1), directions[0] + directions[1], math.nan),
        mean=parts[0] * first.mean + parts[1] * second.mean,
        energy=parts[0] * first.energy + parts[1] * second.energy,
        spread=parts[0] * first.spread + parts[1] * second.spread + parts[0] * parts[1] * apart,
    )
