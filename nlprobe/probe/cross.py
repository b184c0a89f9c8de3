"""Captures of criss-cross steps → the numbers of their records."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import CrossCapture
from nlprobe.probe.measurement import Measured, Measurement, Value, Wanted
from nlprobe.probe.rows import measure_rows
from nlprobe.stats import (
    composed_map_statistics,
    cross_flat_distance,
    cross_map_statistics,
    cross_product_statistics,
)
from nlprobe.stats.records import COMPOSED_HEAD


def measure_cross(capture: CrossCapture, wanted: Wanted, centres: Mapping[str, Tensor], prefix: int) -> Measured:
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
    measurements, moments = measure_rows(
        {
            "input": capture.x,
            "key": capture.key.flatten(1, 2).unsqueeze(1),  # (b, 1, n, d)
            "query": capture.query.flatten(1, 2).unsqueeze(1),
            "output": capture.output,
        },
        size,
        wanted.quantities,
        {name: centre for name, centre in centres.items() if name not in of_whole_block},
    )
    moments = {name: each for name, each in moments.items() if name not in of_whole_block}
    size |= {"dim": n}
    if "prod" in wanted.quantities:
        products = dict(vars(cross_product_statistics(capture.query, capture.key)))
        del products["pairwise"], products["unary"]
        measurements.append(Measurement("prod", ("0",), size | products))
    if "att" in wanted.quantities:
        maps = vars(cross_map_statistics(capture.query, capture.key))
        flat = cross_flat_distance(*capture.query.shape[1:3])
        measurements.append(Measurement("att", ("0",), size | maps | {"flat": flat}))
    if capture.all_queries is not None:
        composed, whole = _composed(capture, wanted, centres, size)
        measurements += composed
        moments |= whole
    return measurements, moments


def _composed(capture: CrossCapture, wanted: Wanted, centres: Mapping[str, Tensor], size: dict[str, Value]) -> Measured:
    """The records of head "composed", and the moments of the whole output."""
    assert capture.all_queries is not None
    assert capture.all_keys is not None
    assert capture.first_x is not None
    assert capture.whole_output is not None
    rows = {"input": capture.first_x, "output": capture.whole_output}
    outputs = [name for name in wanted.quantities if name == "output"]
    measurements, moments = measure_rows(rows, size, outputs, centres)
    measurements = [replace(one, heads=(COMPOSED_HEAD,)) for one in measurements]
    if "att" in wanted.quantities:
        maps = vars(composed_map_statistics(capture.all_queries, capture.all_keys))
        measurements.append(Measurement("att", (COMPOSED_HEAD,), size | maps))
    return measurements, {name: each for name, each in moments.items() if name == "output"}
