"""Feature maps as rows of positions and back."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def to_rows(x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b n c"]:
    """The positions of a feature map in row-major order, one contiguous row of channels each.

    A view where the map is in a channels-last layout, else one copy.
    """
    return x.flatten(2).mT.contiguous()


def to_map(rows: Float[Tensor, "b n c"], spatial: Sequence[int]) -> Float[Tensor, "b c *spatial"]:
    """The inverse of `to_rows`, as a view in a channels-last layout."""
    return rows.mT.unflatten(2, tuple(spatial))


def add_rows(x: Float[Tensor, "b c *spatial"], rows: Float[Tensor, "b n c"]) -> Float[Tensor, "b c *spatial"]:
    """The feature map plus an update of its positions, in the memory layout of the map."""
    if x.device.type == "cpu" and x.is_contiguous():
        added: Tensor = AddRowsOnCpu.apply(x, rows)
        return added
    return x + to_map(rows, x.shape[2:])


class AddRowsOnCpu(torch.autograd.Function):
    """x + to_map(rows), several times faster than the plain sum on a CPU.

    torch transposes a matrix in blocks that fit the cache, but only one matrix at a time: an addition across two
    layouts, or a copy with a batch axis, walks down columns instead.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        """The sum; no memory beside it."""
        ctx.dtypes = x.dtype, rows.dtype
        total = torch.empty_like(x, dtype=torch.promote_types(x.dtype, rows.dtype))
        for image, update in zip(total.flatten(2), rows, strict=True):
            image.copy_(update.t())
        return total.add_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient itself, as a map and as rows; plain torch, differentiable any number of times."""
        x_dtype, rows_dtype = ctx.dtypes
        return gradient.to(x_dtype), gradient.flatten(2).mT.to(rows_dtype)
