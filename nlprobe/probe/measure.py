"""One capture → the numbers of its records; every tensor that comes out has one value for each image."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import Capture, PairwiseCapture, SingleMapCapture
from nlprobe.probe.selections import Rectangle, Selection, selections, valid_queries
from nlprobe.stats import (
    MapStatistics,
    RowStatistics,
    avg_dist,
    concat_map_statistics,
    concat_product_statistics,
    dot_map_statistics,
    flat_distance,
    logit_spread,
    map_metrics,
    product_statistics,
    row_statistics,
    single_map_statistics,
    softmax_statistics,
)
from nlprobe.stats.masks import Mask
from nlprobe.stats.records import QUANTITIES

Value = Tensor | float | int | bool
Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Wanted:
    """What is to be measured of every capture.

    Attributes:
        quantities: Which of the six.
        metrics: Further metrics of the maps (`nlprobe.stats.METRICS`).
        precision: Of the products behind softmax maps.
        rectangle: Queries and keys of a further measurement, whose rows are renormalised over these keys.
        centres: Data-set means by site and quantity; where given, `centred_dist` is measured too.
    """

    quantities: tuple[str, ...] = QUANTITIES
    metrics: tuple[str, ...] = ()
    precision: Precision = "float32"
    rectangle: Rectangle | None = None
    centres: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """The values of one quantity at one call: a number for all images, or a tensor with one value for each."""

    quantity: str
    head: str
    values: Mapping[str, Value]
    positions: str = "all"


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
    capture: Capture, wanted: Wanted, *, site: str = "", prefix: int = 0, images: int | None = None
) -> tuple[list[Measurement], dict[str, Moments]]:
    """The records' numbers of one call, and the moments of the quantities that live in channel space.

    Args:
        capture: What the adapter delivered.
        wanted: What to measure.
        site: The site's name, for its centres.
        prefix: How many of the first positions are not places in the image.
        images: Images in the batch, where sets may be windows of them.
    """
    centres = wanted.centres.get(site, {})
    if isinstance(capture, SingleMapCapture):
        return _single_map(capture, wanted.quantities, centres)
    images = images or capture.sets
    measurements: list[Measurement] = []
    moments: dict[str, Moments] = {}
    for selection in selections(capture, prefix, wanted.rectangle):
        found, rows = _of_selection(capture, selection, wanted, centres)
        softmax = capture.instantiation in ("gaussian", "embedded_gaussian")
        if wanted.metrics and selection.base and softmax and "att" in wanted.quantities:
            found = _with_metrics(found, capture, wanted.metrics, prefix)
        measurements += [_per_image(one, selection.positions, capture.sets, images) for one in found]
        if selection.base:
            moments = {quantity: _image_moments(one, images) for quantity, one in rows.items()}
    return measurements, moments


def _of_selection(
    capture: PairwiseCapture, selection: Selection, wanted: Wanted, centres: Mapping[str, Tensor]
) -> tuple[list[Measurement], dict[str, Moments]]:
    """The numbers of one choice of positions, set by set where the choice differs between sets."""
    parts = [_pairwise(part, vectors, wanted, centres) for part, vectors in selection.of(capture)]
    if len(parts) == 1:
        return parts[0]
    measurements = [
        Measurement(first.quantity, first.head, _joined([part[0][at].values for part in parts], selection.lengths))
        for at, first in enumerate(parts[0][0])
    ]
    moments = {
        quantity: Moments(*(torch.cat([getattr(part[1][quantity], name) for part in parts]) for name in _MOMENTS))
        for quantity in parts[0][1]
    }
    return measurements, moments


_MOMENTS = ("mean", "energy", "spread")


def _joined(values: list[Mapping[str, Value]], lengths: tuple[int, ...]) -> dict[str, Value]:
    joined: dict[str, Value] = {}
    for name in values[0]:
        columns = [value[name] for value in values]
        joined[name] = torch.cat(
            [
                column if isinstance(column, Tensor) else torch.full((length,), column, dtype=torch.float64)
                for column, length in zip(columns, lengths, strict=True)
            ]
        )
    return joined


def _per_image(one: Measurement, positions: str, sets: int, images: int) -> Measurement:
    """Means over an image's windows; zero rows are counted together, undefined windows left out."""
    windows = sets // images
    values: dict[str, Value] = dict(one.values) | {"groups": windows}
    if windows > 1:
        for name, value in values.items():
            if isinstance(value, Tensor):
                grouped = value.double().view(images, windows)
                if name == "flat":  # a window in which nothing is hidden is flat at distance 0
                    grouped = torch.where(grouped.isnan() & ~grouped.isnan().all(1, keepdim=True), 0.0, grouped)
                values[name] = grouped.sum(1) if name == "zero_rows" else grouped.nanmean(1)
    return replace(one, values=values, positions=positions)


