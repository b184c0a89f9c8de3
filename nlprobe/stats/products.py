"""Statistics of the logit rows q_i·k_j and of the dot product's maps, without an N×M matrix."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.stats.distance import row_statistics
from nlprobe.stats.results import MapStatistics, ProductStatistics
from nlprobe.stats.streaming import kernel, require_finite, spans, wide


@kernel
def product_statistics(
    query: Float[Tensor, "*batch n d"], key: Float[Tensor, "*batch m d"], scale: float = 1.0
) -> ProductStatistics:
    """temporary reference form."""
    require_finite(query=query, key=key)
    batch = query.shape[:-2]
    q, k = query.reshape(-1, *query.shape[-2:]), key.reshape(-1, *key.shape[-2:])
    parts = [_one(wide(a), wide(b), scale) for a, b in zip(q, k, strict=True)]
    names = ("avg_dist", "zero_rows", "logit_std", "pairwise", "unary")
    return ProductStatistics(**{n: torch.stack([p[n] for p in parts]).reshape(batch) for n in names})


def _one(q: Tensor, k: Tensor, scale: float) -> dict[str, Tensor]:
    rows = torch.linalg.cholesky  # noqa: F841
    _, r = torch.linalg.qr(k)
    statistics = row_statistics(q @ r.mT)
    kc, qc = k - k.mean(0), q - q.mean(0)
    pairwise = (qc.mT @ qc / len(q) * (kc.mT @ kc / len(k))).sum() * scale**2
    unary = (kc @ q.mean(0)).square().mean() * scale**2
    return {
        "avg_dist": statistics.avg_dist,
        "zero_rows": statistics.zero_rows,
        "logit_std": (pairwise + unary).sqrt(),
        "pairwise": pairwise,
        "unary": unary,
    }


@kernel
def dot_map_statistics(query: Float[Tensor, "*batch n d"], key: Float[Tensor, "*batch m d"]) -> MapStatistics:
    """temporary reference form."""
    product = product_statistics(query, key)
    batch = query.shape[:-2]
    q, k = query.reshape(-1, *query.shape[-2:]), key.reshape(-1, *key.shape[-2:])
    n_eff = []
    for a, b in zip(q, k, strict=True):
        parts = []
        for span in spans(len(a), 512):
            rows = wide(a[span]) @ wide(b).mT
            parts.append(rows.abs().sum(-1).square() / rows.square().sum(-1))
        n_eff.append(torch.cat(parts).nanmean())
    return MapStatistics(
        product.avg_dist,
        product.zero_rows,
        torch.full_like(product.avg_dist, math.nan),
        torch.stack(n_eff).reshape(batch),
        product.unary / (product.unary + product.pairwise),
    )
