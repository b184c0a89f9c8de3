"""The effective rank of maps without their mean row: how many directions the rows really differ in."""

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.stats.logit_blocks import logits_kernel, require_usable
from nlprobe.stats.logits import Logits
from nlprobe.stats.streaming import block_elements, spans

SIDE_LIMIT = 1024
"""The shorter side of the largest map whose rank is taken: its singular values take about a second."""
SIZE_LIMIT = 1 << 22
"""The most elements of such a map, 32 MiB in float64."""
NOISE = 1e-12
"""Singular values under this part of the map's Frobenius norm are rounding, and count as zero."""


@logits_kernel
def effective_rank(logits: Logits) -> Float[Tensor, "s h"]:
    """exp(−Σ_k p_k log p_k) of the map less its mean row, A − 1·āᵀ; p_k = σ_k / Σ σ its normalised singular values.

    Roy & Vetterli 2007, "The effective rank". From 1, where the rows differ along one direction only, to min(N − 1,
    M − 1), the most that rows with the mean taken off can have. float64. O(N·M·min(N, M)) and a map written out, for
    each set and head: so only maps of at most `SIDE_LIMIT` on the shorter side and `SIZE_LIMIT` elements are taken.

    Args:
        logits: The maps' logits; queries that see no key are left out.

    Returns:
        A value for each set and head, in float64; NaN for larger maps, and where all rows are equal: no direction is
        left there.

    Raises:
        NlprobeError: If the logits hold NaN, or infinity that hides nothing.
    """
    require_usable(logits)
    s, h, n, m = logits.shape
    result = torch.full((s, h), torch.nan, dtype=torch.float64, device=logits.device)
    if min(n, m) > SIDE_LIMIT or n * m > SIZE_LIMIT:
        return result
    size = block_elements(logits.device)
    for sets in spans(s, size // max(1, h * n * m)):
        for heads in spans(h, size // max(1, n * m)):
            result[sets, heads] = _ranks(_maps(logits, sets, heads))
    return result


def _maps(logits: Logits, sets: slice, heads: slice) -> Tensor:
    """Whole maps (g, hh, n, m) in float64; rows that see no key are zero."""
    shape = (sets.stop - sets.start, heads.stop - heads.start, *logits.shape[2:])
    block = torch.empty(shape, dtype=torch.float64, device=logits.device)
    logits.prepare(sets, heads, torch.float64, centred=True).fill(slice(0, shape[2]), block)
    blind = block.amax(-1, keepdim=True) == -torch.inf
    return torch.softmax(block, -1).masked_fill_(blind, 0)


def _ranks(maps: Tensor) -> Tensor:
    blind = maps.amax(-1, keepdim=True) == 0
    means = maps.sum(-2, keepdim=True) / (~blind).sum(-2, keepdim=True)
    # a zero row changes no singular value: so is a query left out
    values = torch.linalg.svdvals((maps - means).masked_fill_(blind, 0))
    level = torch.linalg.matrix_norm(maps).unsqueeze(-1)
    values = values.masked_fill_(values <= NOISE * level, 0)
    total = values.sum(-1, keepdim=True)
    return torch.special.entr(values / total).sum(-1).exp()