def _image_moments(one: Moments, images: int) -> Moments:
    windows = one.energy.shape[0] // images
    if windows == 1:
        return one
    means = one.mean.unflatten(0, (images, windows))
    mean = means.mean(1)
    between = (means - mean.unsqueeze(1)).square().sum(-1).mean(1)
    within = one.spread.view(images, windows).mean(1)
    return Moments(mean, one.energy.view(images, windows).mean(1), within + between)


def _pairwise(
    capture: PairwiseCapture, key_vectors: Tensor | None, wanted: Wanted, centres: Mapping[str, Tensor]
) -> tuple[list[Measurement], dict[str, Moments]]:
    quantities = wanted.quantities
    n, m = capture.context.shape[2], capture.value.shape[2]
    size: dict[str, Value] = {"n_queries": n, "n_keys": m}
    rows: dict[str, Tensor] = {}
    if capture.x is not None:
        rows["input"] = capture.x
    if capture.projected and capture.query is not None and key_vectors is not None:
        rows |= {"key": key_vectors, "query": capture.query}
    if capture.output is not None:
        rows["output"] = capture.output
    measurements, moments = _rows(rows, size, quantities, centres, residual=capture.residual)
    size["dim"] = m
    a, b = _concat_logits(capture)
    query, key = capture.query, capture.key
    if "prod" in quantities and query is not None and key is not None:
        measurements += _products(capture, query, key, a, b, size)
    if "att" in quantities:
        if a is not None and b is not None:
            measurements.append(_map("0", concat_map_statistics(a, b), size, {}))
        elif capture.instantiation == "dot_product":
            assert query is not None
            assert key is not None
            measurements.append(_map("0", dot_map_statistics(query[:, 0], key[:, 0]), size, {}))
        else:
            measurements += _softmax_maps(capture, wanted, size)
    return measurements, moments


def _products(
    capture: PairwiseCapture, query: Tensor, key: Tensor, a: Tensor | None, b: Tensor | None, size: Mapping[str, Value]
) -> list[Measurement]:
    if a is not None and b is not None:
        product = concat_product_statistics(a, b)
        a_head = vars(product)
        return [Measurement("prod", "0", dict(size) | a_head)]
    groups = query.shape[1] // key.shape[1]
    keys = key if groups == 1 else key.repeat_interleave(groups, 1)
    product = product_statistics(query, keys, capture.scale)
    values: dict[str, Tensor] = dict(vars(product))
    if capture.mask is not None or capture.given is not None:
        # bias and mask are not part of the rows, but the spread is that of the logits the softmax saw: not split
        del values["pairwise"], values["unary"]
        values["logit_std"] = logit_spread(capture.logits)
    return [
        Measurement("prod", head, dict(size) | {name: value[:, at] for name, value in values.items()})
        for at, head in _heads(query.shape[1])
    ]


def _heads(count: int) -> Iterator[tuple[int, str]]:
    return ((at, str(at)) for at in range(count))


def _softmax_maps(capture: PairwiseCapture, wanted: Wanted, size: Mapping[str, Value]) -> list[Measurement]:
    logits = capture.logits
    heads = logits.shape[1]
    each, average = softmax_statistics(logits, precision=wanted.precision, average=heads > 1)
    flat = {} if capture.mask is None else {"flat": flat_distance(logits)}
    found = [
        _map(head, each, size, {name: value[:, at] for name, value in flat.items()}, at) for at, head in _heads(heads)
    ]
    if average is not None:
        found.append(_map("avg", average, size, {}))
    return found


