"""Pieces with which adapters recompute a block from its input, independently of its forward."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def rows_of(grid: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b n c"]:
    """Positions as rows, in row-major order; a view where the layout allows one."""
    return grid.flatten(2).mT


def at_least_single(tensor: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def linear(rows: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """`layer`, which may be a 1×1 convolution, applied to `rows` in at least single precision.

    The module itself is not called, nor are its hooks.
    """
    bias = None if layer.bias is None else at_least_single(layer.bias)
    return F.linear(rows, at_least_single(layer.weight).flatten(1), bias)


def relative_error(expected: Tensor, found: Tensor) -> float:
    """‖found − expected‖_F / ‖expected‖_F; 0 where both are zero, infinite where the shapes differ."""
    if expected.shape != found.shape:
        return float("inf")
    expected, found = expected.double(), found.double()
    difference = torch.linalg.vector_norm(found - expected)
    size = torch.linalg.vector_norm(expected)
    if difference == 0:
        return 0.0
    return float(difference / size)
