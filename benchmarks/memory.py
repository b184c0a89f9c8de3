"""The peak of the memory that a call needs beyond what is there before it."""

import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def peak_extra_bytes(function: Callable[[], Any]) -> int:
    """Bytes by which the peak of resident memory during the call passes what was resident before.

    On Linux the kernel's high-water mark is reset first, so earlier peaks do not hide this one; elsewhere the mark of
    the whole process is read, and the first call in a process is the one that counts. On CUDA it is the allocator's
    own peak. Memory that the C library kept from earlier calls is not seen: measure in a fresh process.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")
        before = _status("VmRSS")
        function()
        return max(_status("VmHWM") - before, 0)
    before = _peak()
    function()
    return _peak() - before


def _status(field: str) -> int:
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
