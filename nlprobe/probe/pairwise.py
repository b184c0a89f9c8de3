"""Captures of attention with a map for every query → the numbers of their records."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nlprobe.probe.adapters import PairwiseCapture
from nlprobe.probe.key_mass import with_padding_mass
from nlprobe.probe.measurement import Measured, Measurement, Moments, Value, Wanted, joined
from nlprobe.probe.padding import Padding, valid_queries
from nlprobe.probe.rows import heads_of, measure_rows
from nlprobe.probe.selections import Part, Selection, selections
from nlprobe.probe.unary import with_unary
from nlprobe.stats import (
    MapStatistics,
    Mask,
    ProductStatistics,
    concat_map_statistics,
    concat_product_statistics,
    dot_map_statistics,
    flat_distance,
    logit_spread,
    map_metrics,
    product_statistics,
    product_statistics_beside_prefix,
    softmax_statistics,
    softmax_statistics_beside_prefix,
)
from nlprobe.stats.records import AVERAGED_HEAD, PAIRWISE_HEAD

SOFTMAX = ("gaussian", "embedded_gaussian")


def measure_pairwise(
    capture: PairwiseCapture,
    wanted: Wanted,
    centres: Mapping[str, Tensor],
    prefix: int,
    images: int,
    padding: Padding | None = None,
) -> Measured:
    """The numbers of all choices of positions, averaged over the windows of each image.

    Args:
        capture: What the adapter delivered.
        wanted: What to measure.
        centres: Data-set means by quantity.
        prefix: How many of the first positions are not places in the image.
        images: Images in the batch.
        padding: Which positions lie in the pictures, where somebody has said so.
    """
    chosen = selections(capture, prefix, wanted.rectangle, padding)
    measured = [_of_selection(capture, one, wanted, centres if one.keys is None else {}) for one in chosen]
    found = [measurement for measurements, _ in measured for measurement in measurements]
    if wanted.metrics and "att" in wanted.quantities and capture.instantiation in SOFTMAX:
        for positions, valid in _valid_by_positions(capture, chosen[0], padding).items():
            found = _with_metrics(found, capture, wanted.metrics, prefix, positions, valid)
    if padding is not None and "att" in wanted.quantities:
        found = with_padding_mass(found, capture, padding, prefix)
    measurements = [_per_image(one, capture.sets, images) for one in found]
    return measurements, {quantity: _image_moments(one, images) for quantity, one in measured[0][1].items()}


def _of_selection(
    capture: PairwiseCapture, selection: Selection, wanted: Wanted, centres: Mapping[str, Tensor]
) -> Measured:
    """The numbers of one choice of positions, run by run where the choice differs between sets."""
    measured = [_of_part(part, selection, wanted, centres) for part in selection.of(capture)]
    return joined(measured, selection.lengths)


def _valid_by_positions(
    capture: PairwiseCapture, first: Selection, padding: Padding | None
) -> dict[str, Tensor | None]:
    """Which queries count in the records of all heads' maps, by the positions of these; None for all."""
    if padding is not None and padding.any:
        return {"all": None, "valid": padding.queries}
    return {first.positions: valid_queries(capture)}


def _per_image(one: Measurement, sets: int, images: int) -> Measurement:
    """Means over an image's windows; zero rows are counted together, undefined windows left out."""
    windows = sets // images
    values: dict[str, Value] = dict(one.values) | {"groups": windows}
    if windows > 1:
        for name, value in values.items():
            if isinstance(value, Tensor):
                grouped = value.double().unflatten(0, (images, windows))
                if name == "flat":  # a window in which nothing is hidden is flat at distance 0
                    grouped = torch.where(grouped.isnan() & ~grouped.isnan().all(1, keepdim=True), 0.0, grouped)
                values[name] = grouped.sum(1) if name == "zero_rows" else grouped.nanmean(1)
    return replace(one, values=values)


def _image_moments(one: Moments, images: int) -> Moments:
    windows = one.energy.shape[0] // images
    if windows == 1:
        return one
    means = one.mean.unflatten(0, (images, windows))
    mean = means.mean(1)
    between = (means - mean.unsqueeze(1)).square().sum(-1).mean(1)
    within = one.spread.view(images, windows).mean(1)
    return Moments(mean, one.energy.view(images, windows).mean(1), within + between)


def _of_part(part: Part, selection: Selection, wanted: Wanted, centres: Mapping[str, Tensor]) -> Measured:
    capture, quantities = part.capture, wanted.quantities
    size: dict[str, Value] = {"n_queries": capture.n_queries, "n_keys": capture.n_keys}
    rows: dict[str, Tensor] = {}
    if capture.x is not None:
        rows["input"] = capture.x
    if capture.projected and capture.query is not None and part.keys is not None:
        rows |= {"key": part.keys, "query": capture.query}
    if capture.output is not None:
        rows["output"] = capture.output
    measurements, moments = measure_rows(
        rows,
        size,
        quantities,
        centres,
        positions=selection.positions,
        beside=selection.beside,
        leading=dict.fromkeys(rows, part.leading) | {"key": part.key_leading},
        residual=capture.residual,
    )
    pairs = [(capture, selection.positions)]
    if selection.beside:
        pairs.append((_without_first(capture, part.leading), selection.beside))
    leading = part.leading if selection.beside else 0
    if "prod" in quantities and capture.query is not None and capture.key is not None:
        products = _products(capture, leading)
        for at, (one, place) in enumerate(pairs):
            measurements += _placed(_by_head(products[min(at, len(products) - 1)], one), one, place)
    if "att" in quantities:
        maps = _softmax_maps(capture, leading, wanted) if capture.instantiation in SOFTMAX else None
        for at, (one, place) in enumerate(pairs):
            found = _other_maps(one) if maps is None else maps[min(at, len(maps) - 1)]
            flat = {} if maps is None or one.mask is None else {"flat": flat_distance(one.logits)}
            measured = _maps(*found, flat)
            if one.unary is not None:
                measured = with_unary(measured, one.logits, one.unary)
            measurements += _placed(measured, one, place)
    return measurements, moments


