"""Captures of clips → what their records say of space and time."""

from dataclasses import replace

import torch
from torch import Tensor

from nlprobe.probe.adapters import Capture, CrossCapture, PairwiseCapture, SingleMapCapture
from nlprobe.probe.key_mass import key_masses
from nlprobe.probe.measurement import Measured, Measurement, Precision, Value
from nlprobe.stats.records import PAIRWISE_HEAD, SPACE_TIME_COLUMNS
from nlprobe.stats.space_time import (
    SpaceTimeDistances,
    concat_map_space_time,
    concat_product_space_time,
    product_space_time,
    softmax_space_time,
    space_time_distances,
)


def with_space_time(measured: Measured, capture: Capture, precision: Precision, images: int) -> Measured:
    """The records over all positions of a clip, with their distances split into space and time, and `frame_mass`.

    A site is one of clips where its positions lie on a grid of time, height and width; others get nothing.

    - `avg_dist_same_frame`, `avg_dist_other_frames`, `avg_dist_same_place`: see `SpaceTimeDistances`. The head-averaged
      map has none.
    - `frame_mass`, of maps: mean_i Σ_{j in the frame of i} |ω_ij| / Σ_j |ω_ij|, and `flat_frame_mass`, what a flat map
      has: 1/T. With one map for all queries it is 1/T whatever the map, as every frame has as many queries.

    Args:
        measured: The numbers of one call.
        capture: What the adapter delivered.
        precision: Of the products behind softmax maps.
        images: Clips in the batch.
    """
    if len(capture.query_grid) != 3 or capture.sets != images or isinstance(capture, CrossCapture):
        return measured
    measurements, moments = measured
    found = [
        replace(one, values=dict(one.values) | _values(one, capture, precision)) if one.positions == "all" else one
        for one in measurements
    ]
    return found, moments


def _values(one: Measurement, capture: Capture, precision: Precision) -> dict[str, Value]:
    frames = capture.query_grid[0]
    if isinstance(capture, PairwiseCapture):
        return _pairwise(one, capture, frames, precision)
    if one.quantity == "att":
        values: dict[str, Value] = dict.fromkeys(SPACE_TIME_COLUMNS, 0.0)
        return values | {"frame_mass": 1 / frames, "flat_frame_mass": 1 / frames}
    if one.quantity == "output" and capture.output is None:
        assert isinstance(capture, SingleMapCapture)
        return dict.fromkeys(SPACE_TIME_COLUMNS, one.values["avg_dist"])
    rows = capture.x if one.quantity == "input" else capture.output
    assert rows is not None
    return _columns(space_time_distances(rows, frames))


def _pairwise(one: Measurement, capture: PairwiseCapture, frames: int, precision: Precision) -> dict[str, Value]:
    rows = {"input": capture.x, "query": capture.query, "key": capture.key, "output": capture.output}.get(one.quantity)
    if one.quantity in ("input", "query", "output"):
        assert rows is not None
        return _columns(space_time_distances(rows, frames))
    in_frames = len(capture.key_grid) == 3 and capture.key_grid[0] == frames
    if one.quantity == "key":
        return _columns(space_time_distances(rows, frames)) if rows is not None and in_frames else {}
    if one.quantity == "prod":
        return _columns(_of_products(capture, frames))
    return _of_maps(one, capture, frames, precision) | (_masses(one, capture, frames) if in_frames else {})


def _of_products(capture: PairwiseCapture, frames: int) -> SpaceTimeDistances:
    query, key = capture.query, capture.key
    assert query is not None
    assert key is not None
    if capture.weight_query is not None and capture.weight_key is not None:
        return concat_product_space_time(
            query.double() @ capture.weight_query.double(), key.double() @ capture.weight_key.double(), frames
        )
    return product_space_time(query, key.repeat_interleave(query.shape[1] // key.shape[1], 1), frames)


def _of_maps(one: Measurement, capture: PairwiseCapture, frames: int, precision: Precision) -> dict[str, Value]:
    """The split of the maps that a record of `att` is of."""
    if capture.instantiation == "dot_product":
        return _columns(_of_products(capture, frames))
    if capture.instantiation == "concat":
        assert capture.query is not None
        assert capture.key is not None
        assert capture.weight_query is not None
        assert capture.weight_key is not None
        a, b = (
            t.double() @ w.double()
            for t, w in ((capture.query, capture.weight_query), (capture.key, capture.weight_key))
        )
        return _columns(concat_map_space_time(a, b, frames))
    double = precision == "float64"
    joined = capture.unary is not None and capture.unary.joined
    if joined and one.heads == ("0",):
        assert capture.unary is not None
        unary, weights = capture.unary.map, capture.unary.weights
        return _columns(softmax_space_time(capture.logits, frames, unary=unary, weights=weights, double=double))
    if one.heads == (PAIRWISE_HEAD,) or all(head.isdigit() for head in one.heads):
        return _columns(softmax_space_time(capture.logits, frames, double=double))
    return {}


def _masses(one: Measurement, capture: PairwiseCapture, frames: int) -> dict[str, Value]:
    """The attention that stays in the query's own frame, and what a flat map keeps there."""
    n, m = capture.n_queries, capture.n_keys
    time = torch.arange(frames, device=capture.device)
    keys = time.unsqueeze(1) == time.repeat_interleave(m // frames)
    own = time.repeat_interleave(n // frames).view(1, 1, n, 1)
    masses = key_masses(capture, keys.expand(capture.sets, -1, -1)).get(one.heads)
    if masses is None:
        return {}
    kept = masses.gather(-1, own.to(masses.device).expand(*masses.shape[:3], 1)).squeeze(-1)
    return {"frame_mass": kept.nanmean(-1), "flat_frame_mass": 1 / frames}


def _columns(found: SpaceTimeDistances) -> dict[str, Value]:
    values: dict[str, Tensor] = vars(found)
    return {f"avg_dist_{name}": value for name, value in values.items()}
