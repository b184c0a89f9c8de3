"""Vectors at positions - input, key, query, output - → the numbers of their records."""

from collections.abc import Collection, Mapping

from torch import Tensor

from nlprobe.probe.measurement import Measured, Measurement, Moments, Value, joined
from nlprobe.probe.padding import Padding
from nlprobe.probe.runs import chosen, padded_runs
from nlprobe.stats import RowStatistics, avg_dist, row_statistics, row_statistics_beside_prefix


def measure_rows(
    rows: Mapping[str, Tensor],
    size: Mapping[str, Value],
    quantities: Collection[str],
    centres: Mapping[str, Tensor],
    *,
    positions: str = "all",
    beside: str = "",
    leading: Mapping[str, int] | None = None,
    residual: bool = True,
) -> Measured:
    """The average distance of each, with what stands beside it.

    Args:
        rows: By quantity, (s, n, c), or (s, h, n, d) for keys and queries.
        size: Values that all records have.
        quantities: Which are wanted.
        centres: Data-set means by quantity.
        positions: What the records say of their positions.
        beside: What the records of a second measurement say, without the first `leading` rows; "" for none. Of "valid"
            are the moments, else of all rows.
        leading: By quantity, 0 where it is missing.
        residual: Whether the output is added to the input inside the block.
    """
    measurements: list[Measurement] = []
    moments: dict[str, Moments] = {}
    inputs: list[RowStatistics] = []
    for quantity, v in rows.items():
        # `update` compares the output with the input, whether or not the input's own record is asked for
        if quantity not in quantities and not (quantity == "input" and "output" in quantities and residual):
            continue
        skipped = (leading or {}).get(quantity, 0)
        if not beside or skipped >= v.shape[-2]:
            statistics = [row_statistics(v)]
        else:
            statistics = row_statistics_beside_prefix(v, skipped) if skipped else [row_statistics(v)] * 2
        moments[quantity] = _moments(statistics[-1 if beside == "valid" else 0])
        if quantity == "input":
            inputs = statistics
        if quantity not in quantities:
            continue
        for at, (one, place) in enumerate(zip(statistics, (positions, beside), strict=False)):
            values: dict[str, Value] = {"zero_rows": one.zero_rows, "avg_dist": one.avg_dist}
            if quantity in centres:
                values["centred_dist"] = avg_dist(v[..., at * skipped :, :] - centres[quantity].to(v))
            if quantity == "output":
                if residual and len(inputs) > at:
                    values["update"] = (one.energy / inputs[at].energy).sqrt()
                values["mean_map_error"] = (one.spread / one.energy).sqrt()
            common = dict(size) | {"n_queries": v.shape[-2] - at * skipped, "dim": v.shape[-1]}
            heads = heads_of(one.avg_dist) if v.dim() > 3 else ("-",)
            measurements.append(Measurement(quantity, heads, common | values, place))
    return measurements, moments


def measure_placed_rows(
    rows: Mapping[str, Tensor],
    size: Mapping[str, Value],
    quantities: Collection[str],
    centres: Mapping[str, Tensor],
    padding: Padding | None,
) -> Measured:
    """`measure_rows` of all rows, and where pictures are padded of those that lie in the picture, image by image.

    Args:
        rows: By quantity, (b, n, c), or (b, h, n, d), of the same n positions.
        size: Values that all records have.
        quantities: Which are wanted.
        centres: Data-set means by quantity.
        padding: Which positions lie in the pictures, where somebody has said so.
    """
    if padding is None or not padding.any:
        return measure_rows(rows, size, quantities, centres)
    measured, first = [], 0
    runs = padded_runs(padding.queries, None)
    for run in runs:
        part = {name: chosen(v[first : first + run.sets], run.queries) for name, v in rows.items()}
        first += run.sets
        leading = dict.fromkeys(rows, run.leading)
        measured.append(measure_rows(part, size, quantities, centres, beside="valid", leading=leading))
    return joined(measured, [run.sets for run in runs])


def heads_of(values: Tensor) -> tuple[str, ...]:
    """The names that records give the heads of values (s, h)."""
    return tuple(map(str, range(values.shape[1])))


def moments_of(statistics: RowStatistics) -> Moments:
    """What the sums over the data set need."""
    return Moments(statistics.mean, statistics.energy, statistics.spread)


def _moments(statistics: RowStatistics) -> Moments:
    """Of all rows; those of several heads are not summed over the data set, but the first head's stand for one."""
    if statistics.energy.dim() == 1:
        return moments_of(statistics)
    return Moments(statistics.mean[:, 0], statistics.energy[:, 0], statistics.spread[:, 0])
