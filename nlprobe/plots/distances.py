"""The six distances of each network with their intervals, trained beside initialisation."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from nlprobe.plots.style import COLUMN_WIDTH, KIND_COLOURS, style
from nlprobe.stats.intervals import Estimate
from nlprobe.stats.records import QUANTITIES
from nlprobe.stats.summary import SiteSummary

KIND_NAMES = {"trained": "trained", "init-block": "block redrawn", "init-all": "at initialisation"}
KIND_MARKERS = {"trained": "o", "init-block": "D", "init-all": "s"}

# Distances that span more than this are drawn on a logarithmic axis, where the small ones can be read.
LINEAR_SPAN = 20.0


def draw_distances(summaries: Sequence[SiteSummary], *, width: float = COLUMN_WIDTH) -> Figure:
    """A panel for each network and site: the six distances as points with intervals, by kind of network.

    The axis is logarithmic where the distances span more than a factor of 20. Undefined distances and those that are 0
    by construction have no place on an axis: they are written at its foot.

    Args:
        summaries: Trained networks and their null models.
        width: Of the figure, in inches.

    Returns:
        The figure; its panels share the axis of distances.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not summaries:
        raise ValueError("no summary to draw")
    with style():
        panels = list(dict.fromkeys((summary.model, summary.site) for summary in summaries))
        height = 1.55 * len(panels) + 0.45
        figure = Figure(figsize=(width, height))
        grid = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)
        positive = [e.mean for s in summaries for e in s.quantities.values() if not e.by_construction and e.mean > 0]
        logarithmic = bool(positive) and max(positive) > LINEAR_SPAN * min(positive)
        kinds = [kind for kind in KIND_NAMES if any(summary.kind == kind for summary in summaries)]
        for axes, (model, site) in zip(grid[:, 0], panels, strict=True):
            own = [summary for summary in summaries if (summary.model, summary.site) == (model, site)]
            _draw_panel(axes, own, kinds, logarithmic)
            axes.set_title(f"{model}  ·  {site}", loc="left")
            axes.set_ylabel("cosine distance")
        grid[-1, 0].set_xticks(range(len(QUANTITIES)), QUANTITIES)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if len(kinds) > 1:
            figure.legend(handles, labels, loc="lower center", ncols=len(kinds), frameon=False, handletextpad=0.3)
        below = 0.42 if len(kinds) > 1 else 0.25
        figure.subplots_adjust(
            left=0.6 / width, right=1 - 0.05 / width, bottom=below / height, top=1 - 0.2 / height, hspace=0.3
        )
    return figure


def distance_data(summaries: Sequence[SiteSummary]) -> pd.DataFrame:
    """What `draw_distances` shows: model, site, kind, quantity, mean, low, high, n, by_construction."""
    return pd.DataFrame(
        [
            {
                "model": summary.model,
                "site": summary.site,
                "kind": summary.kind,
                "quantity": name,
                "mean": estimate.mean,
                "low": estimate.low,
                "high": estimate.high,
                "n": estimate.n,
                "by_construction": estimate.by_construction,
            }
            for summary in summaries
            for name, estimate in summary.quantities.items()
        ]
    )


def _draw_panel(axes: Axes, summaries: Sequence[SiteSummary], kinds: Sequence[str], logarithmic: bool) -> None:
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_power))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y", linewidth=0.3, color="0.85")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(QUANTITIES) - 0.5)
    for place, kind in enumerate(kinds):
        offset = 0.22 * (place - (len(kinds) - 1) / 2)
        for summary in summaries:
            if summary.kind == kind:
                _draw_kind(axes, summary, offset, logarithmic)


def _power(value: float, _: object) -> str:
    return f"{value:g}" if value > 5e-3 else f"{value:.0e}".replace("e-0", "e-").replace("-", "−")


def _draw_kind(axes: Axes, summary: SiteSummary, offset: float, logarithmic: bool) -> None:
    colour = KIND_COLOURS[summary.kind]
    texts = {name: text for name, e in summary.quantities.items() if (text := _without_place(e, logarithmic))}
    drawn = {name: estimate for name, estimate in summary.quantities.items() if name not in texts}
    positions = [QUANTITIES.index(name) + offset for name in drawn]
    axes.errorbar(
        positions,
        [estimate.mean for estimate in drawn.values()],
        yerr=list(zip(*(_reach(estimate) for estimate in drawn.values()), strict=True)) or None,
        fmt=KIND_MARKERS[summary.kind],
        color=colour,
        markerfacecolor=colour if summary.kind == "trained" else "white",
        markersize=3.5,
        markeredgewidth=0.9,
        elinewidth=0.9,
        capsize=1.5,
        label=KIND_NAMES[summary.kind],
    )
    for name, text in texts.items():
        axes.annotate(
            text,
            (QUANTITIES.index(name) + offset, 0.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            rotation=90,
            fontsize=5.5,
            color=colour,
        )


def _without_place(estimate: Estimate, logarithmic: bool) -> str:
    """What is written at the foot for a distance that the axis has no place for; empty where it has one."""
    if estimate.by_construction:
        return "0 by constr."
    if math.isnan(estimate.mean):
        return "undef."
    return "0" if logarithmic and estimate.mean <= 0 else ""


def _reach(estimate: Estimate) -> tuple[float, float]:
    """How far the interval goes below and above the mean; nothing where there is none."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return (0.0, 0.0)
    return (max(estimate.mean - estimate.low, 0.0), max(estimate.high - estimate.mean, 0.0))
