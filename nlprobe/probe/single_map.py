"""Captures of blocks with one map for all queries → the numbers of their records."""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from nlprobe.probe.adapters import SingleMapCapture
from nlprobe.probe.measurement import Measured, Measurement, Moments, Value
from nlprobe.probe.rows import measure_rows, moments_of
from nlprobe.stats import row_statistics, single_map_statistics


def measure_single_map(
    capture: SingleMapCapture, quantities: Collection[str], centres: Mapping[str, Tensor]
) -> Measured:
    """The numbers of a block whose one map serves all queries.

    Args:
        capture: What the adapter delivered.
        quantities: Which of the six are wanted.
        centres: Data-set means by quantity.
    """
    rows: dict[str, Tensor] = {"input": capture.x}
    if capture.output is not None:
        rows["output"] = capture.output
    n = capture.x.shape[1]
    size: dict[str, Value] = {"n_queries": n, "n_keys": n, "groups": 1}
    measurements, moments = measure_rows(rows, size, quantities, centres)
    if "att" in quantities:
        logits = capture.logits if capture.logits is not None else capture.x.new_zeros(capture.x.shape[:2])
        entropy, n_eff = single_map_statistics(logits)
        fixed = {"avg_dist": 0.0, "zero_rows": 0, "by_construction": True}
        measurements.append(Measurement("att", ("0",), size | fixed | {"dim": n, "entropy": entropy, "n_eff": n_eff}))
    if "output" in quantities and capture.shift is not None:
        measurement, moment = _shared_output(capture.x, capture.shift, moments.get("input"))
        measurements.append(Measurement("output", ("-",), size | {"dim": capture.x.shape[2]} | measurement))
        moments["output"] = moment
    return measurements, moments


def _shared_output(x: Tensor, shift: Tensor, inputs: Moments | None) -> tuple[dict[str, Value], Moments]:
    """Additive fusion: every row of the output is `shift`, so its distance is 0, or undefined where it is zero."""
    shift = shift.to(torch.float64) if x.device.type != "mps" else shift.float()
    energy = shift.square().sum(-1)
    zero = energy == 0
    inputs = inputs if inputs is not None else moments_of(row_statistics(x))
    values: dict[str, Value] = {
        "avg_dist": torch.where(zero, math.nan, 0.0),
        "zero_rows": torch.where(zero, x.shape[1], 0),
        "by_construction": True,
        "update": (energy / inputs.energy).sqrt(),
        "mean_map_error": torch.where(zero, math.nan, 0.0),
    }
    return values, Moments(shift, energy, torch.zeros_like(energy))
