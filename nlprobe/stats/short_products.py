"""Statistics of the logit rows of short sets (the heads of a layer), from float32 products in few passes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nlprobe.stats.streaming import UNDERFLOW, block_elements, spans, wide

FEWEST = 1 << 11
"""Products q_i·k_j in one set from which on their rounding is averaged out."""

CLOSE_BELOW = 0.02
"""Distance, relative to that part of the unit rows' energy of which it is a difference, under which it loses digits."""

PAIRWISE_BELOW = 0.05
"""Share of the variance under which its pairwise part, a difference too, loses digits."""

UNARY_BELOW = 1e-5
"""Share of the variance under which the rounding of the mean query shows in the unary part."""

CANCELLED_ABOVE = 4096.0
"""‖q_i‖² Σ_j ‖k_j‖² / n_i², in the mean, above which products cancel so much that their rounding shows."""

ALIKE_BELOW = 1e-4
"""Σ_j ‖k_j − k̄‖² relative to M ‖k̄‖² under which the rounding of the mean key k̄ shows."""


@dataclass(frozen=True)
class ProductSums:
    """Results for each of some sets, in float64; see `ProductStatistics`, the scale left out.

    Attributes:
        distance: Average cosine distance.
        zero_rows: How many rows are zero.
        pairwise: tr(C_q C_k).
        unary: q̄ᵀ C_k q̄.
    """

    distance: Tensor
    zero_rows: Tensor
    pairwise: Tensor
    unary: Tensor


def is_short(n: int, m: int, d: int, device: torch.device) -> bool:
    """Whether the products of one set fit the cache, and cost little more than the d×d matrices that avoid them."""
    return FEWEST <= n * m <= min(4 * (n + m) * d, 2 * block_elements(device))


def short_products(query: Tensor, key: Tensor, prefix: int = 0) -> list[tuple[ProductSums, Tensor]]:
    """The statistics of float32 queries (a, h, n, d) and keys (a, h, m, d) in any layout, and which are good to 1e-5.

    With k̄ the mean key, s_ij = q_i·(k_j − k̄), whose rows have no mean, a_i = q_i·k̄, and n_i² = ‖s_i‖² + M a_i², the
    squared length of a row of logits: avg_dist = ½ (mean ‖s_i/n_i‖² − ‖mean s_i/n_i‖² + M var(a_i/n_i)), and
    mean_i ‖s_i‖²/M = pairwise + unary. Nothing cancels but what rows have in common, besides their mean.

    O(a·h·N·M·d); memory of one block.

    Args:
        query: Queries.
        key: Keys.
        prefix: Measure the queries after so many once more without these; 0 for no second measurement.

    Returns:
        The statistics of the sets, (a, h), and whether each is to be kept; of all queries, and with a prefix of those
        after it.
    """
    a, h, n, _ = query.shape
    m = key.shape[2]
    rows = torch.empty(3, a, h, n, device=query.device)  # ‖s_i‖, a_i, ‖q_i‖
    # Σ_i s_i/n_i and Σ_i q_i·(k_j − k̄), over all queries and over the prefix
    sums = torch.zeros(2, 2, a, h, m, device=query.device)
    squares = torch.empty(2, a, h, device=query.device)  # Σ_j ‖k_j − k̄‖², ‖k̄‖²
    room = max(4 * block_elements(query.device), n * (m + 1))
    buffer = torch.empty(room, device=query.device)
    for images in spans(a, room // (h * n * (m + 1))):
        for heads in spans(h, room // (n * (m + 1))):
            at = (slice(None), images, heads)
            _block(query[at[1:]], key[at[1:]], buffer, rows[at], sums[:, *at], squares[at], prefix)
    found = [_found(wide(rows), wide(sums[0]) / n, wide(squares))]
    if prefix:
        found.append(_found(wide(rows[..., prefix:]), (wide(sums[0]) - wide(sums[1])) / (n - prefix), wide(squares)))
    return found


def _block(
    query: Tensor, key: Tensor, buffer: Tensor, rows: Tensor, sums: Tensor, squares: Tensor, prefix: int
) -> None:
    """The sums of some sets, (a, h, …), from products that stay in the cache."""
    (a, h, n, d), m = query.shape, key.shape[2]
    queries, mean_key = query.flatten(0, 1), key.mean(-2, keepdim=True)
    keys = key.new_empty(a, h, m + 1, d)  # centred, and after them their mean: one product makes s_ij and a_i
    torch.sub(key, mean_key, out=keys[:, :, :m])
    keys[:, :, m:] = mean_key
    keys = keys.flatten(0, 1)
    products = torch.bmm(queries, keys.mT, out=buffer[: a * h * n * (m + 1)].view(a * h, n, m + 1))
    norms, along = torch.linalg.vector_norm(products[..., :m], dim=-1), products[..., m]
    factors = (norms.square() + m * along.square()).rsqrt_().unsqueeze(-2)
    rows[0], rows[1] = norms.view(a, h, n), along.view(a, h, n)
    torch.linalg.vector_norm(query, dim=-1, out=rows[2])
    for part, count in zip(sums, (n, prefix) if prefix else (n,), strict=False):
        part[0] = torch.bmm(factors[..., :count], products[:, :count])[..., :m].view(a, h, m)
        part[1] = torch.bmm(queries[:, :count].sum(-2, keepdim=True), keys[:, :m].mT).view(a, h, m)
    squares[0] = torch.linalg.vector_norm(keys[:, :m], dim=(-2, -1)).square().view(a, h)
    squares[1] = mean_key.square().sum((-2, -1))


def _found(rows: Tensor, means: Tensor, squares: Tensor) -> tuple[ProductSums, Tensor]:
    m = means.shape[-1]
    energy, along, size = rows[0].square(), rows[1], rows[2].square()
    length = energy + m * along.square()
    apart = (energy / length).mean(-1)
    beside = m * (along * length.rsqrt()).var(-1, correction=0)
    distance = 0.5 * (apart - means[0].square().sum(-1) + beside)
    variance = energy.mean(-1) / m
    unary = means[1].var(-1, correction=0)
    pairwise = variance - unary
    cancelled = (size / length).mean(-1) * (squares[0] + m * squares[1])
    kept = (
        (distance >= CLOSE_BELOW * apart)
        & (pairwise >= PAIRWISE_BELOW * variance)
        & (unary >= UNARY_BELOW * variance)
        & (cancelled <= CANCELLED_ABOVE)
        & (squares[0] >= ALIKE_BELOW * m * squares[1])
        & (torch.minimum(length, energy).amin(-1) > UNDERFLOW)
        & torch.isfinite(energy.sum(-1) + squares.sum(0))
    )
    return ProductSums(distance, torch.zeros_like(distance), pairwise, unary), kept
