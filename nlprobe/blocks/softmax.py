"""Softmax attention, softmax(scale * q k^T) v, in memory linear in the number of positions.

Two routes compute the same thing. Where the device has a fused kernel for the operands it is taken, in a way that turns
a silent fall-back to the kernel that builds the map into an exception. Everything else - queries and values of
different width as in the Gaussian instantiation, float64 on CUDA, devices without such a kernel - is streamed over
blocks of queries, with a backward that computes the maps again instead of keeping them.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]

# Entries of the block of the map that is held at a time: a few times the second-level cache of a core, where a CPU is
# fastest; wide enough to keep an accelerator busy.
CPU_ENTRIES = 2**21
ACCELERATOR_ENTRIES = 2**24

# Logits this far below a row's largest are raised to it. A peaked map is full of weights that underflow to denormal
# numbers, with which a CPU multiplies many times slower; exp(-60) keeps clear of them, and is no less invisible beside
# the row's sum of 1 than what it stands for.
SMALLEST_LOGIT = {torch.float32: -60.0, torch.float64: -600.0}


def softmax_attention(
    query: Float[Tensor, "b n d"], key: Float[Tensor, "b m d"], value: Float[Tensor, "b m dv"], scale: float
) -> Float[Tensor, "b n dv"]:
    """y_i = sum_j softmax_j(scale * q_i·k_j) v_j.

    Logits and sums are kept in float32 for half-precision operands. O(N M (d + dv)) time and O((N + M)(d + dv)) memory,
    forward and backward. Differentiable once.
    """
    if has_fused_kernel(query, key, value):
        with sdpa_kernel(FUSED):
            output = F.scaled_dot_product_attention(
                query.unsqueeze(1).contiguous(),  # (b, 1, n, d): one head
                key.unsqueeze(1).contiguous(),
                value.unsqueeze(1).contiguous(),
                scale=scale,
            ).squeeze(1)
        # The kernel for CPUs returns zeros for a query that is NaN, as if all its keys were masked. Say NaN instead.
        return output + 0 * query.detach().amax(-1, keepdim=True) if query.device.type == "cpu" else output
    streamed: Tensor = StreamedSoftmax.apply(query, key, value, scale)
    return streamed


def has_fused_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether a kernel that never builds the map takes these operands."""
    if query.shape[-1] != value.shape[-1] or 0 in query.shape or 0 in key.shape:
        return False
    if query.device.type == "cpu":
        return True
    if query.device.type != "cuda":
        return False
    with sdpa_kernel(FUSED):
        heads = (query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1))
        parameters = SDPAParams(*heads, None, 0.0, False, False)
        return can_use_flash_attention(parameters) or can_use_efficient_attention(parameters)


class StreamedSoftmax(torch.autograd.Function):
    """softmax(scale * q k^T) v over blocks of queries; the backward computes each block of the map again.

    Kept for the backward: the operands, the output and the logarithm of each row's softmax denominator, so the map is
    exp(scale * q_i·k_j - lse_i) without a second pass for the denominators.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """The output; O(entries of a block) memory beside it and the operands."""
        wide = _wide_dtype(query.dtype)
        wide_key, wide_value = key.to(wide), value.to(wide)
        output = value.new_empty(*query.shape[:2], value.shape[2])
        log_denominator = query.new_empty(*query.shape[:2], 1, dtype=wide)
        buffer, smallest = _buffer(query, key, wide), SMALLEST_LOGIT[wide]
        for images, rows in _blocks(query, key):
            weights = _logits(buffer, query[images, rows], wide_key[images], scale)
            largest = weights.amax(-1, keepdim=True)
            weights.sub_(largest).clamp_(min=smallest).exp_()
            denominator = weights.sum(-1, keepdim=True)
            output[images, rows] = torch.bmm(weights, wide_value[images]).div_(denominator)
            log_denominator[images, rows] = denominator.log_().add_(largest)
        ctx.save_for_backward(query, key, value, output, log_denominator)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The gradients of query, key and value, in the same blocks."""
        query, key, value, output, log_denominator = ctx.saved_tensors
        wide = log_denominator.dtype
        wide_key, wide_value = key.to(wide), value.to(wide)
        query_gradient = torch.empty_like(query)
        key_gradient, value_gradient = torch.zeros_like(wide_key), torch.zeros_like(wide_value)
        buffers = _buffer(query, key, wide), _buffer(query, key, wide)
        for images, rows in _blocks(query, key):
            wide_query, wide_gradient = query[images, rows].to(wide), gradient[images, rows].to(wide)
            weights = _logits(buffers[0], wide_query, wide_key[images], ctx.scale)
            weights.sub_(log_denominator[images, rows]).clamp_(min=SMALLEST_LOGIT[wide]).exp_()
            value_gradient[images].baddbmm_(weights.mT, wide_gradient)
            # d logits = weights * (gradient·v_j - gradient·y_i); the second term is the row's mean of the first
            logit_gradient = _logits(buffers[1], wide_gradient, wide_value[images], 1.0)
            logit_gradient.sub_((wide_gradient * output[images, rows]).sum(-1, keepdim=True)).mul_(weights)
            query_gradient[images, rows] = torch.bmm(logit_gradient, wide_key[images]).mul_(ctx.scale)
            key_gradient[images].baddbmm_(logit_gradient.mT, wide_query, alpha=ctx.scale)
        return query_gradient, key_gradient.to(key.dtype), value_gradient.to(value.dtype), None


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _block_shape(query: Tensor, key: Tensor) -> tuple[int, int]:
    """Images and queries of one block: at least 64 queries of an image before a second image joins."""
    entries = CPU_ENTRIES if query.device.type == "cpu" else ACCELERATOR_ENTRIES
    (batch, queries), keys = query.shape[:2], max(key.shape[1], 1)
    images = min(max(entries // (64 * keys), 1), max(batch, 1))
    return images, min(max(entries // (images * keys), 1), max(queries, 1))


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    images, rows = _block_shape(query, key)
    for image in range(0, query.shape[0], images):
        for row in range(0, query.shape[1], rows):
            yield slice(image, image + images), slice(row, row + rows)


def _buffer(query: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
    images, rows = _block_shape(query, key)
    return query.new_empty(images * rows * key.shape[1], dtype=dtype)


def _logits(buffer: Tensor, query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The scaled logits of one block, written into `buffer`."""
    shape = (query.shape[0], query.shape[1], key.shape[1])
    block = buffer[: shape[0] * shape[1] * shape[2]].view(shape)
    return torch.baddbmm(block, query.to(key.dtype), key.mT, beta=0, alpha=scale, out=block)
