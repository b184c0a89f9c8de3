"""Captures of criss-cross steps → the numbers of their records."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import CrossCapture
from nlprobe.probe.measurement import Measured, Measurement, Value, Wanted
from nlprobe.probe.padding import Padding
from nlprobe.probe.rows import measure_placed_rows
from nlprobe.stats import (
    composed_map_statistics,
    cross_flat_distance,
    cross_key_mass,
    cross_map_statistics,
    cross_product_statistics,
)
from nlprobe.stats.records import COMPOSED_HEAD


def measure_cross(
    capture: CrossCapture,
    wanted: Wanted,
    centres: Mapping[str, Tensor],
    prefix: int,
    padding: Padding | None = None,
) -> Measured:
    """The numbers of one step, and with the last of several steps those of all of them together.

    Rows of `prod` and `att` are vectors over all N positions, zeros outside of the cross; products off the cross are
    never formed and are no part of `prod`. `output` is γ y, the step's part of z − x. The records of head "composed"
    are the map A_R ··· A_1 without the residual paths, and the block's whole output z − x.

    The sums over the data set take the output of the whole block, and the other quantities of every step.

    Args:
        capture: What the adapter delivered.
        wanted: What to measure.
        centres: Data-set means by quantity.
        prefix: How many of the first positions are not places in the image; none can be.
        padding: Which positions lie in the pictures, where somebody has said so.

    Raises:
        ConfigError: a rectangle, or prefix tokens.
    """
    if wanted.rectangle is not None:
        raise ConfigError(
            "a query of criss-cross attention sees its own column and row, and no rectangle of keys",
            "leave the rectangle out, or this site (sites=, --site)",
        )
    if prefix:
        raise ConfigError(f"{prefix} prefix tokens have no column and row", "set `prefix` to 0 for this site")
    n = capture.x.shape[1]
    size: dict[str, Value] = {"n_queries": n, "n_keys": n, "groups": 1}
    of_whole_block = {"output"} if capture.first_x is None or capture.all_queries is not None else set()
    measurements, moments = measure_placed_rows(
        {
            "input": capture.x,
            "key": capture.key.flatten(1, 2).unsqueeze(1),  # (b, 1, n, d)
            "query": capture.query.flatten(1, 2).unsqueeze(1),
            "output": capture.output,
        },
        size,
        wanted.quantities,
        {name: centre for name, centre in centres.items() if name not in of_whole_block},
        padding,
    )
    moments = {name: each for name, each in moments.items() if name not in of_whole_block}
    size |= {"dim": n}
    for positions, counted in _places(capture, padding).items():
        size["n_queries"] = counted.sum((1, 2))
        if "prod" in wanted.quantities:
            products = dict(vars(cross_product_statistics(capture.query, capture.key, counted)))
            del products["pairwise"], products["unary"]
            measurements.append(Measurement("prod", ("0",), size | products, positions))
        if "att" in wanted.quantities:
            maps: dict[str, Value] = dict(vars(cross_map_statistics(capture.query, capture.key, counted)))
            maps |= {"flat": cross_flat_distance(counted)}
            maps |= _padding_mass(capture.query.unsqueeze(0), capture.key.unsqueeze(0), padding, counted)
            measurements.append(Measurement("att", ("0",), size | maps, positions))
    if capture.all_queries is not None:
        composed, whole = _composed(capture, wanted, centres, size, padding)
        measurements += composed
        moments |= whole
    return measurements, moments


def _places(capture: CrossCapture, padding: Padding | None) -> dict[str, Tensor]:
    """By the positions of the records, which queries count."""
    everything = capture.query.new_ones(capture.query.shape[:3], dtype=torch.bool)
    if padding is None or not padding.any:
        return {"all": everything}
    return {"all": everything, "valid": padding.queries.view_as(everything)}


def _padding_mass(query: Tensor, key: Tensor, padding: Padding | None, counted: Tensor) -> dict[str, Value]:
    """The mean over the queries that count of the attention on padded keys, where padding is known."""
    if padding is None:
        return {}
    masses = cross_key_mass(query, key, ~padding.queries.unsqueeze(1)).squeeze(-1)
    return {"padding_mass": masses.masked_fill(~counted.flatten(1), torch.nan).nanmean(-1)}


def _composed(
    capture: CrossCapture,
    wanted: Wanted,
    centres: Mapping[str, Tensor],
    size: dict[str, Value],
    padding: Padding | None,
) -> Measured:
    """The records of head "composed", and the moments of the whole output."""
    query, key = capture.all_queries, capture.all_keys
    assert query is not None
    assert key is not None
    assert capture.first_x is not None
    assert capture.whole_output is not None
    rows = {"input": capture.first_x, "output": capture.whole_output}
    outputs = [name for name in wanted.quantities if name == "output"]
    measurements, moments = measure_placed_rows(rows, size, outputs, centres, padding)
    measurements = [replace(one, heads=(COMPOSED_HEAD,)) for one in measurements]
    if "att" in wanted.quantities:
        for positions, counted in _places(capture, padding).items():
            values: dict[str, Value] = size | {"n_queries": counted.sum((1, 2))}
            values |= vars(composed_map_statistics(query, key, counted))
            values |= _padding_mass(query, key, padding, counted)
            measurements.append(Measurement("att", (COMPOSED_HEAD,), values, positions))
    return measurements, {name: each for name, each in moments.items() if name == "output"}
