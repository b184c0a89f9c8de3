"""Statistics of softmax attention maps, streamed over blocks of queries: no N×M matrix is ever held."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats.results import MapStatistics
from nlprobe.stats.streaming import block_elements, kernel, require_finite, spans, wide, widened

SHIFT_ROWS = 32
"""At most so many rows give the direction that is subtracted from all: enough of them that an odd one is diluted."""

MOST_ELEMENTS = 1 << 21
"""Float32 numbers in a block of rows: larger ones lose nothing in the cache but more in memory (8 MiB, twice)."""

EVEN_BELOW = 1e-8
"""M·mean‖c_i‖², the squared coefficient of variation within rows, under which float32 weights leave c few digits."""

PEAKED_BELOW = 1e-3
"""Mean row entropy in nats under which the sum of float32 weights is too close to 1 for its logarithm."""

LOWEST_LOGIT = {torch.float32: -40.0, torch.float64: -math.inf}
"""Least logit below a row's largest: in float32 what lies lower adds less than rounding, and its square would be a
denormal number, with which processors compute many times slower."""

_NO_UNEVENNESS = 1e-26
"""M·mean‖c_i‖² in float64 that is nothing but rounding."""


@kernel
def softmax_map_statistics(
    query: Float[Tensor, "*batch n d"],
    key: Float[Tensor, "*batch m d"],
    scale: float = 1.0,
    precision: Literal["float32", "float64"] = "float32",
    distance_only: bool = False,
) -> MapStatistics:
    """Statistics of the rows ω_i = softmax_j(scale · q_i·k_j) of (embedded) Gaussian attention (section 3.1).

    With w_ij = exp(s_ij − max_j s_ij), r_i = ‖w_i‖, z_i = Σ_j w_ij and t the mean direction of a few rows,
    d_i = (w_i − r_i t)/r_i is the unit row less t, and avg_dist = ½ (mean‖d_i‖² − ‖mean d_i‖²): the softmax denominator
    cancels, and small distances do not. The unevenness c_i = ω_i − 1/M comes from the same d_i and t, each centred,
    never by subtracting 1/M; entropy_i = log z_i − Σ_j w_ij (s_ij − max_j s_ij)/z_i.

    The keys' mean, which changes no map, is taken off before the product. O(N·M·d) time; memory of one copy of the keys
    and of two blocks of rows; several small sets (heads) share a block. In float32 the distance's error is at most
    1e-5·true + 1e-9. Sets whose maps are so even (`EVEN_BELOW`) or so peaked (`PEAKED_BELOW`) that other columns
    would lose digits, and logits that overflow float32, are redone in float64.

    Args:
        query: Queries as they enter the product; half precision is widened first.
        key: Keys as they enter the product.
        scale: Factor on the logits.
        precision: Of the products; float64 input is never narrowed.
        distance_only: Leave entropy, n_eff and shared out (NaN).

    Returns:
        The statistics; softmax has no zero rows.

    Raises:
        NlprobeError: query or key holds NaN or infinity, or the logits overflow.
    """
    batch = query.shape[:-2]
    queries, keys = (widened(t).reshape(-1, *t.shape[-2:]) for t in (query, key))
    double = precision == "float64" or query.dtype == torch.float64
    found = _stream(queries, keys, scale, torch.float64 if double else torch.float32, distance_only)
    if not double:
        again = ~found.trustworthy(distance_only)
        if bool(again.any()):
            finite = bool(torch.isfinite(found.distance).all())
            if not finite:
                require_finite(query=query, key=key)
            found = found.replace(again, _stream(queries[again], keys[again], scale, torch.float64, distance_only))
    if not bool(torch.isfinite(found.distance).all()):
        require_finite(query=query, key=key)
        raise NlprobeError("the logits of `query` and `key` overflow", "scale them down")
    return MapStatistics(
        avg_dist=found.distance.reshape(batch),
        zero_rows=torch.zeros_like(found.distance, dtype=torch.int64).reshape(batch),
        entropy=(found.entropy / math.log(key.shape[-2]) if key.shape[-2] > 1 else found.entropy * math.nan).reshape(
            batch
        ),
        n_eff=found.n_eff.reshape(batch),
        shared=found.shared().reshape(batch),
    )


@dataclass(frozen=True)
class _Found:
    """Results for each of s sets, in float64."""

    distance: Tensor
    entropy: Tensor  # nats
    n_eff: Tensor
    mean_unevenness: Tensor  # M·‖mean_i c_i‖²
    unevenness: Tensor  # M·mean_i ‖c_i‖²

    def trustworthy(self, distance_only: bool) -> Tensor:
        finite = torch.isfinite(self.distance)
        if distance_only:
            return finite
        return finite & (self.unevenness >= EVEN_BELOW) & (self.entropy >= PEAKED_BELOW)

    def replace(self, where: Tensor, other: "_Found") -> "_Found":
        merged = {name: value.clone() for name, value in vars(self).items()}
        for name, value in merged.items():
            value[where] = getattr(other, name)
        return _Found(**merged)

    def shared(self) -> Tensor:
        return torch.where(self.unevenness > _NO_UNEVENNESS, self.mean_unevenness / self.unevenness, math.nan)


def _stream(query: Tensor, key: Tensor, scale: float, dtype: torch.dtype, distance_only: bool) -> _Found:
    parts = []
    n, m = query.shape[-2], key.shape[-2]
    room = max(min(8 * block_elements(query.device), MOST_ELEMENTS), 64 * m) * 4 // dtype.itemsize
    buffers = query.new_empty(2, room, dtype=dtype)
    for sets in spans(query.shape[0], room // max(1, n * m)):
        parts.append(_sets(query[sets], _centred(key[sets], dtype), scale, buffers, distance_only))
    return _Found(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _centred(key: Tensor, dtype: torch.dtype) -> Tensor:
    """The keys less, nearly, their mean; by way of the first key where that costs little, so that equal keys cancel."""
    if dtype == torch.float32:
        return key - key.mean(-2, keepdim=True)
    key = wide(key) - wide(key[:, :1])
    return key.sub_(key.mean(-2, keepdim=True))


def _weights(query: Tensor, key: Tensor, scale: float, logits: Tensor, weights: Tensor) -> None:
    """Into `logits` s_ij − max_j s_ij, into `weights`, which may be the same memory, its exponential."""
    logits.baddbmm_(query, key.mT, beta=0, alpha=scale)
    logits.sub_(logits.amax(-1, keepdim=True)).clamp_min_(LOWEST_LOGIT[logits.dtype])
    torch.exp(logits, out=weights)


def _sets(query: Tensor, key: Tensor, scale: float, buffers: Tensor, distance_only: bool) -> _Found:
    """The statistics of g sets at once, (g, n, d) and (g, m, d), in blocks of r queries."""
    g, n, m = query.shape[0], query.shape[1], key.shape[1]
    step = max(1, buffers.shape[1] // (g * m))
    sample = torch.linspace(0, n - 1, min(n, max(4, min(SHIFT_ROWS, n // 64)), step), device=query.device).long()
    logits = buffers[0, : g * len(sample) * m].view(g, -1, m)
    _weights(query[:, sample].to(key.dtype), key, scale, logits, logits)
    shift = wide(torch.nn.functional.normalize(logits, dim=-1)).mean(-2)  # (g, m)
    shift = shift.to(key.dtype)
    uneven_shift = (wide(shift) - wide(shift).mean(-1, keepdim=True)).to(key.dtype)
    uneven_square = wide(uneven_shift).square().sum(-1, keepdim=True)
    totals = wide(key.new_zeros(g, 4))  # of ‖d_i‖², entropy_i, 1/‖ω_i‖², M ‖c_i‖²
    ratio = wide(key.new_zeros(g, 1))  # Σ_i r_i/z_i
    sums = wide(key.new_zeros(g, 2, m))  # Σ_i d_i, Σ_i (w_i − r_i t)/z_i
    for rows in spans(n, step):
        block = query[:, rows].to(key.dtype)
        size = g * block.shape[1] * m
        logits = buffers[0, :size].view(g, -1, m)
        weights = logits if distance_only else buffers[1, :size].view(g, -1, m)
        _weights(block, key, scale, logits, weights)
        norm, mass = torch.linalg.vector_norm(weights, dim=-1), weights.sum(-1)
        if not distance_only:
            expected = wide(logits.mul_(weights).sum(-1))
        residual = weights.addcmul_(norm.unsqueeze(-1), shift.unsqueeze(-2), value=-1)
        square = wide(torch.linalg.vector_norm(residual, dim=-1)).square()
        sums += torch.stack((norm, mass), dim=-2).reciprocal_() @ residual
        norm, mass = wide(norm), wide(mass)
        totals[:, 0] += (square / norm.square()).sum(-1)
        if distance_only:
            continue
        along = wide((residual @ uneven_shift.unsqueeze(-1)).squeeze(-1))
        total = wide(residual.sum(-1))
        uneven = square - total.square() / m + 2 * norm * along + norm.square() * uneven_square
        totals[:, 1] += (mass.log() - expected / mass).sum(-1)
        totals[:, 2] += (mass / norm).square().sum(-1)
        totals[:, 3] += (m * uneven / mass.square()).sum(-1)
        ratio += (norm / mass).sum(-1, keepdim=True)
    means = totals / n
    mean_row = (sums[:, 1] + ratio * wide(shift)) / n
    mean_uneven = mean_row - mean_row.mean(-1, keepdim=True)
    undefined = math.nan if distance_only else 1.0
    return _Found(
        distance=(0.5 * (means[:, 0] - (sums[:, 0] / n).square().sum(-1))).clamp_min(0),
        entropy=means[:, 1] * undefined,
        n_eff=means[:, 2] * undefined,
        mean_unevenness=m * mean_uneven.square().sum(-1) * undefined,
        unevenness=means[:, 3].clamp_min(0) * undefined,
    )