def _without_first(capture: PairwiseCapture, count: int) -> PairwiseCapture:
    """The product's side of a capture without its first queries."""
    if not count:
        return capture
    logits = capture.logits.restricted(slice(count, capture.n_queries), slice(0, capture.n_keys))
    return replace(
        capture,
        x=None,
        output=None,
        query=logits.query,
        mask=logits.mask,
        given=logits.given,
        context=capture.context[:, :, count:],
        valid=None,
    )


def _placed(found: list[Measurement], capture: PairwiseCapture, positions: str) -> list[Measurement]:
    size = {"n_queries": capture.n_queries, "n_keys": capture.n_keys, "dim": capture.n_keys}
    return [replace(one, values=size | dict(one.values), positions=positions) for one in found]


def _products(capture: PairwiseCapture, prefix: int) -> list[ProductStatistics]:
    """Statistics of the logit rows of every head, of all queries, and then of those after the prefix."""
    query, key = capture.query, capture.key
    assert query is not None
    assert key is not None
    a, b = _concat_logits(capture)
    if a is not None and b is not None:
        return [concat_product_statistics(a[:, None, start:], b[:, None]) for start in ([0, prefix] if prefix else [0])]
    groups = query.shape[1] // key.shape[1]
    keys = key if groups == 1 else key.repeat_interleave(groups, 1)
    if not prefix:
        return [product_statistics(query, keys, capture.scale)]
    return product_statistics_beside_prefix(query, keys, prefix, capture.scale)


def _by_head(product: ProductStatistics, capture: PairwiseCapture) -> list[Measurement]:
    values: dict[str, Tensor] = dict(vars(product))
    if capture.mask is not None or capture.given is not None:
        # bias and mask are not part of the rows, but the spread is that of the logits the softmax saw: not split
        del values["pairwise"], values["unary"]
        values["logit_std"] = logit_spread(capture.logits)
    return [Measurement("prod", heads_of(product.avg_dist), values)]


def _softmax_maps(
    capture: PairwiseCapture, prefix: int, wanted: Wanted
) -> list[tuple[MapStatistics, MapStatistics | None]]:
    """Statistics of each head and of their mean, of all queries, and then of those after the prefix."""
    logits = capture.logits
    average = logits.shape[1] > 1
    if not prefix:
        return [softmax_statistics(logits, precision=wanted.precision, average=average)]
    return softmax_statistics_beside_prefix(logits, prefix, precision=wanted.precision, average=average)


def _other_maps(capture: PairwiseCapture) -> tuple[MapStatistics, None]:
    """Statistics of dot-product and concat maps, which have one head."""
    a, b = _concat_logits(capture)
    if a is not None and b is not None:
        maps = concat_map_statistics(a, b)
    else:
        assert capture.query is not None
        assert capture.key is not None
        maps = dot_map_statistics(capture.query[:, 0], capture.key[:, 0])
    return MapStatistics(**{name: value.unsqueeze(1) for name, value in vars(maps).items()}), None


def _maps(each: MapStatistics, average: MapStatistics | None, more: Mapping[str, Tensor]) -> list[Measurement]:
    found = [Measurement("att", heads_of(each.avg_dist), vars(each) | dict(more))]
    return found if average is None else [*found, Measurement("att", (AVERAGED_HEAD,), vars(average))]


def _concat_logits(capture: PairwiseCapture) -> tuple[Tensor | None, Tensor | None]:
    if capture.weight_query is None or capture.weight_key is None:
        return None, None
    assert capture.query is not None
    assert capture.key is not None
    # float64: a_i + b_j is sorted and summed, and costs N + M numbers only
    a = capture.query[:, 0].double() @ capture.weight_query.double()
    b = capture.key[:, 0].double() @ capture.weight_key.double()
    return a, b


def _with_metrics(
    measurements: list[Measurement],
    capture: PairwiseCapture,
    metrics: tuple[str, ...],
    prefix: int,
    positions: str,
    valid: Tensor | None,
) -> list[Measurement]:
    """The maps of some positions with their further metrics; padding sees nothing and is left out of them."""
    logits = capture.logits
    if valid is not None:
        seeing = valid[:, None, :, None]
        mask = logits.mask or Mask()
        visible = seeing if mask.visible is None else mask.visible & seeing
        logits = replace(logits, mask=replace(mask, visible=visible))
    placed = len(capture.query_grid) == len(capture.key_grid)
    query_grid, key_grid = (capture.query_grid, capture.key_grid) if placed else (None, None)
    found = map_metrics(logits, metrics, query_grid=query_grid, key_grid=key_grid, prefix=prefix)
    # the heads that the records of the maps of `logits` have
    measured = tuple(map(str, range(logits.shape[1])))
    if capture.unary is not None and capture.unary.joined:
        measured = (PAIRWISE_HEAD,)
    return [
        replace(one, values=dict(one.values) | found)
        if one.quantity == "att" and one.heads == measured and one.positions == positions
        else one
        for one in measurements
    ]
