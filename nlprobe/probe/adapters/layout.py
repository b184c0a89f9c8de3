"""A model's own shapes → sets (images, windows), heads, positions, channels; and its masks in one form."""

import functools
import math
import operator

import torch
from torch import Tensor

from nlprobe.errors import CaptureError
from nlprobe.probe.watch import Product
from nlprobe.stats.masks import Mask

HIDDEN_BELOW = -60000.0


def sets_and_heads(tensor: Tensor, heads: int | None) -> Tensor:
    """(..., n, c) → (s, h, n, c): the last leading dimension holds the heads, those before it the sets.

    Args:
        tensor: Queries, keys, values or A·V.
        heads: How many heads the one leading dimension of a 3-D tensor holds beside the sets; None: none.

    Raises:
        CaptureError: the heads do not divide it.
    """
    if tensor.dim() == 2:
        return tensor[None, None]
    if tensor.dim() == 3:
        if heads is None or heads == 1:
            return tensor.unsqueeze(1)
        if tensor.shape[0] % heads:
            raise CaptureError(
                f"a product over {tensor.shape[0]} sets does not divide into {heads} heads",
                "say how many heads there are",
            )
        return tensor.unflatten(0, (-1, heads))
    return tensor.flatten(0, -4) if tensor.dim() > 4 else tensor


def mask_of(product: Product, heads: int | None, hidden_below: float = HIDDEN_BELOW) -> Mask | None:
    """Bias and hidden keys of a product, as the kernels take them; None where there are none.

    Biases that hold nothing but zeros and hidden keys become part of `visible`; several others are added up.

    Args:
        product: What the model computed.
        heads: As in `sets_and_heads`.
        hidden_below: The bias at and under which a key counts as hidden.
    """
    source = product.context
    biases = [_four_dimensional(bias, source, heads) for bias in product.biases]
    visible = [_four_dimensional(mask, source, heads) for mask in product.visible]
    if len(biases) > 1:
        plain = [bool(((bias == 0) | (bias <= hidden_below)).all()) for bias in biases]
        visible += [bias > hidden_below for bias, only in zip(biases, plain, strict=True) if only]
        biases = [bias for bias, only in zip(biases, plain, strict=True) if not only]
    bias = functools.reduce(operator.add, biases) if biases else None
    seen = functools.reduce(operator.and_, visible) if visible else None
    if bias is None and seen is None and not product.causal:
        return None
    if bias is not None and bias.dtype in (torch.float16, torch.bfloat16):
        bias = bias.float()
    return Mask(bias, seen, 0 if product.causal else None, hidden_below)


def _four_dimensional(mask: Tensor, source: Tensor, heads: int | None) -> Tensor:
    """A mask broadcastable to (..., n, m) as (s or 1, h or 1, n or 1, m or 1)."""
    leading = source.shape[:-2]
    while mask.dim() < len(leading) + 2:
        mask = mask.unsqueeze(0)
    if len(leading) <= 1:
        if not leading or heads is None or heads == 1:
            return mask.unsqueeze(1) if leading else mask[None, None]
        return mask.unsqueeze(1) if mask.shape[0] == 1 else mask.unflatten(0, (-1, heads))
    sets = mask.shape[:-3]
    if math.prod(sets) == 1:
        return mask.reshape(1, *mask.shape[-3:])
    return mask.expand(*leading[:-1], *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])


def as_rows(tensor: Tensor, layout: str) -> Tensor:
    """A module's input or output as rows (s, n, c).

    Args:
        tensor: In the module's own layout.
        layout: Its axes: "b n c", "n b c", "n c" (no batch), "b h w c" or "b c h w".
    """
    if layout == "n b c":
        return tensor.transpose(0, 1)
    if layout == "n c":
        return tensor.unsqueeze(0)
    if layout == "b h w c":
        return tensor.flatten(1, -2)
    if layout == "b c h w":
        return tensor.flatten(2).mT
    return tensor
