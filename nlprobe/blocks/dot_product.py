"""Dot-product attention, (q k^T / M) v: linear, so the order of the products is free."""

import torch
from jaxtyping import Float
from torch import Tensor


def dot_product_attention(
    query: Float[Tensor, "b n d"], key: Float[Tensor, "b m d"], value: Float[Tensor, "b m dv"]
) -> Float[Tensor, "b n dv"]:
    """y_i = 1/M sum_j (q_i·k_j) v_j.

    Computed as q (k^T v) / M in O((N + M) d dv), or, with so few positions that it is cheaper, as (q k^T / M) v in
    O(N M (d + dv)); in that case the map has fewer entries than queries and keys together. Half precision is computed
    in float32, because a sum over the keys can leave its range.
    """
    queries, width = query.shape[1:]
    keys, value_width = value.shape[1:]
    result_dtype = query.dtype
    if result_dtype in (torch.float16, torch.bfloat16):
        query, key, value = query.float(), key.float(), value.float()
    if queries * keys * (width + value_width) < width * value_width * (queries + keys):
        output = (query @ key.mT / keys) @ value
    else:
        output = query @ (key.mT @ value / keys)
    return output.to(result_dtype)
