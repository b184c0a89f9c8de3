"""How much of each query's attention falls on chosen sets of keys: padding, objects. Streamed: no N×M matrix."""

import math

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from nlprobe.stats.logit_blocks import logit_blocks, logits_kernel, require_usable
from nlprobe.stats.logits import Logits
from nlprobe.stats.streaming import UNDERFLOW, block_elements, kernel, require_finite, spans, wide, widened

LEAST_WEIGHT = 1e-30
"""Weights under this part of the row's largest are zero in float32: denormal numbers are computed with slowly."""

CANCELLED = 1e-4
"""Σ_j |q_i·k_j| relative to ‖q_i‖ Σ_j ‖k_j‖ under which the rounding of float32 products shows: redo in float64."""


@logits_kernel
def softmax_key_mass(logits: Logits, keys: Shaped[Tensor, "s k m"]) -> Float64[Tensor, "s h n k"]:
    """Σ_{j chosen} ω_ij of the rows ω_i = softmax_j(s_ij), for each query and each set of keys.

    O(s·h·N·M·(d + k)), memory O(s·h·N·k) and one block.

    Args:
        logits: The maps' logits.
        keys: Sets of keys, which may overlap; the same for all heads and queries of an image. Numbers between 0 and 1
            are the part of a key that belongs to the set.

    Returns:
        Masses between 0 and 1; NaN for queries that see no key.

    Raises:
        NlprobeError: the logits hold NaN, or infinity that hides nothing.
    """
    require_usable(logits)
    s, h, n, _ = logits.shape
    columns = _columns(keys, logits.dtype, logits.device)
    result = torch.empty(s, h, n, keys.shape[1], dtype=torch.float64, device=logits.device)
    for sets, heads, rows, block in logit_blocks(logits, logits.dtype, centred=True):
        largest = block.amax(-1, keepdim=True)
        block.sub_(largest.clamp_min_(torch.finfo(block.dtype).min))
        if block.dtype == torch.float32:
            torch.threshold_(block, math.log(LEAST_WEIGHT), -torch.inf)
        result[sets, heads, rows] = _shares(block.exp_() @ columns[sets].unsqueeze(1))
    return result


@logits_kernel
def joined_key_mass(
    logits: Logits, unary: Float[Tensor, "s m"], weights: tuple[float, float], keys: Shaped[Tensor, "s k m"]
) -> Float64[Tensor, "s h n k"]:
    """Σ_{j chosen} |a_ij| / Σ_j |a_ij| of the rows a_i = w_p p_i + w_u u (see `unary_map_statistics`), in float64.

    O(s·h·N·M·(d + k)), memory O(s·h·N·k) and one block.

    Args:
        logits: s_ij, whose softmax p is.
        unary: u.
        weights: w_p and w_u.
        keys: As in `softmax_key_mass`.

    Raises:
        NlprobeError: logits or unary map hold NaN or infinity.
    """
    require_usable(logits)
    require_finite(unary=unary)
    s, h, n, _ = logits.shape
    columns = _columns(keys, torch.float64, logits.device)
    fixed = wide(unary)
    fixed = fixed / fixed.sum(-1, keepdim=True) * weights[1]
    result = torch.empty(s, h, n, keys.shape[1], dtype=torch.float64, device=logits.device)
    for sets, heads, rows, block in logit_blocks(logits, torch.float64, centred=True):
        block.sub_(block.amax(-1, keepdim=True)).exp_()
        block.mul_(weights[0] / block.sum(-1, keepdim=True)).add_(fixed[sets, None, None])
        result[sets, heads, rows] = _shares(block.abs_() @ columns[sets].unsqueeze(1))
    return result


