"""One capture → the numbers of its records; every tensor that comes out has one value for each image."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nlprobe.probe.adapters import Capture, PairwiseCapture, SingleMapCapture
from nlprobe.stats import (
    MapStatistics,
    RowStatistics,
    avg_dist,
    concat_map_statistics,
    concat_product_statistics,
    dot_map_statistics,
    product_statistics,
    row_statistics,
    single_map_statistics,
    softmax_map_statistics,
)

Value = Tensor | float | int | bool
Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Measurement:
    """The values of one quantity at one call: a number for all images, or a tensor with one value for each."""

    quantity: str
    head: str
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Moments:
    """What the energy shares and the data-set means need of one batch, per image.

    Attributes:
        mean: Mean row of the quantity, (B, C).
        energy: mean_i ‖v_i‖², (B,).
        spread: mean_i ‖v_i − mean‖², (B,).
    """

    mean: Tensor
    energy: Tensor
    spread: Tensor


def measure(
    capture: Capture,
    quantities: Collection[str],
    precision: Precision,
    centres: Mapping[str, Tensor],
) -> tuple[list[Measurement], dict[str, Moments]]:
    """The records' numbers of one call, and the moments of the quantities that live in channel space.

    Args:
        capture: What the adapter delivered.
        quantities: Which of the six are wanted.
        precision: Of the products behind softmax maps.
        centres: Data-set means by quantity; where given, `centred_dist` is measured too.
    """
    if isinstance(capture, PairwiseCapture):
        return _pairwise(capture, quantities, precision, centres)
    return _single_map(capture, quantities, centres)


def _pairwise(
    capture: PairwiseCapture, quantities: Collection[str], precision: Precision, centres: Mapping[str, Tensor]
) -> tuple[list[Measurement], dict[str, Moments]]:
    rows: dict[str, tuple[str, Tensor]] = {"input": ("-", capture.x)}
    if capture.projected:
        rows |= {"key": ("0", capture.key[:, 0]), "query": ("0", capture.query[:, 0])}
    rows["output"] = ("-", capture.output)
    size: dict[str, Value] = {"n_queries": capture.query.shape[2], "n_keys": capture.key.shape[2], "groups": 1}
    measurements, moments = _rows(rows, size, quantities, centres)
    size["dim"] = capture.key.shape[2]
    query, key = capture.query[:, 0], capture.key[:, 0]
    a, b = _concat_logits(capture)
    if "prod" in quantities:
        product = (
            product_statistics(query, key, capture.scale) if a is None or b is None else concat_product_statistics(a, b)
        )
        values = {
            "avg_dist": product.avg_dist,
            "zero_rows": product.zero_rows,
            "logit_std": product.logit_std,
            "pairwise": product.pairwise,
            "unary": product.unary,
        }
        measurements.append(Measurement("prod", "0", size | values))
    if "att" in quantities:
        maps = _maps(capture, query, key, a, b, precision)
        values = {
            "avg_dist": maps.avg_dist,
            "zero_rows": maps.zero_rows,
            "entropy": maps.entropy,
            "n_eff": maps.n_eff,
            "shared": maps.shared,
        }
        measurements.append(Measurement("att", "0", size | values))
    return measurements, moments


def _maps(
    capture: PairwiseCapture, query: Tensor, key: Tensor, a: Tensor | None, b: Tensor | None, precision: Precision
) -> MapStatistics:
    if a is not None and b is not None:
        return concat_map_statistics(a, b)
    if capture.instantiation == "dot_product":
        return dot_map_statistics(query, key)
    return softmax_map_statistics(query, key, capture.scale, precision)


def _concat_logits(capture: PairwiseCapture) -> tuple[Tensor | None, Tensor | None]:
    if capture.weight_query is None or capture.weight_key is None:
        return None, None
    # float64: a_i + b_j is sorted and summed, and costs N + M numbers only
    a = capture.query[:, 0].double() @ capture.weight_query.double()
    b = capture.key[:, 0].double() @ capture.weight_key.double()
    return a, b


def _single_map(
    capture: SingleMapCapture, quantities: Collection[str], centres: Mapping[str, Tensor]
) -> tuple[list[Measurement], dict[str, Moments]]:
    rows: dict[str, tuple[str, Tensor]] = {"input": ("-", capture.x)}
    if capture.output is not None:
        rows["output"] = ("-", capture.output)
    n = capture.x.shape[1]
    size: dict[str, Value] = {"n_queries": n, "n_keys": n, "groups": 1}
    measurements, moments = _rows(rows, size, quantities, centres)
    if "att" in quantities:
        logits = capture.logits if capture.logits is not None else capture.x.new_zeros(capture.x.shape[:2])
        entropy, n_eff = single_map_statistics(logits)
        fixed = {"avg_dist": 0.0, "zero_rows": 0, "by_construction": True}
        measurements.append(Measurement("att", "0", size | fixed | {"dim": n, "entropy": entropy, "n_eff": n_eff}))
    if "output" in quantities and capture.shift is not None:
        measurement, moment = _shared_output(capture.x, capture.shift, moments.get("input"))
        measurements.append(Measurement("output", "-", size | {"dim": capture.x.shape[2]} | measurement))
        moments["output"] = moment
    return measurements, moments


def _shared_output(x: Tensor, shift: Tensor, inputs: Moments | None) -> tuple[dict[str, Value], Moments]:
    """Additive fusion: every row of the output is `shift`, so its distance is 0, or undefined where it is zero."""
    shift = shift.to(torch.float64) if x.device.type != "mps" else shift.float()
    energy = shift.square().sum(-1)
    zero = energy == 0
    inputs = inputs if inputs is not None else _moments(row_statistics(x))
    values: dict[str, Value] = {
        "avg_dist": torch.where(zero, math.nan, 0.0),
        "zero_rows": torch.where(zero, x.shape[1], 0),
        "by_construction": True,
        "update": (energy / inputs.energy).sqrt(),
        "mean_map_error": torch.where(zero, math.nan, 0.0),
    }
    return values, Moments(shift, energy, torch.zeros_like(energy))


def _rows(
    rows: Mapping[str, tuple[str, Tensor]],
    size: Mapping[str, Value],
    quantities: Collection[str],
    centres: Mapping[str, Tensor],
) -> tuple[list[Measurement], dict[str, Moments]]:
    measurements: list[Measurement] = []
    moments: dict[str, Moments] = {}
    for quantity, (head, v) in rows.items():
        # `update` compares the output with the input, whether or not the input's own record is asked for
        if quantity not in quantities and not (quantity == "input" and "output" in quantities):
            continue
        statistics = row_statistics(v)
        moments[quantity] = _moments(statistics)
        if quantity not in quantities:
            continue
        values: dict[str, Value] = dict(size) | {
            "dim": v.shape[2],
            "zero_rows": statistics.zero_rows,
            "avg_dist": statistics.avg_dist,
        }
        if quantity in centres:
            values["centred_dist"] = avg_dist(v - centres[quantity].to(v))
        if quantity == "output":
            values["update"] = (statistics.energy / moments["input"].energy).sqrt()
            values["mean_map_error"] = (statistics.spread / statistics.energy).sqrt()
        measurements.append(Measurement(quantity, head, values))
    return measurements, moments


def _moments(statistics: RowStatistics) -> Moments:
    return Moments(statistics.mean, statistics.energy, statistics.spread)
