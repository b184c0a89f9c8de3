"""The concatenation mode's rows ReLU(a_i + b_j), and a_i + b_j before the ReLU, from sorts and prefix sums."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.stats.distance import row_statistics
from nlprobe.stats.results import MapStatistics, ProductStatistics
from nlprobe.stats.streaming import kernel, require_finite, wide


@kernel
def concat_product_statistics(a: Float[Tensor, "*batch n"], b: Float[Tensor, "*batch m"]) -> ProductStatistics:
    """Statistics of the rows s_i = (a_i + b_j)_j, the concatenation mode's `prod`, before the ReLU.

    With α_i = a_i + b̄ and β_j = b_j − b̄, s_i = α_i·1 + β lies in a plane and has the coordinates (√M α_i, ‖β‖): the
    distance is that of N points in the plane. The row-centred logits are β whatever i: `unary` is mean β², `pairwise`
    is 0. O(N + M).

    Args:
        a: The queries' part w_q·θ(x_i) of the logit.
        b: The keys' part w_k·φ(x_j).

    Raises:
        NlprobeError: a or b holds NaN or infinity.
    """
    a, b, size = _scaled(a, b)
    first = b[..., :1]  # equal keys then centre to exactly zero
    offset = (b - first).mean(-1, keepdim=True)
    deviation = (b - first - offset).square().mean(-1).sqrt()
    plane = torch.stack((a + first + offset, deviation.unsqueeze(-1).expand_as(a)), dim=-1)
    statistics = row_statistics(plane)
    unary = (deviation * size).square()
    return ProductStatistics(
        avg_dist=statistics.avg_dist,
        zero_rows=statistics.zero_rows,
        logit_std=deviation * size,
        pairwise=torch.zeros_like(unary),
        unary=unary,
    )


@kernel
def concat_map_statistics(a: Float[Tensor, "*batch n"], b: Float[Tensor, "*batch m"]) -> MapStatistics:
    """Statistics of the rows ReLU(a_i + b_j), which the concatenation mode's map is up to the factor 1/M (section 3.1).

    Measured from the largest key, with α_i = a_i + max b and β_j = max b − b_j ≥ 0 in rising order, row i is α_i − β_j
    on its first k_i keys and 0 on the others; sorted prefix sums over j give the norms, over i the mean row. Deviations
    are from a reference row, so that small distances do not cancel. O((N + M) log(N + M)) in float64, memory O(N + M).

    `shared` is of c_i = a_i − mean_j a_ij, with mean_j over all M keys. The entropy is NaN: rows do not sum to 1.

    Args:
        a: The queries' part w_q·θ(x_i) of the logit.
        b: The keys' part w_k·φ(x_j).

    Returns:
        The statistics; a row on which nothing is active is zero: left out of `avg_dist` and `n_eff`, and counted.

    Raises:
        NlprobeError: a or b holds NaN or infinity.
    """
    a, b, _ = _scaled(a, b)
    keys = b.shape[-1]
    top = b.amax(-1, keepdim=True)
    alpha = (a + top).sort(-1).values  # (*batch, n), rising
    beta = (top - b).sort(-1).values  # (*batch, m), rising from 0
    active = torch.searchsorted(beta, alpha)  # keys with β_j < α_i
    present = active > 0
    mean, variance = _active_moments(alpha, beta, active)
    norm_squared = active * (mean.square() + variance)
    n_eff = torch.where(present, active * mean.square() / (mean.square() + variance), math.nan).nanmean(-1)
    unevenness = active * (variance + mean.square() * (1 - active.to(mean.dtype) / keys))
    return MapStatistics(
        avg_dist=_distance(alpha, beta, present, norm_squared),
        zero_rows=(~present).sum(-1),
        entropy=torch.full_like(n_eff, math.nan),
        n_eff=n_eff,
        shared=_mean_row_variance(alpha, beta) * keys / unevenness.mean(-1),
    )


def _scaled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both in float64, divided by their largest magnitude, so that squares neither over- nor underflow."""
    require_finite(a=a, b=b)
    a, b = wide(a), wide(b)
    size = torch.maximum(a.abs().amax(-1), b.abs().amax(-1))
    size = torch.where(size > 0, size, 1.0)
    return a / size.unsqueeze(-1), b / size.unsqueeze(-1), size


