"""Statistics of the logit rows of short sets (the heads of a layer), from float32 products in few passes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nlprobe.stats.logits import FEW_SETS
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
    rows = torch.empty(4, a, h, n, device=query.device)  # ‖s_i‖, a_i, 1/n_i, ‖q_i‖
    # Σ_i s_i/n_i and Σ_i s_i, over the queries after the prefix, and over the prefix
    sums = torch.empty(2 if prefix else 1, a, h, 2, m, device=query.device)
    squares = torch.empty(2, a, h, device=query.device)  # Σ_j ‖k_j − k̄‖², ‖k̄‖²
    room = max(2 * block_elements(query.device), n * (m + 1))
    buffer = torch.empty(room, device=query.device)
    for images in spans(a, room // (h * n * (m + 1))):
        for heads in spans(h, room // (n * (m + 1))):
            at = (slice(None), images, heads)
            _block(query[at[1:]], key[at[1:]], buffer, rows[at], sums[at], squares[at], prefix)
    columns, vectors = _row_sums(rows[..., prefix:]), wide(sums[0])
    rest = _found(columns, vectors, rows[0, ..., prefix:].amin(-1), n - prefix, wide(squares))
    if not prefix:
        return [rest]
    columns = columns + _row_sums(rows[..., :prefix])
    return [_found(columns, vectors + wide(sums[1]), rows[0].amin(-1), n, wide(squares)), rest]


def _block(
    query: Tensor, key: Tensor, buffer: Tensor, rows: Tensor, sums: Tensor, squares: Tensor, prefix: int
) -> None:
    """The sums of some sets, (a, h, …), from products that stay in the cache."""
    (a, h, n, d), m = query.shape, key.shape[2]
    mean_key = key.mean(-2, keepdim=True)
    keys = key.new_empty(a, h, m + 1, d)  # centred, and after them their mean: one product makes s_ij and a_i
    torch.sub(key, mean_key, out=keys[:, :, :m])
    keys[:, :, m:] = mean_key
    products = buffer[: a * h * n * (m + 1)].view(a, h, n, m + 1)
    if a > FEW_SETS:
        torch.bmm(query.flatten(0, 1), keys.flatten(0, 1).mT, out=products.flatten(0, 1))
    else:
        # the heads of one set lie evenly in memory as models hold them, and need no copy
        for queries, transposed, out in zip(query, keys.mT, products, strict=True):
            torch.bmm(queries, transposed, out=out)
    norms, along, inverse, size = rows
    torch.linalg.vector_norm(query, dim=-1, out=size)
    torch.linalg.vector_norm(products[..., :m], dim=-1, out=norms)
    along.copy_(products[..., m])
    torch.mul(norms, norms, out=inverse).addcmul_(along, along, value=m).rsqrt_()
    factors = torch.stack((inverse, torch.ones_like(inverse)), -2).flatten(0, 1)
    products = products.flatten(0, 1)
    for part, span in zip(sums, (slice(prefix, n), slice(0, prefix)), strict=False):
        part.copy_(torch.bmm(factors[..., span], products[:, span])[..., :m].view_as(part))
    torch.linalg.vector_norm(keys[:, :, :m], dim=(-2, -1), out=squares[0]).square_()
    torch.sum(mean_key.square(), (-2, -1), out=squares[1])


def _row_sums(rows: Tensor) -> Tensor:
    """Σ_i, in float64, of ‖s_i/n_i‖², ‖s_i‖², ‖q_i/n_i‖², a_i/n_i and its square."""
    norms, along, inverse, size = rows
    beside = wide(along * inverse)
    squares = torch.stack((norms * inverse, norms, size * inverse)).square_()
    return torch.cat((squares.sum(-1, dtype=beside.dtype), torch.stack((beside, beside.square())).sum(-1)))


def _found(sums: Tensor, vectors: Tensor, least: Tensor, n: int, squares: Tensor) -> tuple[ProductSums, Tensor]:
    m = vectors.shape[-1]
    apart, energy, size, along, along_square = sums / n
    means = vectors / n
    beside = m * (along_square - along.square())
    distance = 0.5 * (apart - means[..., 0, :].square().sum(-1) + beside)
    variance = energy / m
    unary = means[..., 1, :].var(-1, correction=0)
    pairwise = variance - unary
    kept = (
        (distance >= CLOSE_BELOW * apart)
        & (pairwise >= PAIRWISE_BELOW * variance)
        & (unary >= UNARY_BELOW * variance)
        & (size * (squares[0] + m * squares[1]) <= CANCELLED_ABOVE)
        & (squares[0] >= ALIKE_BELOW * m * squares[1])
        & (wide(least).square() > UNDERFLOW)
        & torch.isfinite(energy + squares.sum(0))
    )
    return ProductSums(distance, torch.zeros_like(distance), pairwise, unary), kept
