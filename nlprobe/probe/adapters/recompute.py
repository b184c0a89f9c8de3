"""Pieces with which adapters recompute a block from its input, independently of its forward."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks import RowTransform


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


def normed(rows: Float[Tensor, "b n c"], norm: nn.Module) -> Float[Tensor, "b n c"]:
    """The batch norm of rows in at least single precision, its running statistics left alone; rows without one."""
    rows = at_least_single(rows)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return rows
    flat = rows.flatten(0, 1)
    weight, bias = at_least_single(norm.weight), at_least_single(norm.bias)
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return F.batch_norm(flat, None, None, weight, bias, training=True, eps=norm.eps).view(rows.shape)
    mean, variance = at_least_single(norm.running_mean), at_least_single(norm.running_var)
    return F.batch_norm(flat, mean, variance, weight, bias, training=False, eps=norm.eps).view(rows.shape)


def row_transform(rows: Float[Tensor, "b n c"], layer: RowTransform) -> Float[Tensor, "b n w"]:
    """A 1x1 convolution with its norm and activation, without calling the module (and its hooks)."""
    transformed = normed(linear(at_least_single(rows), layer.linear), layer.norm)
    if isinstance(layer.activation, nn.ReLU):
        return F.relu(transformed)
    if isinstance(layer.activation, nn.LeakyReLU):
        return F.leaky_relu(transformed, layer.activation.negative_slope)
    return transformed


def pyramid(rows: Float[Tensor, "b n c"], spatial: tuple[int, ...], sizes: tuple[int, ...]) -> Float[Tensor, "b m c"]:
    """The means of rows over the cells of several grids, cell by cell: ⌊a L/s⌋ to ⌈(a + 1) L/s⌉ along each side."""
    height, width = spatial
    grid = rows.unflatten(1, (height, width))
    cells = [
        grid[:, a * height // s : -(-(a + 1) * height // s), b * width // s : -(-(b + 1) * width // s)].mean((1, 2))
        for s in sizes
        for a in range(s)
        for b in range(s)
    ]
    return torch.stack(cells, 1)


def fusion_errors(
    fuse: RowTransform, context: Tensor, rows: Tensor, fused: Tensor, z: Tensor | None
) -> dict[str, float]:
    """How far a fusion is from fuse([context, x]), and the block's result from it.

    Args:
        fuse: The transform that the block applied.
        context: The context that it was to fuse, as rows.
        rows: x as rows.
        fused: What `fuse` gave.
        z: The block's result; None where dropout came between.
    """
    both = torch.cat([at_least_single(context), at_least_single(rows)], 2)
    found = {"fusion": relative_error(row_transform(both, fuse), fused)}
    return found if z is None else found | {"z": relative_error(fused, rows_of(z))}


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
