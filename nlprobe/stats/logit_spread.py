"""How far the logits of a query's keys lie apart, where they cannot be split exactly: masks, biases, given logits."""

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.stats.logit_blocks import logit_blocks, logits_kernel, require_usable
from nlprobe.stats.logits import Logits
from nlprobe.stats.streaming import block_elements, spans, widened

LEVEL_RATIO = 1e-4
"""Where the mean square about the row mean is under this part of the mean square of what was added up to get there,
float32 has lost digits: rounding is about 1e-7 of the level, 1e-5 of a spread of a hundredth of it."""


@logits_kernel
def logit_spread(logits: Logits) -> Float[Tensor, "s h"]:
    """The `logit_std` of scaled, biased and masked logits: √(mean_i mean_{j ∈ S_i} (s_ij − s̄_i)²).

    s̄_i is the mean over S_i, the keys that query i may see; all rows weigh the same, however many keys they see, and
    those that see none are left out. Without mask and bias it is √total of the row-centred logits' exact split into
    pairwise and unary parts. Products in float32, and once more in float64 where float32 would lose digits.
    O(N·M·d), memory O(M·d) and one block.

    Args:
        logits: The maps' logits.

    Returns:
        A value for each set and head, in float64; NaN where no query sees a key.

    Raises:
        NlprobeError: If the logits hold NaN, or infinity that hides nothing.
    """
    require_usable(logits)
    variance, level = _moments(logits, logits.dtype)
    if logits.dtype != torch.float64 and bool((variance < LEVEL_RATIO * (level + _product_level(logits))).any()):
        variance, _ = _moments(logits, torch.float64)
    return variance.sqrt()


def _moments(logits: Logits, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Means over the rows of their variances and of their squared means, in float64."""
    s, h, _, _ = logits.shape
    sums = torch.zeros(3, s, h, dtype=torch.float64, device=logits.device)
    hides = logits.given is not None or (logits.mask is not None and logits.mask.hides(*logits.shape[2:]))
    for sets, heads, _, block in logit_blocks(logits, dtype, centred=True):
        seen, means, variances = _masked_rows(block) if hides else _rows(block)
        for total, rows in zip(sums, (seen, means.square(), variances), strict=True):
            total[sets, heads] += rows.sum(-1, dtype=torch.float64)
    seeing, level, variance = sums
    return variance / seeing, level / seeing


def _product_level(logits: Logits) -> Tensor | float:
    """scale² · mean_i ‖q_i‖² · mean_j ‖k_j − k̄‖²: what the products would be if nothing in them cancelled."""
    if logits.given is not None:
        return 0.0
    assert logits.query is not None
    assert logits.key is not None
    queries = torch.linalg.vector_norm(widened(logits.query), dim=-1).double().square().mean(-1)
    step = block_elements(logits.device) // max(1, logits.key[0].numel())
    keys = torch.cat([_key_variance(widened(logits.key[sets])) for sets in spans(logits.key.shape[0], step)])
    return logits.scale**2 * queries * keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)


def _key_variance(key: Tensor) -> Tensor:
    """mean_j ‖k_j − k̄‖², (s, k)."""
    deviations = torch.linalg.vector_norm(key - key.mean(-2, keepdim=True), dim=(-2, -1)).double()
    return deviations.square() / key.shape[-2]


def _rows(block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    means = block.mean(-1)
    deviations = torch.linalg.vector_norm(block.sub_(means.unsqueeze(-1)), dim=-1)
    return torch.ones_like(means), means, deviations.square() / block.shape[-1]


def _masked_rows(block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each row sees a key, its mean and variance over the keys it sees; zero where it sees none."""
    # as numbers: filling and counting by a mask of bools takes ten times as long
    visible = torch.ne(block, -torch.inf, out=torch.empty_like(block))
    counts = visible.sum(-1)
    divisors = counts.clamp_min(1)
    means = block.nan_to_num_(nan=torch.nan, posinf=torch.inf, neginf=0).sum(-1) / divisors
    deviations = torch.linalg.vector_norm(block.sub_(means.unsqueeze(-1)).mul_(visible), dim=-1)
    return counts > 0, means, deviations.square() / divisors
