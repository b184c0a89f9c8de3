"""How long a network takes and how much memory it holds, set against another on the same input."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PAIRS = 9


def latency_ratio(first: Callable[[], object], second: Callable[[], object], pairs: int = PAIRS) -> float:
    """Median over interleaved pairs of how long `second` takes over how long `first` takes."""
    first()
    second()
    ratios = []
    for pair in range(pairs):
        order = (first, second) if pair % 2 else (second, first)
        seconds = {}
        for function in order:
            started = time.perf_counter()
            function()
            _wait()
            seconds[function] = time.perf_counter() - started
        ratios.append(seconds[second] / seconds[first])
    return median(ratios)


def peak_bytes(function: Callable[[], object]) -> int:
    """The largest sum of bytes of tensors made during a call and alive together; what kernels hold inside is not in it.

    Counted from the operations themselves, so it is the same on every device and in every run.
    """
    meter = _Meter()
    with meter:
        function()
    return meter.peak


class _Meter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {
            StorageWeakRef(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                reference = StorageWeakRef(leaf.untyped_storage())
                if reference not in before:
                    self._alive.setdefault(reference, leaf.untyped_storage().nbytes())
        self._alive = {reference: size for reference, size in self._alive.items() if not reference.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
