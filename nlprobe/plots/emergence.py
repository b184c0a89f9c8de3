"""How query-independence arises: distances and what stands beside them, over the iterations of a training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nlprobe.plots.style import (
    COLUMN_WIDTH,
    DASH_DOTTED,
    DASHED,
    DOTTED,
    PAGE_WIDTH,
    SERIES_COLOURS,
    SERIES_DASHES,
    WHOLE,
    Dashes,
    style,
)
from nlprobe.stats.records import QUANTITIES

DISTANCE = "avg_dist"
SHARE_OF_KEYS = "n_eff/N"

BESIDE = ("entropy", SHARE_OF_KEYS, "shared", "mean_map_error")
"""What tells a shared map from a flat one, and what one map for all would cost; each lies between 0 and 1."""

# Okabe and Ito's colours; what goes into the map is dashed, what comes out of it is not.
COLOURS = {
    **{"input": "#6b6b6b", "key": "#56b4e9", "query": "#0072b2"},
    **{"prod": "#009e73", "att": "#d55e00", "output": "#cc79a7"},
    **{"entropy": "#e69f00", SHARE_OF_KEYS: "#d55e00", "shared": "#0072b2", "mean_map_error": "#cc79a7"},
}
DASHES = {"input": DOTTED, "key": DASHED, "query": DASH_DOTTED, SHARE_OF_KEYS: DASHED}
UNDEFINED, ZERO = "x", "v"
MARKS = {UNDEFINED: "undefined", ZERO: "0, below the axis"}

# Distances that span more than this are drawn on a logarithmic axis, where the small ones can be read.
LINEAR_SPAN = 20.0
PANELS_IN_LINE = 4
POINTS_WITH_DOTS = 25
BAND = 0.2


@dataclass(frozen=True)
class _Look:
    """How a line is drawn, and what the legend calls it."""

    label: str
    colour: str
    dashes: Dashes


def emergence_data(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What `draw_emergence` shows, in long form.

    Args:
        runs: By the name of a run, its table of `nlprobe.emergence.COLUMNS`.

    Returns:
        The same columns with `run` in front and without `n_keys`: the effective number of keys has become the share
        n_eff/N of all keys. What is not drawn is left out.
    """
    parts = []
    for name, frame in runs.items():
        part = frame.copy()
        part.insert(0, "run", name)
        counted = part["measure"] == "n_eff"
        part.loc[counted, ["mean", "low", "high"]] = part.loc[counted, ["mean", "low", "high"]].div(
            part.loc[counted, "n_keys"], axis=0
        )
        part.loc[counted, "measure"] = SHARE_OF_KEYS
        parts.append(part[part["measure"].isin((DISTANCE, *BESIDE))])
    return pd.concat(parts, ignore_index=True).drop(columns="n_keys")


def draw_emergence(data: pd.DataFrame, *, overlay: bool = False) -> Figure:
    """Lines over iterations with their 95 % intervals: the distances above, what stands beside them below.

    All panels of distances share one axis, which is logarithmic where they span more than a factor of 20. An undefined
    value is no point of a line but a cross at the foot, and a zero that a logarithmic axis has no place for a triangle.
    Quantities that are 0 by construction are named in the panel.

    Args:
        data: As `emergence_data` makes it.
        overlay: A panel for each number with a line for each run and site, in place of a panel for each run and site
            with a line for each number.

    Returns:
        The figure: one column of a paper wide for one panel, else the page.

    Raises:
        ValueError: there is nothing to draw.
    """
    if data.empty:
        raise ValueError("nothing was measured")
    logarithmic = _spans_decades(data)
    with style():
        return _overlaid(data, logarithmic) if overlay else _side_by_side(data, logarithmic)


def _spans_decades(data: pd.DataFrame) -> bool:
    distances = data[(data["measure"] == DISTANCE) & ~data["by_construction"]]["mean"]
    positive = distances[distances > 0]
    return bool(len(positive)) and bool(positive.max() > LINEAR_SPAN * positive.min())


