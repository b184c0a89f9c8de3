"""Activations by class: a network and a stream of labelled images → numbers for each channel (Figures 6 and 7)."""

from nlprobe.activations.collect import Activations, Collected, collect
from nlprobe.activations.measure import measure_class_activations, measure_selectivity, with_differences
from nlprobe.activations.readings import Reading, modules_at, residual_blocks, transforms

__all__ = [
    "Activations",
    "Collected",
    "Reading",
    "collect",
    "measure_class_activations",
    "measure_selectivity",
    "modules_at",
    "residual_blocks",
    "transforms",
    "with_differences",
]
