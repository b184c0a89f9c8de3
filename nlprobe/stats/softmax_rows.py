"""Softmax maps by the written-out formula, of any logits: chosen rows, mean row, A·V; for pictures and the audit.

They share nothing with the kernels that measure the maps but the logits, so that one can be held against the other.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.stats.logit_blocks import logit_blocks, logits_kernel, require_usable
from nlprobe.stats.logits import Logits
from nlprobe.stats.streaming import block_elements, spans, widened


@logits_kernel
def softmax_rows(logits: Logits, rows: Int64[Tensor, " r"]) -> Float[Tensor, "s h r m"]:
    """The attention rows of chosen queries: ω_ij = exp(s_ij) / Σ_j exp(s_ij) over the keys that query i may see.

    Section 3.1 (embedded Gaussian), with what the model adds to the logits. A row that sees no key is zero.
    O(s·h·r·m·d).

    Args:
        logits: The maps' logits.
        rows: Indices of queries, from 0; any order, repeated as often as wanted.

    Returns:
        The rows, in float64 for float64 logits, else in float32.

    Raises:
        ConfigError: If a row is not the index of a query.
        NlprobeError: If the logits hold NaN, or infinity that hides nothing.
    """
    require_usable(logits)
    s, h, n, m = logits.shape
    rows = rows.to(logits.device)
    if bool(((rows < 0) | (rows >= n)).any()):
        raise ConfigError(f"`rows` {rows.tolist()} are not all indices of queries", f"choose from 0 to {n - 1}")
    result = torch.empty(s, h, len(rows), m, dtype=logits.dtype, device=logits.device)
    for sets in spans(s, block_elements(logits.device) // max(1, h * len(rows) * m)):
        logits.prepare(sets, slice(0, h), logits.dtype).fill(rows, result[sets])
        result[sets] = _softmax(result[sets])
    return result


@logits_kernel
def softmax_mean_map(logits: Logits) -> Float[Tensor, "s h m"]:
    """The mean of the attention rows over the queries that see any key; zero where no query does.

    O(s·h·n·m·d), memory O(s·h·m) and one block.

    Args:
        logits: The maps' logits.

    Returns:
        mean_i ω_i, in float64.

    Raises:
        NlprobeError: If the logits hold NaN, or infinity that hides nothing.
    """
    require_usable(logits)
    s, h, _, m = logits.shape
    total = torch.zeros(s, h, m, dtype=torch.float64, device=logits.device)
    seeing = torch.zeros(s, h, 1, dtype=torch.float64, device=logits.device)
    for sets, heads, _, block in logit_blocks(logits, logits.dtype):
        seeing[sets, heads] += (~_blind(block)).sum(-2)
        total[sets, heads] += _softmax(block).sum(-2)
    return total / seeing.clamp_min(1)


@logits_kernel
def softmax_apply(logits: Logits, value: Float[Tensor, "s k m dv"]) -> Float[Tensor, "s h n dv"]:
    """A·V by the written-out formula y_i = Σ_j ω_ij v_j; a query that sees no key gets zero.

    O(s·h·n·m·(d + d_v)), memory O(s·h·n·d_v) and one block.

    Args:
        logits: The maps' logits.
        value: Values as they enter the product; with fewer heads than queries have, head i of the queries takes head
            i // (h / k) of the values, as with keys.

    Returns:
        The products, in float64 where logits or values are float64, else in float32.

    Raises:
        ConfigError: If the heads of the queries are no multiple of those of the values.
        NlprobeError: If the logits hold NaN, or infinity that hides nothing.
    """
    require_usable(logits)
    s, h, n, _ = logits.shape
    if h % value.shape[1]:
        raise ConfigError(
            f"{h} heads of queries cannot share `value` of shape {tuple(value.shape)} evenly",
            "give values (sets, heads, keys, d_v) whose heads divide the queries' heads",
        )
    value = widened(value)
    dtype = torch.promote_types(logits.dtype, value.dtype)
    group = torch.arange(h, device=value.device) // (h // value.shape[1])
    result = torch.empty(s, h, n, value.shape[-1], dtype=dtype, device=logits.device)
    for sets, heads, rows, block in logit_blocks(logits, dtype):
        if rows.start == 0:
            values = value[sets, group[heads]].to(dtype)
        result[sets, heads, rows] = _softmax(block) @ values
    return result


def _blind(block: Tensor) -> Tensor:
    """Which rows see no key, (g, h, r, 1)."""
    return block.amax(-1, keepdim=True) == -torch.inf


def _softmax(block: Tensor) -> Tensor:
    return torch.softmax(block, -1).masked_fill_(_blind(block), 0)