@kernel
def dot_key_mass(
    query: Float[Tensor, "s n d"], key: Float[Tensor, "s m d"], keys: Shaped[Tensor, "s k m"]
) -> Float64[Tensor, "s n k"]:
    """Σ_{j chosen} |a_ij| / Σ_j |a_ij| of the signed rows a_ij = q_i·k_j / M of dot product attention.

    O(s·N·M·(d + k)) in float32 unless logits cancel, memory O(s·N·k) and one block.

    Args:
        query: Queries as they enter the product; half precision is widened first.
        key: Keys as they enter the product.
        keys: As in `softmax_key_mass`.

    Returns:
        Shares between 0 and 1; NaN for queries that are orthogonal to all keys.

    Raises:
        NlprobeError: query or key holds NaN or infinity.
    """
    require_finite(query=query, key=key)
    query, key = widened(query), widened(key)
    result = wide(query.new_empty(*query.shape[:2], keys.shape[1]))
    for at in range(query.shape[0]):
        masses, good = _dot_masses(query[at], key[at], keys[at])
        if not good:
            # by the largest entry, lest products of float64 over- or underflow
            q, k = wide(query[at]), wide(key[at])
            q = q / q.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
            masses, _ = _dot_masses(q, k / k.abs().amax().clamp_min(torch.finfo(k.dtype).tiny), keys[at])
        result[at] = masses
    return result


@kernel
def concat_key_mass(
    a: Float[Tensor, "s n"], b: Float[Tensor, "s m"], keys: Shaped[Tensor, "s k m"]
) -> Float64[Tensor, "s n k"]:
    """Σ_{j chosen} a_ij / Σ_j a_ij of the rows ReLU(a_i + b_j) of the concatenation mode, which are not negative.

    With the keys in falling order row i is active on the first c_i, where it sums to c_i a_i + Σ_{j ≤ c_i} b_j: sorted
    prefix sums give it for every set of keys. O((N + M) (log M + k)) in float64.

    Args:
        a: The queries' part w_q·θ(x_i) of the logit.
        b: The keys' part w_k·φ(x_j).
        keys: As in `softmax_key_mass`.

    Returns:
        Shares between 0 and 1; NaN for queries that are active on no key.

    Raises:
        NlprobeError: a or b holds NaN or infinity.
    """
    require_finite(a=a, b=b)
    a, b = wide(a), wide(b)
    largest = b.amax(-1, keepdim=True)
    alpha = a + largest
    beta, order = (largest - b).sort(-1)  # rising from 0; row i is alpha_i − beta_j where that is positive
    columns = _columns(keys, torch.float64, b.device).mT.gather(2, order.unsqueeze(1).expand(-1, keys.shape[1] + 1, -1))
    active = torch.searchsorted(beta, alpha)
    counts, sums = (torch.nn.functional.pad(c.cumsum(-1), (1, 0)) for c in (columns, columns * beta.unsqueeze(1)))
    at = active.unsqueeze(1).expand(-1, columns.shape[1], -1)
    masses = alpha.unsqueeze(1) * counts.gather(2, at) - sums.gather(2, at)  # (s, k + 1, n)
    return _shares(masses.clamp_min(0).mT)


def _columns(keys: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All keys, and each set of them, as columns of zeros and ones (s, m, 1 + k)."""
    everything = keys.new_ones(keys.shape[0], 1, keys.shape[2])
    return torch.cat((everything, keys), 1).to(device=device, dtype=dtype).mT.contiguous()


def _shares(masses: Tensor) -> Tensor:
    """The masses of the sets (..., k) over those of all keys, which come first; NaN where these are 0."""
    masses = wide(masses)
    return masses[..., 1:] / masses[..., :1]


def _dot_masses(query: Tensor, key: Tensor, keys: Tensor) -> tuple[Tensor, bool]:
    """The shares of one image's queries, and whether no row has lost its digits."""
    n, m = query.shape[0], key.shape[0]
    columns = _columns(keys.unsqueeze(0), query.dtype, query.device)[0]
    masses = query.new_empty(n, columns.shape[1])
    room = torch.empty(max(block_elements(query.device), m), dtype=query.dtype, device=query.device)
    for rows in spans(n, room.numel() // max(1, m)):
        block = room[: (rows.stop - rows.start) * m].view(-1, m)
        torch.mm(query[rows], key.mT, out=block)
        masses[rows] = block.abs_() @ columns
    lengths = torch.linalg.vector_norm(query, dim=-1) * torch.linalg.vector_norm(key, dim=-1).sum()
    enough = (masses[:, 0] >= CANCELLED * lengths) & (masses[:, 0] > UNDERFLOW) & torch.isfinite(masses[:, 0])
    good = query.dtype == torch.float64 or bool((enough | ~query.any(-1)).all())
    return _shares(masses), good
