"""What every kernel shares: no gradients, no autocast, float64, blocks that fit the cache, loud non-finite input."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from nlprobe.errors import NlprobeError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


UNDERFLOW = 1e-30
"""Squared float32 norms below this have lost digits, or all of themselves, to underflow."""


def kernel(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Run a kernel without gradients and with autocast off, whatever surrounds the call."""

    @functools.wraps(function)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
            return function(*args, **kwargs)

    return run


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, on its own device where that has float64 and on the CPU where it has not (MPS)."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.to(device=device, dtype=torch.float64)


def widened(tensor: Tensor) -> Tensor:
    """Half precision as float32; everything else as it is, on a device that has float64 (see `wide`)."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    dtype = tensor.dtype if tensor.dtype in (torch.float32, torch.float64) else torch.float32
    return tensor.to(device=device, dtype=dtype)


def require_finite(**tensors: Tensor) -> None:
    """Raise an error naming the first of the tensors that holds NaN or infinity.

    Raises:
        NlprobeError: If one of the tensors is not finite.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NlprobeError(
                f"`{name}` of shape {tuple(tensor.shape)} holds NaN or infinity",
                "look at what the model computed there: diverged weights, overflow in half precision, or a bad input",
            )


def block_elements(device: torch.device) -> int:
    """How many float64 numbers a block may have so that the next pass over it still finds it in the cache.

    1 MiB for each thread, half of a usual core's L2; on an accelerator the launches cost more than the cache saves.
    """
    return torch.get_num_threads() << 17 if device.type in ("cpu", "mps") else 1 << 24


def spans(total: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that cover `range(total)`, of nearly equal length."""
    pieces = max(1, -(-total // max(step, 1)))
    bounds = [total * piece // pieces for piece in range(pieces + 1)]
    for start, stop in itertools.pairwise(bounds):
        yield slice(start, stop)
