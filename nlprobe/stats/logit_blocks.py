"""Blocks of logits in one reused buffer, for whatever looks at a whole map once."""

import functools
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats.logits import Logits
from nlprobe.stats.streaming import block_elements, require_finite, spans

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def logits_kernel(
    function: Callable[Concatenate[Logits, _Parameters], _Result],
) -> Callable[Concatenate[Logits, _Parameters], _Result]:
    """Run a function of logits without gradients and with autocast off, whatever surrounds the call."""

    @functools.wraps(function)
    def run(logits: Logits, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            return function(logits, *args, **kwargs)

    return run


def require_usable(logits: Logits) -> None:
    """Raise an error naming the first part of the logits that no softmax can take.

    Queries and keys must be finite; biases and given logits may hold −∞, which hides a key.

    Raises:
        NlprobeError: If queries or keys hold NaN or infinity, or bias or given logits NaN or +∞.
    """
    products = {"query": logits.query, "key": logits.key} if logits.given is None else {}
    for name, part in products.items():
        # the sum is finite in nearly every case where all of them are, and seven times as fast
        if part is not None and not bool(torch.isfinite(part.sum())):
            require_finite(**{name: part})
    sums = {"given": logits.given, "bias": None if logits.mask is None else logits.mask.bias}
    for name, part in sums.items():
        # the maximum of a tensor with NaN is NaN, and needs no memory
        if part is not None and part.numel() and not bool(part.amax() < torch.inf):
            raise NlprobeError(
                f"the logits' `{name}` of shape {tuple(part.shape)} holds NaN or +∞",
                "look at what the model computed there: diverged weights, overflow in half precision, or a bad input",
            )


def logit_blocks(
    logits: Logits, dtype: torch.dtype, *, centred: bool = False
) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """All logits, block by block: short maps several sets and heads at a time, long ones some rows of one head.

    O(N·M·d) for each set and head; memory O(M·d) for the keys of one block, and the block.

    Args:
        logits: What to form.
        dtype: Precision of the products and of the blocks.
        centred: See `Logits.prepare`.

    Yields:
        Which sets, heads and queries, and their logits (g, hh, r, m), −∞ where a key is hidden: good, and free to be
        overwritten, until the next block is asked for.
    """
    s, h, n, m = logits.shape
    size = block_elements(logits.device)
    buffer = torch.empty(max(size, m), dtype=dtype, device=logits.device)
    for sets in spans(s, size // max(1, h * n * m)):
        for heads in spans(h, size // max(1, n * m)):
            prepared = logits.prepare(sets, heads, dtype, centred=centred)
            maps = (sets.stop - sets.start) * (heads.stop - heads.start)
            for rows in spans(n, size // max(1, maps * m)):
                shape = (sets.stop - sets.start, heads.stop - heads.start, rows.stop - rows.start, m)
                block = buffer[: maps * shape[2] * m].view(shape)
                prepared.fill(rows, block)
                yield sets, heads, rows, block
