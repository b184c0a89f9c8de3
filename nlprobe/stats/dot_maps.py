"""Statistics of the dot product's attention maps q_i·k_j / M."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.stats.products import magnitude, product_statistics
from nlprobe.stats.results import MapStatistics
from nlprobe.stats.streaming import UNDERFLOW, block_elements, kernel, spans, wide, widened

SMALL = 1 << 24
"""Multiplications up to which float64 products cost nothing that is felt."""

NEARLY_NULL = 1e-4
"""n_i² relative to ‖q_i‖² ‖K‖_F² under which the rounding of float32 logits shows in n_eff."""


@kernel
def dot_map_statistics(
    query: Float[Tensor, "*batch n d"], key: Float[Tensor, "*batch m d"], distance_only: bool = False
) -> MapStatistics:
    """Statistics of the rows a_i = (q_i·k_j / M)_j of dot product attention (section 3.1).

    The distance is that of the logits, and `shared` is unary/(unary + pairwise) (`product_statistics`): both from d×d
    matrices. n_eff = mean_i (Σ_j |a_ij|)² / Σ_j a_ij² has no such form and is streamed over blocks of rows, O(N·M·d),
    in float32 unless logits cancel. The entropy is NaN: rows do not sum to 1.

    Args:
        query: Queries as they enter the product; half precision is widened first.
        key: Keys as they enter the product.
        distance_only: Leave n_eff out (NaN), and with it every product of N×M.

    Raises:
        NlprobeError: query or key holds NaN or infinity.
    """
    product = product_statistics(query, key)
    undefined = torch.full_like(product.avg_dist, math.nan)
    total = product.unary + product.pairwise
    return MapStatistics(
        avg_dist=product.avg_dist,
        zero_rows=product.zero_rows,
        entropy=undefined,
        n_eff=undefined if distance_only else _n_eff(query, key),
        shared=torch.where(total > 0, product.unary / total, math.nan),
    )


def _n_eff(query: Tensor, key: Tensor) -> Tensor:
    batch = query.shape[:-2]
    query, key = (widened(t).reshape(-1, *t.shape[-2:]) for t in (query, key))
    (s, n, d), m = query.shape, key.shape[-2]
    result = wide(query.new_empty(s))
    for sets in spans(s, 4 * block_elements(query.device) // max(1, n * m)):
        q, k = query[sets], key[sets]
        if query.dtype == torch.float32 and q.shape[0] * n * m * d > SMALL:
            mean, reliable = _streamed(q, k)
            if bool(reliable):
                result[sets] = mean
                continue
        result[sets], _ = _streamed(wide(q) / magnitude(q, (-1,)), wide(k) / magnitude(k, (-2, -1)))
    return result.reshape(batch)


def _streamed(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """n_eff of g sets, (g, n, d) and (g, m, d), and whether all rows are long enough for their precision."""
    (g, n, _), m = query.shape, key.shape[-2]
    room = 4 * block_elements(query.device)
    buffer = query.new_empty(max(room, 64 * g * m))
    shortest = NEARLY_NULL * wide(torch.linalg.vector_norm(key, dim=(-2, -1))).square().unsqueeze(-1)
    total, count = wide(query.new_zeros(g)), wide(query.new_zeros(g))
    reliable = torch.tensor(True, device=total.device)
    for span in spans(n, buffer.numel() // (g * m)):
        block = query[:, span]
        logits = buffer[: g * block.shape[1] * m].view(g, -1, m)
        torch.bmm(block, key.mT, out=logits)
        square = wide(torch.linalg.vector_norm(logits, dim=-1)).square()
        mass = wide(logits.abs_().sum(-1))
        length = wide(torch.linalg.vector_norm(block, dim=-1)).square()
        long_enough = (square >= shortest * length) & (square.minimum(length) > UNDERFLOW) & torch.isfinite(square)
        reliable = reliable & (long_enough | ~block.any(-1)).all()
        present = square > 0
        total += torch.where(present, mass.square() / square, 0.0).sum(-1)
        count += present.sum(-1)
    return total / count, reliable
