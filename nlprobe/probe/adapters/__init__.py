"""One adapter for each kind of attention; an adapter says where queries, keys, values, scale and output are."""

from nlprobe.probe.adapters.context import ContextAdapter
from nlprobe.probe.adapters.non_local import NonLocalAdapter
from nlprobe.probe.adapters.protocol import Adapter, Capture, Deliver, PairwiseCapture, SingleMapCapture

ADAPTERS: tuple[Adapter, ...] = (NonLocalAdapter(), ContextAdapter())
"""Tried in order; the first that matches a module takes it."""

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Capture",
    "ContextAdapter",
    "Deliver",
    "NonLocalAdapter",
    "PairwiseCapture",
    "SingleMapCapture",
]
