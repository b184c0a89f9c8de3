"""Records → one summary per site: the mean of every quantity over images, with its interval."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import pandas as pd

from nlprobe.stats.intervals import Estimate, bootstrap_mean
from nlprobe.stats.records import (
    ACCOMPANYING,
    BASE_POSITIONS,
    METRIC_COLUMNS,
    QUANTITIES,
    SPACE_TIME_COLUMNS,
    stands_alone,
    summary_name,
)

UNDEFINED_AT_TIMES = ("shared", "mean_map_error")
"""Columns that always apply where they stand: without a value they are undefined, and not absent."""

KINDS = ("trained", "init-block", "init-all")


@dataclass(frozen=True)
class SiteSummary:
    """What was measured at one site of one network.

    Attributes:
        model: Label of the checkpoint.
        kind: "trained", or the null model: "init-block", "init-all".
        site: The site's name, or "mean of K sites" for a table row of a network with several.
        block: The kind of block.
        settings: The block's settings.
        quantities: Average distances by quantity; a quantity that the block does not have is absent.
        columns: The accompanying numbers by name.
        energy: Shares of the output's energy over the data set: constant, context, pairwise_part; they sum to 1.
        n_queries: Smallest and largest number of queries.
        n_keys: Smallest and largest number of keys.
        zero_rows: How many rows had no direction and were left out, over all images and quantities.
        groups: Smallest and largest number of windows in an image, each of which is a set of positions of its own.
        head: The head, "avg" for the head-averaged map, "composed" for several steps together, "pairwise" and "unary"
            for the two maps whose sum a block uses, or "" for the mean over heads.
        positions: Which rows: "valid" (without the padding of any image that has some), "all", "no_prefix" or
            "rectangle".
    """

    model: str
    kind: str
    site: str
    block: str
    settings: dict[str, object]
    quantities: dict[str, Estimate]
    columns: dict[str, Estimate]
    energy: dict[str, float] = field(default_factory=dict)
    n_queries: tuple[int, int] = (0, 0)
    n_keys: tuple[int, int] = (0, 0)
    zero_rows: int = 0
    groups: tuple[int, int] = (1, 1)
    head: str = ""
    positions: str = "all"

    def as_dict(self) -> dict[str, object]:
        """The summary for JSON: NaN becomes null, and each quantity's numbers stand under its name."""
        result = asdict(self)
        return _without_nan(result)  # type: ignore[return-value]


def at_positions(frame: pd.DataFrame, positions: str = "valid") -> pd.DataFrame:
    """The records over the positions asked for.

    Args:
        frame: Records.
        positions: "valid": those that are no padding, which are all where there is none. "all": with the padding, as
            far as it was measured. "no_prefix": without the prefix tokens; a site that has none is in it with its valid
            positions. "rectangle": the chosen queries and keys.
    """
    if positions == "rectangle":
        return frame[frame["positions"] == positions]
    base = frame["positions"].isin(BASE_POSITIONS)
    preferred = "all" if positions == "all" else "valid"
    found = base & (frame["positions"] == preferred)
    if found.any() and not found[base].all():
        places = ["image", "view", "site"]
        base &= found | ~frame.set_index(places).index.isin(frame[found].set_index(places).index)
    if positions == "no_prefix":
        chosen = frame["positions"] == positions
        return frame[chosen | (base & ~frame["site"].isin(frame.loc[chosen, "site"].unique()))]
    return frame[base]


def heads_of(frame: pd.DataFrame) -> list[str]:
    """The heads of a site's records, in their order, rows of their own such as the head-averaged map last.

    Empty where there is one at most.
    """
    found = set(frame["head"].unique()) - {"-"}
    if len(found) < 2:
        return []
    return sorted(found, key=lambda head: (stands_alone(head), int(head) if head.isdigit() else 0, head))


def per_image(frame: pd.DataFrame, quantity: str, column: str = "avg_dist", *, positions: str = "valid") -> pd.Series:
    """One value for each image: the mean over sites of the mean over the views, calls and heads at each.

    Records whose `head` is a row of its own (the head-averaged map, composed steps) are left out.

    Args:
        frame: Records of one site, or of all sites of a network.
        quantity: One of the six quantities.
        column: The column to average.
        positions: As for `at_positions`.

    Returns:
        The values by image, in the order in which the images were seen; NaN where undefined.
    """
    rows = frame[(frame["quantity"] == quantity) & ~frame["head"].map(stands_alone).astype(bool)]
    return _by_image(at_positions(rows, positions), column)


