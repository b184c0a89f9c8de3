"""Captures of blocks with one map for all queries → the numbers of their records."""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from nlprobe.probe.adapters import SingleMapCapture
from nlprobe.probe.measurement import Measured, Measurement, Moments, Value
from nlprobe.probe.padding import Padding
from nlprobe.probe.rows import measure_placed_rows, moments_of
from nlprobe.stats import row_statistics, single_map_mass, single_map_statistics


def measure_single_map(
    capture: SingleMapCapture,
    quantities: Collection[str],
    centres: Mapping[str, Tensor],
    padding: Padding | None = None,
) -> Measured:
    """The numbers of a block whose one map serves all queries.

    Args:
        capture: What the adapter delivered.
        quantities: Which of the six are wanted.
        centres: Data-set means by quantity.
        padding: Which positions lie in the pictures, where somebody has said so.
    """
    rows: dict[str, Tensor] = {"input": capture.x}
    if capture.output is not None:
        rows["output"] = capture.output
    n = capture.x.shape[1]
    size: dict[str, Value] = {"n_queries": n, "n_keys": n, "groups": 1}
    measurements, moments = measure_placed_rows(rows, size, quantities, centres, padding)
    places: list[tuple[str, Tensor | int]] = [("all", n)]
    if padding is not None and padding.any:
        places.append(("valid", padding.queries.sum(-1)))
    if "att" in quantities:
        values = size | {"dim": n} | _map(capture, padding)
        measurements += [Measurement("att", ("0",), values | {"n_queries": count}, place) for place, count in places]
    if "output" in quantities and capture.shift is not None:
        energies = _energies(capture.x, padding, moments.get("input"))
        for (place, count), energy in zip(places, energies, strict=True):
            measurement, moments["output"] = _shared_output(capture.shift, energy, count)
            values = size | {"dim": capture.x.shape[2], "n_queries": count} | measurement
            measurements.append(Measurement("output", ("-",), values, place))
    return measurements, moments


def _map(capture: SingleMapCapture, padding: Padding | None) -> dict[str, Value]:
    """The map's own numbers, which are the same for any queries."""
    logits = capture.logits if capture.logits is not None else capture.x.new_zeros(capture.x.shape[:2])
    entropy, n_eff = single_map_statistics(logits)
    values: dict[str, Value] = {"avg_dist": 0.0, "zero_rows": 0, "by_construction": True}
    values |= {"entropy": entropy, "n_eff": n_eff}
    if padding is not None:
        values["padding_mass"] = single_map_mass(logits, ~padding.queries)
    return values


def _energies(x: Tensor, padding: Padding | None, inputs: Moments | None) -> list[Tensor]:
    """mean_i ‖x_i‖² over all positions, and with padding over the valid ones."""
    if padding is None or not padding.any:
        return [inputs.energy if inputs is not None else moments_of(row_statistics(x)).energy]
    squares = torch.linalg.vector_norm(x.float() if x.dtype.itemsize < 4 else x, dim=-1)
    squares = squares.to(torch.float64 if x.device.type != "mps" else torch.float32).square()
    valid = padding.queries.to(squares.dtype)
    return [squares.mean(-1), (squares * valid).sum(-1) / valid.sum(-1)]


def _shared_output(shift: Tensor, input_energy: Tensor, count: Tensor | int) -> tuple[dict[str, Value], Moments]:
    """Additive fusion: every row of the output is `shift`, so its distance is 0, or undefined where it is zero."""
    shift = shift.to(torch.float64) if shift.device.type != "mps" else shift.float()
    energy = shift.square().sum(-1)
    zero = energy == 0
    values: dict[str, Value] = {
        "avg_dist": torch.where(zero, math.nan, 0.0),
        "zero_rows": zero * count,
        "by_construction": True,
        "update": (energy / input_energy).sqrt(),
        "mean_map_error": torch.where(zero, math.nan, 0.0),
    }
    return values, Moments(shift, energy, torch.zeros_like(energy))
