"""Replacing non-local blocks whose queries do not matter by blocks with one map for all of them."""

from nlprobe.simplification.calibration import Calibration, calibrating
from nlprobe.simplification.configuration import with_blocks
from nlprobe.simplification.conversion import bottlenecked, simplified
from nlprobe.simplification.distillation import distilled
from nlprobe.simplification.footprint import latency_ratio, peak_bytes
from nlprobe.simplification.network import block_at, with_simplified

__all__ = [
    "Calibration",
    "block_at",
    "bottlenecked",
    "calibrating",
    "distilled",
    "latency_ratio",
    "peak_bytes",
    "simplified",
    "with_blocks",
    "with_simplified",
]