def _with_metrics(
    measurements: list[Measurement], capture: PairwiseCapture, metrics: tuple[str, ...], prefix: int
) -> list[Measurement]:
    """The maps of all positions with their further metrics; padding sees nothing and is left out of them."""
    logits = capture.logits
    valid = valid_queries(capture)
    if valid is not None:
        seeing = valid[:, None, :, None]
        mask = logits.mask or Mask()
        visible = seeing if mask.visible is None else mask.visible & seeing
        logits = replace(logits, mask=replace(mask, visible=visible))
    placed = len(capture.query_grid) == len(capture.key_grid)
    query_grid, key_grid = (capture.query_grid, capture.key_grid) if placed else (None, None)
    found = map_metrics(logits, metrics, query_grid=query_grid, key_grid=key_grid, prefix=prefix)
    return [
        replace(one, values=dict(one.values) | {name: value[:, int(one.head)] for name, value in found.items()})
        if one.quantity == "att" and one.head != "avg"
        else one
        for one in measurements
    ]


def _map(
    head: str, maps: MapStatistics, size: Mapping[str, Value], more: Mapping[str, Value], at: int | None = None
) -> Measurement:
    values = {name: value if at is None else value[:, at] for name, value in vars(maps).items()}
    return Measurement("att", head, dict(size) | values | dict(more))


def _concat_logits(capture: PairwiseCapture) -> tuple[Tensor | None, Tensor | None]:
    if capture.weight_query is None or capture.weight_key is None:
        return None, None
    assert capture.query is not None
    assert capture.key is not None
    # float64: a_i + b_j is sorted and summed, and costs N + M numbers only
    a = capture.query[:, 0].double() @ capture.weight_query.double()
    b = capture.key[:, 0].double() @ capture.weight_key.double()
    return a, b


def _single_map(
    capture: SingleMapCapture, quantities: Collection[str], centres: Mapping[str, Tensor]
) -> tuple[list[Measurement], dict[str, Moments]]:
    rows: dict[str, Tensor] = {"input": capture.x}
    if capture.output is not None:
        rows["output"] = capture.output
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
    rows: Mapping[str, Tensor],
    size: Mapping[str, Value],
    quantities: Collection[str],
    centres: Mapping[str, Tensor],
    *,
    residual: bool = True,
) -> tuple[list[Measurement], dict[str, Moments]]:
    """Input and output, (s, n, c), and keys and queries of every head, (s, h, n, d)."""
    measurements: list[Measurement] = []
    moments: dict[str, Moments] = {}
    for quantity, v in rows.items():
        # `update` compares the output with the input, whether or not the input's own record is asked for
        if quantity not in quantities and not (quantity == "input" and "output" in quantities and residual):
            continue
        statistics = row_statistics(v)
        if v.dim() == 3:
            moments[quantity] = _moments(statistics)
        elif v.shape[1] == 1:
            moments[quantity] = Moments(statistics.mean[:, 0], statistics.energy[:, 0], statistics.spread[:, 0])
        if quantity not in quantities:
            continue
        values: dict[str, Tensor] = {"zero_rows": statistics.zero_rows, "avg_dist": statistics.avg_dist}
        if quantity in centres:
            values["centred_dist"] = avg_dist(v - centres[quantity].to(v))
        if quantity == "output":
            if residual and "input" in moments:
                values["update"] = (statistics.energy / moments["input"].energy).sqrt()
            values["mean_map_error"] = (statistics.spread / statistics.energy).sqrt()
        common = dict(size) | {"dim": v.shape[-1]}
        if v.dim() == 3:
            measurements.append(Measurement(quantity, "-", common | values))
        else:
            for at, head in _heads(v.shape[1]):
                measurements.append(
                    Measurement(quantity, head, common | {name: value[:, at] for name, value in values.items()})
                )
    return measurements, moments


def _moments(statistics: RowStatistics) -> Moments:
    return Moments(statistics.mean, statistics.energy, statistics.spread)


def refuse_unknown(wanted: Wanted, metrics: Collection[str]) -> None:
    """Raise for quantities, metrics or precisions that do not exist.

    Raises:
        ConfigError: with the names there are.
    """
    unknown = sorted(set(wanted.quantities) - set(QUANTITIES))
    if unknown:
        raise ConfigError(f"unknown quantities `{'`, `'.join(unknown)}`", f"choose from {', '.join(QUANTITIES)}")
    strange = sorted(set(wanted.metrics) - set(metrics))
    if strange:
        raise ConfigError(f"unknown metrics `{'`, `'.join(strange)}`", f"choose from {', '.join(metrics)}")
    if wanted.precision not in ("float32", "float64"):
        raise ConfigError(f"unknown precision `{wanted.precision}`", "choose float32 or float64")
