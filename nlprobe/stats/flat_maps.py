"""What masks alone do to the distance of attention maps: uniform rows on the same supports."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask
from nlprobe.stats.streaming import block_elements, spans


def flat_distance(logits: Logits) -> Float[Tensor, "s h"]:
    """The avg_dist (section 3.2) of flat maps: each row uniform on the keys S_i that its query may see.

    A unit row is 1_{S_i} / √|S_i|, so the distance is ½ (1 − ‖mean_i 1_{S_i} / √|S_i|‖²). Queries that see nothing
    are left out. Flat causal maps come to ½ (1 − mean_ik √(min(i, k) / max(i, k))), 1/6 for long sequences. Logits
    are not looked at. O(N·M) once for each distinct mask, O(N + M) where only `diagonal` hides.

    Args:
        logits: Logits whose mask is meant; given logits hide what their mask says.

    Returns:
        A value for each set and head, in float64; NaN where no key is hidden from any query (the distance is 0
        there) and where no query sees a key.
    """
    s, h, n, m = logits.shape
    mask = None if logits.mask is None else _hiding(logits.mask, n, m)
    if mask is None:
        return torch.full((s, h), torch.nan, dtype=torch.float64, device=logits.device)
    if mask.visible is None and mask.bias is None:
        assert mask.diagonal is not None
        distance = _diagonal_distance(mask.diagonal, n, m, logits.device)
    else:
        distance = _masked_distance(mask, (s, h, n, m), logits.device)
    return distance.expand(s, h).clone()


def _hiding(mask: Mask, n: int, m: int) -> Mask | None:
    """The mask without the parts that hide nothing: they would only multiply the masks to look at."""
    bias, visible = Mask(bias=mask.bias, hidden_below=mask.hidden_below), Mask(visible=mask.visible)
    mask = replace(
        mask,
        bias=mask.bias if bias.hides(n, m) else None,
        visible=mask.visible if visible.hides(n, m) else None,
    )
    return mask if mask.hides(n, m) else None


def _diagonal_distance(diagonal: int, n: int, m: int, device: torch.device) -> Tensor:
    """Query i sees the first c_i keys, c ascending, so unit rows i ≤ k have the product √(c_i / c_k).

    Their sum over all pairs is N + 2 Σ_k c_k^−½ Σ_{i<k} c_i^½.
    """
    counts = (torch.arange(n, dtype=torch.float64, device=device) + 1 + diagonal).clamp(0, m)
    roots = counts[counts > 0].sqrt()
    products = len(roots) + 2 * ((roots.cumsum(0) - roots) / roots).sum()
    return (0.5 * (1 - products / len(roots) ** 2)).clamp_min(0).view(1, 1)


def _masked_distance(mask: Mask, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
    """Distances (s or 1, h or 1), with as many sets, heads and queries as the mask tells apart."""
    s, h, n, m = shape
    parts = [part for part in (mask.bias, mask.visible) if part is not None]
    s, h = (size if any(part.shape[axis] != 1 for part in parts) else 1 for axis, size in ((0, s), (1, h)))
    if mask.diagonal is None and all(part.shape[2] == 1 for part in parts):
        n = 1
    result = torch.empty(s, h, dtype=torch.float64, device=device)
    step = block_elements(device)
    for sets in spans(s, step // max(1, h * n * m)):
        for heads in spans(h, step // max(1, n * m)):
            rows = spans(n, step // max(1, m * (sets.stop - sets.start) * (heads.stop - heads.start)))
            result[sets, heads] = _support_distance(mask, sets, heads, list(rows), m, device)
    return result


def _support_distance(mask: Mask, sets: slice, heads: slice, rows: list[slice], m: int, device: torch.device) -> Tensor:
    """½ (1 − ‖mean direction‖²) of the supports of some sets and heads, streamed over blocks of queries."""
    shape = (sets.stop - sets.start, heads.stop - heads.start)
    directions = torch.zeros(*shape, 1, m, dtype=torch.float64, device=device)
    seeing, hidden = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2))
    for span in rows:
        support = mask.support(sets, heads, span, m, device)
        assert support is not None
        counts = support.sum(-1, dtype=torch.float64)
        directions += counts.rsqrt().masked_fill_(counts == 0, 0).unsqueeze(-2) @ support.to(torch.float64)
        seeing += (counts > 0).sum(-1)
        hidden += (counts < m).sum(-1)
    distance = 0.5 * (1 - directions.square().sum((-2, -1)) / seeing.square())
    return distance.clamp_min(0).masked_fill_((hidden == 0) | (seeing == 0), torch.nan)
