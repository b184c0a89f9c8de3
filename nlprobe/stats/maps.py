"""Attention maps by the written-out formulas: chosen rows, the mean row, and A·V; for pictures and for the audit.

They share nothing with the kernels that measure the maps, so that one can be held against the other.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.stats.streaming import kernel, require_finite, spans, widened

INSTANTIATIONS = ("gaussian", "embedded_gaussian", "dot_product", "concat")
BLOCK_ELEMENTS = 1 << 19
"""Elements of one block of rows: 2 MiB in float32."""

Weights = tuple[Float[Tensor, " d"], Float[Tensor, " d"]]


@kernel
def map_rows(
    instantiation: str,
    query: Float[Tensor, "*batch n d"],
    key: Float[Tensor, "*batch m d"],
    scale: float,
    rows: Int64[Tensor, " r"],
    weights: Weights | None = None,
) -> Float[Tensor, "*batch r m"]:
    """The attention rows ω_i of chosen queries (section 3.1).

    softmax_j(scale · q_i·k_j), q_i·k_j / M, or ReLU(w_q·q_i + w_k·k_j) / M, by instantiation. O(r·M·d).

    Args:
        instantiation: One of "gaussian", "embedded_gaussian", "dot_product", "concat".
        query: Queries as they enter the product.
        key: Keys as they enter the product.
        scale: Factor on the logits, softmax modes only.
        rows: Indices of queries.
        weights: (w_q, w_k), concat only.

    Returns:
        The rows, in float64 for float64 input, else in float32.

    Raises:
        ConfigError: instantiation is not one of the four, or concat has no weights.
        NlprobeError: query or key holds NaN or infinity.
    """
    require_finite(query=query, key=key)
    return _rows(instantiation, widened(query[..., rows, :]), widened(key), scale, weights)


@kernel
def mean_map(
    instantiation: str,
    query: Float[Tensor, "*batch n d"],
    key: Float[Tensor, "*batch m d"],
    scale: float,
    weights: Weights | None = None,
) -> Float[Tensor, "*batch m"]:
    """The mean of the attention rows over all queries, streamed in blocks of queries. O(N·M·d), memory O(N + M).

    Args:
        instantiation: See `map_rows`.
        query: Queries as they enter the product.
        key: Keys as they enter the product.
        scale: Factor on the logits, softmax modes only.
        weights: (w_q, w_k), concat only.

    Returns:
        mean_i ω_i, in float64.

    Raises:
        ConfigError: instantiation is not one of the four, or concat has no weights.
        NlprobeError: query or key holds NaN or infinity.
    """
    require_finite(query=query, key=key)
    total = torch.zeros(*key.shape[:-1], dtype=torch.float64, device=widened(key[..., :0]).device)
    sums = total.view(-1, key.shape[-2])
    for sets, _, block in _blocks(instantiation, query, key, scale, weights):
        sums[sets] += block.sum(-2)
    return total / query.shape[-2]


@kernel
def apply_map(
    instantiation: str,
    query: Float[Tensor, "*batch n d"],
    key: Float[Tensor, "*batch m d"],
    value: Float[Tensor, "*batch m dv"],
    scale: float,
    weights: Weights | None = None,
) -> Float[Tensor, "*batch n dv"]:
    """A·V recomputed by the written-out formula of section 3.1, streamed in blocks of queries, for the audit.

    O(N·M·(d + d_v)), memory O(N·d_v) and one block.

    Args:
        instantiation: See `map_rows`.
        query: Queries as they enter the product.
        key: Keys as they enter the product.
        value: Values as they enter the product.
        scale: Factor on the logits, softmax modes only.
        weights: (w_q, w_k), concat only.

    Returns:
        y_i = Σ_j ω_ij v_j, in float64 for float64 input, else in float32.

    Raises:
        ConfigError: instantiation is not one of the four, or concat has no weights.
    """
    value = widened(value)
    values = value.reshape(-1, *value.shape[-2:])
    result = torch.empty(*query.shape[:-1], value.shape[-1], dtype=value.dtype, device=value.device)
    rows = result.view(-1, *result.shape[-2:])
    for sets, span, block in _blocks(instantiation, query, key, scale, weights):
        rows[sets, span] = block.to(values.dtype) @ values[sets]
    return result


def _blocks(
    instantiation: str, query: Tensor, key: Tensor, scale: float, weights: Weights | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of rows of the maps: which sets of the flattened batch, which queries, and the rows (g, r, m)."""
    query, key = query.reshape(-1, *query.shape[-2:]), key.reshape(-1, *key.shape[-2:])
    n, m = query.shape[-2], key.shape[-2]
    for sets in spans(query.shape[0], BLOCK_ELEMENTS // max(1, n * m)):
        keys = widened(key[sets])
        for span in spans(n, BLOCK_ELEMENTS // max(1, m)):
            yield sets, span, _rows(instantiation, widened(query[sets, span]), keys, scale, weights)


def _rows(instantiation: str, query: Tensor, key: Tensor, scale: float, weights: Weights | None) -> Tensor:
    if instantiation in ("gaussian", "embedded_gaussian"):
        return torch.softmax(scale * (query @ key.mT), dim=-1)
    if instantiation == "dot_product":
        return query @ key.mT / key.shape[-2]
    if instantiation == "concat":
        if weights is None:
            raise ConfigError("the instantiation `concat` needs `weights`", "give (w_q, w_k)")
        weight_query, weight_key = (weight.to(query) for weight in weights)
        logits = (query @ weight_query).unsqueeze(-1) + (key @ weight_key).unsqueeze(-2)
        return torch.relu(logits) / key.shape[-2]
    raise ConfigError(
        f"unknown instantiation `{instantiation}`", "choose one of " + ", ".join(f"`{name}`" for name in INSTANTIATIONS)
    )