def _active_moments(alpha: Tensor, beta: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each row over its active keys, by Welford's recurrence, whose terms are all ≥ 0."""
    counts = torch.arange(1, beta.shape[-1] + 1, dtype=beta.dtype, device=beta.device)
    means = beta.cumsum(-1) / counts
    steps = torch.zeros_like(beta)
    steps[..., 1:] = (beta[..., 1:] - means[..., :-1]).square() * (1 - 1 / counts[1:])
    variances = steps.cumsum(-1) / counts
    last = (active - 1).clamp_min(0)
    present = active > 0
    mean = torch.where(present, alpha - means.gather(-1, last), 0.0)
    return mean, torch.where(present, variances.gather(-1, last), 0.0)


def _suffix_sums(values: Tensor, start: Tensor) -> Tensor:
    """Σ values[start:] for each start, which may be the length."""
    sums = torch.nn.functional.pad(values.flip(-1).cumsum(-1).flip(-1), (0, 1))
    return sums.gather(-1, start)


def _mean_row_variance(alpha: Tensor, beta: Tensor) -> Tensor:
    """Variance over the keys of the mean row: mean_i ReLU(α_i − β_j)."""
    rows = alpha.shape[-1]
    first = torch.searchsorted(alpha, beta, right=True)  # rows first, first + 1, … see key j
    row = (_suffix_sums(alpha, first) - beta * (rows - first)) / rows
    return row.var(-1, correction=0)


def _distance(alpha: Tensor, beta: Tensor, present: Tensor, norm_squared: Tensor) -> Tensor:
    """½ (mean_i ‖v̂_i − u‖² − ‖mean_i v̂_i − u‖²), u: the unit row with the median α of those that are not zero.

    With δ_i = α_i − α_u, η_j = β_j − α_u and y_i = 1/‖v_i‖ the deviation of row i is, where it is active,
    (δ_i − η_j) y_i for keys that u does not see and δ_i y_i − η_j (y_i − y_u) for those that it sees, and −u_j where
    row i is not active.
    """
    rows = alpha.shape[-1]
    count = present.sum(-1, keepdim=True)
    reference = (rows - 1 - (count - 1).clamp_min(0) // 2).clamp_min(0)  # zero rows come first
    y = torch.where(present, norm_squared.rsqrt(), 0.0)
    y_u, alpha_u = y.gather(-1, reference), alpha.gather(-1, reference)
    x = torch.where(present, alpha - alpha_u, 0.0) * y
    eta = beta - alpha_u
    first = torch.searchsorted(alpha, beta, right=True)
    seen = eta < 0
    unit = torch.where(seen, -eta * y_u, 0.0)
    step = torch.where(present, y - y_u, 0.0)
    blind_rows = first - (rows - count)  # rows that are not zero and do not see key j
    slope = torch.where(seen, _suffix_sums(step, first), _suffix_sums(y, first))
    slope_squared = torch.where(seen, _suffix_sums(step.square(), first), _suffix_sums(y.square(), first))
    cross = torch.where(seen, _suffix_sums(x * step, first), _suffix_sums(x * y, first))
    total = _suffix_sums(x, first) - eta * slope - blind_rows * unit
    squares = (
        _suffix_sums(x.square(), first) - 2 * eta * cross + eta.square() * slope_squared + blind_rows * unit.square()
    )
    count = count.squeeze(-1)
    return (0.5 * (squares.sum(-1) / count - (total / count.unsqueeze(-1)).square().sum(-1))).clamp_min(0)
