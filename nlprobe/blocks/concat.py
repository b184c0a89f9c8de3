"""Concat attention, ReLU(a_i + b_j) / M, by sorting and prefix sums.

Row i of the map is zero but for the keys with b_j > -a_i. In the order of descending b these are the first r_i keys, so
all rows read their sums from one table of prefix sums:

    sum_{j < r} (a_i + b_j) v_j = (a_i + b_{r-1}) P_{r-1} + U_{r-1},
    P_s = sum_{j <= s} v_j,    U_s = sum_{j <= s} (b_j - b_s) v_j = U_{s-1} + (b_{s-1} - b_s) P_{s-1}.

Centring every prefix at its own last key is what keeps this exact: no factor of a `v_j` is ever the small difference of
two large numbers, however far a and b lie from zero, and the active keys are exactly those of the written-out formula.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def concat_attention(
    a: Float[Tensor, "b n"], b: Float[Tensor, "b m"], value: Float[Tensor, "b m dv"]
) -> Float[Tensor, "b n dv"]:
    """y_i = 1/M sum_j ReLU(a_i + b_j) v_j.

    O((N + M)(log M + dv)) time and O((N + M) dv) memory, forward and backward. Differentiable once; the slope of ReLU
    at zero is zero, as in torch.
    """
    output: Tensor = ConcatAttention.apply(a, b, value)
    return output


class ConcatAttention(torch.autograd.Function):
    """The product with the concat map; its transpose, which the backward needs, is the same with a and b swapped."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, value: Tensor) -> Tensor:
        """The output, (b, n, dv)."""
        weighted, active = _sums_over_active(a, b, value)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(a, b, value, active)
        return weighted.div_(b.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of a, b and value."""
        a, b, value, active = ctx.saved_tensors
        gradient = gradient / b.shape[1]
        value_gradient, active_gradient = _sums_over_active(b, a, gradient)
        a_gradient = (gradient * active).sum(-1)
        b_gradient = (value * active_gradient).sum(-1)
        return a_gradient, b_gradient, value_gradient


def _sums_over_active(a: Tensor, b: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """For each i, sum_j ReLU(a_i + b_j) v_j and sum_j [a_i + b_j > 0] v_j, both (b, n, dv)."""
    # -b ascending is b descending, and -b_j < a_i is a_i + b_j > 0 to the last bit.
    threshold, order = (-b).sort(dim=1)
    ordered = _take(value, order)
    plain = ordered.cumsum(1)  # P
    gaps = threshold.diff(dim=1).unsqueeze(2)
    centred = torch.empty_like(plain)  # U
    # Zero, or NaN where a key or a value is not finite: the written-out product would spread it to every row, too.
    centred[:, 0] = 0 * (plain[:, -1] + threshold[:, -1:])
    torch.mul(gaps, plain[:, :-1], out=centred[:, 1:])
    centred = centred.cumsum(1)

    count = torch.searchsorted(threshold, a.contiguous())  # (b, n): how many keys are active
    last = (count - 1).clamp(min=0)
    some = count > 0
    plain = _take(plain, last)
    excess = torch.where(some, a - threshold.gather(1, last), 0.0)
    weighted = torch.addcmul(_take(centred, last), excess.unsqueeze(2), plain)
    return weighted, plain.mul_(some.unsqueeze(2))


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Row `index[b, i]` of `rows[b]`, for all i: (b, m, c), (b, n) -> (b, n, c)."""
    batch, length, width = rows.shape
    offset = torch.arange(batch, device=rows.device).unsqueeze(1) * length
    return rows.reshape(batch * length, width).index_select(0, (index + offset).flatten()).view(batch, -1, width)