def _side_by_side(data: pd.DataFrame, logarithmic: bool) -> Figure:
    """A panel of distances and one of what stands beside them for each run and site."""
    shown = list(dict.fromkeys(zip(data["run"], data["site"], strict=True)))
    several = {"run": data["run"].nunique() > 1, "site": data["site"].nunique() > 1}
    across = min(len(shown), PANELS_IN_LINE)
    lines = -(-len(shown) // across)
    width = COLUMN_WIDTH if across == 1 else PAGE_WIDTH
    narrow = width == COLUMN_WIDTH
    figure, grid = _panels(width, lines, across, legend=0.75 if narrow else 0.47)
    looks: dict[str, _Look] = {}
    for number, (run, site) in enumerate(shown):
        upper, lower = grid[2 * (number // across) : 2 * (number // across) + 2, number % across]
        own = data[(data["run"] == run) & (data["site"] == site)]
        title = [run] * (several["run"] or not several["site"]) + [site] * (several["site"] or not several["run"])
        upper.set_title("\n".join(title) if across > 2 else "  ·  ".join(title), loc="left")
        drawn = {name: own[(own["measure"] == DISTANCE) & (own["quantity"] == name)] for name in QUANTITIES}
        beside = {name: own[own["measure"] == name] for name in BESIDE}
        for axes, parts in ((upper, drawn), (lower, beside)):
            for name, rows in parts.items():
                if not rows.empty and not rows["by_construction"].all():
                    looks[name] = _Look(_pretty(name), COLOURS[name], DASHES.get(name, WHOLE))
                    _draw_line(axes, rows, looks[name], logarithmic and axes is upper)
        _note_fixed(upper, [name for name, rows in drawn.items() if len(rows) and rows["by_construction"].all()])
        _finish(upper, "cosine distance" if number % across == 0 else "", logarithmic=logarithmic)
        _finish(lower, "fraction" if number % across == 0 else "", unit=True)
        lower.set_xlabel("iteration")
        upper.tick_params(labelbottom=False)
    for number in range(len(shown), across * lines):
        for axes in grid[2 * (number // across) : 2 * (number // across) + 2, number % across]:
            axes.set_visible(False)
    _share_scale(grid[::2].ravel(), logarithmic)
    above = [looks[name] for name in QUANTITIES if name in looks]
    below = [looks[name] for name in BESIDE if name in looks]
    _add_legend(figure, above, 0.56 if narrow else 0.32, columns=3 if narrow else 6)
    _add_legend(figure, below, 0.2 if narrow else 0.12, columns=3 if narrow else 6, marks=True)
    return figure


def _overlaid(data: pd.DataFrame, logarithmic: bool) -> Figure:
    """A panel for each number, with a line for each run and site."""
    shown = list(dict.fromkeys(zip(data["run"], data["site"], strict=True)))
    several = data["site"].nunique() > 1
    styles = [(colour, dashes) for dashes in SERIES_DASHES for colour in SERIES_COLOURS]
    looks = {
        (run, site): _Look(f"{run}, {site}" if several else run, colour, dashes)
        for (run, site), (colour, dashes) in zip(shown, cycle(styles), strict=False)
    }
    varying = data[~data["by_construction"]]
    distances = [name for name in QUANTITIES if (varying["quantity"] == name).any()]
    beside = [name for name in BESIDE if (varying["measure"] == name).any()]
    across = max(len(distances), len(beside), 1)
    columns = 2 if several else 4
    height = 0.17 * -(-(len(looks) + 1) // columns) + 0.1
    figure, grid = _panels(PAGE_WIDTH, 1, across, legend=height)
    for axes, name in [*zip(grid[0], distances, strict=False), *zip(grid[1], beside, strict=False)]:
        chosen = varying["measure"] == (name if name in BESIDE else DISTANCE)
        chosen &= (varying["quantity"] == name) | (name in BESIDE)
        for (run, site), look in looks.items():
            rows = varying[chosen & (varying["run"] == run) & (varying["site"] == site)]
            if not rows.empty:
                _draw_line(axes, rows, look, logarithmic and name not in BESIDE)
        axes.set_title(_pretty(name), loc="left")
        first = axes in (grid[0, 0], grid[1, 0])
        label = ("fraction" if name in BESIDE else "cosine distance") if first else ""
        _finish(axes, label, logarithmic=logarithmic and name not in BESIDE, unit=name in BESIDE)
        axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    for number, (upper, lower) in enumerate(grid.T):
        last = lower if number < len(beside) else upper
        last.set_xlabel("iteration")
        upper.tick_params(labelbottom=last is upper)
    for axes in (*grid[0, len(distances) :], *grid[1, len(beside) :]):
        axes.set_visible(False)
    _share_scale(grid[0, : len(distances)], logarithmic)
    _add_legend(figure, list(looks.values()), height / 2, columns=columns, marks=True)
    return figure


def _panels(width: float, pairs: int, across: int, *, legend: float) -> tuple[Figure, np.ndarray]:
    """A figure with so many pairs of lines of panels, room between the pairs, and `legend` inches below them."""
    ratios = [1.0, 1.0, 0.4] * pairs
    height = 2.9 * pairs + 0.45 + legend
    figure = Figure(figsize=(width, height))
    spec = figure.add_gridspec(
        3 * pairs - 1,
        across,
        height_ratios=ratios[:-1],
        left=0.5 / width,
        right=1 - 0.1 / width,
        bottom=(legend + 0.35) / height,
        top=1 - (0.4 if across > 2 else 0.28) / height,
        hspace=0.2,
        wspace=0.12,
    )
    lines = [line for line in range(3 * pairs - 1) if line % 3 < 2]
    grid = [[figure.add_subplot(spec[line, column]) for column in range(across)] for line in lines]
    return figure, np.array(grid, dtype=object)


def _draw_line(axes: Axes, rows: pd.DataFrame, look: _Look, logarithmic: bool) -> None:
    """One line with its band; what has no place on the axis is marked at its foot."""
    rows = rows.sort_values("step")
    steps, mean = rows["step"].to_numpy(), rows["mean"].to_numpy(dtype=float)
    zero = (mean <= 0) & logarithmic
    visible = np.where(zero, np.nan, mean)
    low, high = (np.where(np.isnan(visible), np.nan, rows[end].to_numpy(dtype=float)) for end in ("low", "high"))
    if logarithmic:
        # An interval that reaches down to 0 reaches down to the foot of the axis.
        low = np.where(low <= 0, np.finfo(float).tiny, low)
    dots = "o" if len(rows) <= POINTS_WITH_DOTS else ""
    # Broken lines lie above whole ones, which show through them where they run together.
    above = 3 if look.dashes[1] else 2
    axes.plot(steps, visible, color=look.colour, linestyle=look.dashes, zorder=above, marker=dots, markersize=2)
    axes.fill_between(steps, low, high, color=look.colour, alpha=BAND, linewidth=0)
    for mark, where in ((UNDEFINED, np.isnan(mean)), (ZERO, zero)):
        if where.any():
            axes.plot(
                steps[where],
                np.full(int(where.sum()), 0.03),
                transform=axes.get_xaxis_transform(),
                linestyle="none",
                marker=mark,
                markersize=3,
                color=look.colour,
                clip_on=False,
                gid=mark,
            )


def _finish(axes: Axes, label: str, *, logarithmic: bool = False, unit: bool = False) -> None:
    axes.set_ylabel(label)
    axes.tick_params(labelleft=bool(label))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(linewidth=0.3, color="0.85")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if unit:
        axes.set_ylim(0, 1.02)
    if logarithmic:
        axes.set_yscale("log")


def _share_scale(panels: Iterable[Axes], logarithmic: bool) -> None:
    """Give all panels of distances one axis, over the lines and not over intervals that reach down to 0."""
    panels = [axes for axes in panels if axes.get_visible()]
    values = [line.get_ydata() for axes in panels for line in axes.lines if line.get_gid() is None]
    seen = np.concatenate([np.asarray(each, dtype=float) for each in values]) if values else np.empty(0)
    seen = seen[np.isfinite(seen)]
    if not len(seen):
        return
    low, high = (seen.min() / 1.6, seen.max() * 1.6) if logarithmic else (0.0, seen.max() * 1.1 or 1.0)
    for axes in panels:
        axes.set_ylim(low, high)


def _note_fixed(axes: Axes, names: Sequence[str]) -> None:
    if names:
        axes.text(
            0.98,
            0.04,
            f"{', '.join(names)}: 0 by construction",
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            fontsize=5.5,
        )


def _add_legend(figure: Figure, looks: Sequence[_Look], middle: float, *, columns: int, marks: bool = False) -> None:
    """What lines mean, `middle` inches above the figure's foot; with `marks`, also what stands at a panel's foot."""
    handles = [Line2D([], [], color=look.colour, linestyle=look.dashes, label=look.label) for look in looks]
    used = {line.get_gid() for axes in figure.axes for line in axes.lines}
    handles += [
        Line2D([], [], color="0.3", linestyle="none", marker=mark, markersize=3, label=text)
        for mark, text in MARKS.items()
        if marks and mark in used
    ]
    figure.legend(
        handles=handles,
        loc="center",
        bbox_to_anchor=(0.5, middle / figure.get_figheight()),
        ncols=max(min(columns, len(handles)), 1),
        frameon=False,
        columnspacing=1.2,
        handletextpad=0.4,
        handlelength=2.2,
        labelspacing=0.3,
    )


def _pretty(name: str) -> str:
    return {SHARE_OF_KEYS: r"$n_\mathrm{eff}/N$", "mean_map_error": "mean-map error"}.get(name, name)
