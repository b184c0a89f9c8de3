"""Statistics of softmax attention maps, streamed over blocks of queries."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.stats.results import MapStatistics
from nlprobe.stats.streaming import kernel, require_finite, spans, wide


@kernel
def softmax_map_statistics(
    query: Float[Tensor, "*batch n d"],
    key: Float[Tensor, "*batch m d"],
    scale: float = 1.0,
    precision: Literal["float32", "float64"] = "float32",
    distance_only: bool = False,
) -> MapStatistics:
    """temporary reference form."""
    require_finite(query=query, key=key)
    batch = query.shape[:-2]
    q, k = query.reshape(-1, *query.shape[-2:]), key.reshape(-1, *key.shape[-2:])
    out = torch.stack([_one(wide(a), wide(b), scale) for a, b in zip(q, k, strict=True)], -1)
    e, n, d, s = (o.reshape(batch) for o in out)
    return MapStatistics(d, torch.zeros_like(d, dtype=torch.int64), e, n, s)


def _one(q: Tensor, k: Tensor, scale: float) -> Tensor:
    n, m = len(q), len(k)
    h = torch.zeros((), dtype=q.dtype)
    ne, e2, uc2 = h.clone(), h.clone(), h.clone()
    su, sc = q.new_zeros(m), q.new_zeros(m)
    first = None
    for span in spans(n, 256):
        s = scale * q[span] @ k.mT
        s = s - s.amax(-1, keepdim=True)
        w = s.exp()
        z = w.sum(-1, keepdim=True)
        x = s.expm1()
        c = (x - x.mean(-1, keepdim=True)) / z
        p = w / z
        r = p.norm(dim=-1, keepdim=True)
        if first is None:
            first = p[0] / r[0]
        u = p / r - first
        su += u.sum(0)
        sc += c.sum(0)
        uc2 += u.square().sum()
        e2 += c.square().sum()
        ne += (1 / r**2).sum()
        h += (z.log() - (p * s).sum(-1, keepdim=True)).sum()
    d = 0.5 * (uc2 / n - (su / n).square().sum())
    return torch.stack(
        [h / n / torch.tensor(float(m)).log(), ne / n, d.clamp_min(0), (sc / n).square().sum() / (e2 / n)]
    )