def summarise(
    frame: pd.DataFrame,
    *,
    model: str,
    kind: str = "trained",
    block: str = "",
    settings: Mapping[str, object] | None = None,
    energy: Mapping[str, float] | None = None,
    seed: int = 0,
    positions: str = "valid",
    head: str = "",
) -> SiteSummary:
    """The summary of one site, or of all sites of a network together (then each image's value is its mean over them).

    Args:
        frame: Records of one site or of several.
        model: Label of the checkpoint.
        kind: "trained" or a null model.
        block: The kind of block.
        settings: The block's settings.
        energy: Energy shares of the output over the data set.
        seed: Seed of the bootstrap.
        positions: As for `at_positions`.
        head: Summarise this head alone ("avg": the head-averaged map); by default the mean over heads.
    """
    frame = frame[frame["head"] == head] if head else frame[~frame["head"].map(stands_alone).astype(bool)]
    # The metrics know by themselves what to do with prefix tokens, and stand in the records of all positions.
    metrics = at_positions(frame) if positions == "no_prefix" else None
    frame = at_positions(frame, positions)
    if positions in BASE_POSITIONS:
        positions = "valid" if (frame["positions"] == "valid").any() else "all"
    quantities: dict[str, Estimate] = {}
    columns: dict[str, Estimate] = {}
    for quantity in QUANTITIES:
        rows = frame[frame["quantity"] == quantity]
        if rows.empty:
            continue
        estimate = bootstrap_mean(_by_image(rows, "avg_dist").to_numpy(), seed=seed)
        fixed = bool(rows["by_construction"].all())
        quantities[quantity] = Estimate(estimate.mean, estimate.low, estimate.high, estimate.n, fixed)
        for column in (*ACCOMPANYING[quantity], *SPACE_TIME_COLUMNS):
            source = rows
            if metrics is not None and column in METRIC_COLUMNS:
                source = metrics[metrics["quantity"] == quantity]
            if source[column].isna().all() and (fixed or column not in UNDEFINED_AT_TIMES):
                continue
            estimate = bootstrap_mean(_by_image(source, column).to_numpy(), seed=seed)
            if column in SPACE_TIME_COLUMNS:
                estimate = replace(estimate, by_construction=fixed)
            columns[summary_name(quantity, column)] = estimate
    sites = frame["site"].unique()
    maps = frame[frame["quantity"].isin(("prod", "att"))]
    sizes = maps if not maps.empty else frame
    return SiteSummary(
        model=model,
        kind=kind,
        site=str(sites[0]) if len(sites) == 1 else f"mean of {len(sites)} sites",
        block=block,
        settings=dict(settings or {}),
        quantities=quantities,
        columns=columns,
        energy=dict(energy or {}),
        n_queries=_range(sizes["n_queries"]),
        n_keys=_range(sizes["n_keys"]),
        zero_rows=int(frame["zero_rows"].sum()),
        groups=_range(sizes["groups"]),
        head=head,
        positions=positions,
    )


def mean_over_draws(draws: list[SiteSummary]) -> SiteSummary:
    """The summary of a null model: the mean over draws, with their range in place of the interval.

    Args:
        draws: One summary for each redrawn block, all of the same site.
    """
    first = draws[0]

    def across(estimates: list[Estimate]) -> Estimate:
        means = np.array([estimate.mean for estimate in estimates])
        if np.isnan(means).all():
            return Estimate(math.nan, math.nan, math.nan, 0, estimates[0].by_construction)
        return Estimate(
            float(np.nanmean(means)),
            float(np.nanmin(means)),
            float(np.nanmax(means)),
            estimates[0].n,
            estimates[0].by_construction,
        )

    return SiteSummary(
        model=first.model,
        kind=first.kind,
        site=first.site,
        block=first.block,
        settings=first.settings,
        quantities={name: across([draw.quantities[name] for draw in draws]) for name in first.quantities},
        columns={name: across([draw.columns[name] for draw in draws]) for name in first.columns},
        energy={name: float(np.mean([draw.energy[name] for draw in draws])) for name in first.energy},
        n_queries=first.n_queries,
        n_keys=first.n_keys,
        zero_rows=sum(draw.zero_rows for draw in draws),
        groups=first.groups,
        head=first.head,
        positions=first.positions,
    )


def _by_image(rows: pd.DataFrame, column: str) -> pd.Series:
    by_site = rows.groupby(["image", "site"], sort=False)[column].mean()
    return by_site.groupby("image", sort=False).mean()


def _range(values: pd.Series) -> tuple[int, int]:
    if values.empty:
        return (0, 0)
    return (int(values.min()), int(values.max()))


def _without_nan(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
