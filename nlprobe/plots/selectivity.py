"""Distributions of the class selectivity index over channels (Figure 7 of the paper)."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nlprobe.plots.style import COLUMN_WIDTH, PAGE_WIDTH, SERIES_COLOURS, SERIES_DASHES, Dashes, legend_columns, style
from nlprobe.stats.class_summaries import SelectivitySummary
from nlprobe.stats.intervals import Estimate
from nlprobe.tables.table import Cell, interval, number

PANELS_IN_LINE = 3

BELOW_TEXT = 0.8
"""How much of a panel's height the lines take; what is written stands above."""

Look = tuple[str, Dashes]
"""Colour and line style."""


def selectivity_data(summaries: Sequence[SelectivitySummary], classes: Sequence[str]) -> pd.DataFrame:
    """The channels behind `draw_selectivity`.

    Args:
        summaries: Of all networks.
        classes: Names of the classes.

    Returns:
        A line for each channel: model, module, channel, index (empty where it has none), preferred (the class), mu_max,
        mu_others, state ("live", "dead" or "signed").
    """
    parts = []
    for one in summaries:
        found = one.channels
        parts.append(
            pd.DataFrame(
                {
                    "model": one.model,
                    "module": one.module,
                    "channel": np.arange(len(found.index)),
                    "index": found.index,
                    "preferred": [classes[label] if label >= 0 else "" for label in found.preferred],
                    "mu_max": found.highest,
                    "mu_others": found.others,
                    "state": np.select([found.dead, found.signed], ["dead", "signed"], "live"),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def draw_selectivity(summaries: Sequence[SelectivitySummary], groups: Mapping[str, str] | None = None) -> Figure:
    """A panel for each module, and in it the density of the index over the channels of each network.

    Gaussian kernel densities with Scott's bandwidth, drawn from 0 to 1 where the index lies; what of a kernel reaches
    beyond is cut off. A vertical line marks the mean, which is written with its interval over images. All panels share
    their axes. Channels without an index are left out, and counted in the panel.

    Args:
        summaries: Of all networks.
        groups: By the name of a network, what it is one of, such as several trainings of one kind of network. Those of
            a group have one colour, and in place of an interval over images the range of their means is written.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not summaries:
        raise ValueError("no summary to draw")
    modules = list(dict.fromkeys(one.module for one in summaries))
    group_of = {one.model: (groups or {}).get(one.model, one.model) for one in summaries}
    styles = cycle(zip(SERIES_COLOURS, cycle(SERIES_DASHES), strict=False))
    looks = dict(zip(dict.fromkeys(group_of.values()), styles, strict=False))
    across = min(len(modules), PANELS_IN_LINE)
    lines = -(-len(modules) // across)
    width = COLUMN_WIDTH if across == 1 else PAGE_WIDTH
    columns = legend_columns(looks, width)
    below = 0.42 + 0.17 * -(-len(looks) // columns)
    height = 1.75 * lines + below
    with style():
        figure = Figure(figsize=(width, height))
        panels = list(figure.subplots(lines, across, sharex=True, sharey=True, squeeze=False).ravel())
        for at, (axes, module) in enumerate(zip(panels, modules, strict=False)):
            own = [one for one in summaries if one.module == module]
            by_group = {name: [one for one in own if group_of[one.model] == name] for name in looks}
            _draw_panel(axes, {name: found for name, found in by_group.items() if found}, looks)
            axes.set_title(module, loc="left")
            axes.set_ylabel("density" if at % across == 0 else "")
            if at + across >= len(modules):
                axes.set_xlabel("class selectivity index")
                axes.tick_params(labelbottom=True)
        for axes in panels[len(modules) :]:
            axes.set_visible(False)
        panels[0].set_xlim(0, 1)
        panels[0].set_xticks((0, 0.25, 0.5, 0.75, 1), ("0", ".25", ".5", ".75", "1"))
        panels[0].set_ylim(0, panels[0].get_ylim()[1] / BELOW_TEXT)
        handles = [Line2D([], [], color=colour, linestyle=dashes) for colour, dashes in looks.values()]
        figure.legend(handles, list(looks), loc="lower center", ncols=columns, frameon=False, borderaxespad=0.2)
        figure.subplots_adjust(
            left=0.42 / width,
            right=1 - 0.1 / width,
            bottom=below / height,
            top=1 - 0.22 / height,
            hspace=0.28,
            wspace=0.1,
        )
    return figure


def _draw_panel(axes: Axes, groups: Mapping[str, Sequence[SelectivitySummary]], looks: Mapping[str, Look]) -> None:
    means = [one.mean.mean for group in groups.values() for one in group]
    # what is written keeps to the side on which there are fewer lines
    left = np.nanmean(means) > 0.5 if not np.isnan(means).all() else False
    for line, (name, group) in enumerate(groups.items()):
        colour, dashes = looks[name]
        for one in group:
            index = one.channels.index[~np.isnan(one.channels.index)]
            if len(index) > 1 and np.ptp(index) > 0:
                _draw_density(axes, index, colour, dashes, filled=len(group) == 1)
            if len(index):
                axes.axvline(one.mean.mean, ymax=BELOW_TEXT, color=colour, linestyle=dashes, linewidth=0.6)
        axes.text(
            0.03 if left else 0.97,
            0.96 - 0.1 * line,
            _written(group),
            transform=axes.transAxes,
            ha="left" if left else "right",
            va="top",
            fontsize=5.5,
            color=colour,
        )
    axes.grid(linewidth=0.3, color="0.85")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_density(axes: Axes, index: np.ndarray, colour: str, dashes: Dashes, *, filled: bool) -> None:
    # seaborn imports pyplot, so it waits until something is drawn
    import seaborn

    before = (axes.get_xlabel(), axes.get_ylabel())
    seaborn.kdeplot(x=index, ax=axes, clip=(0, 1), color=colour, linestyle=dashes)
    if filled:
        axes.fill_between(*axes.lines[-1].get_data(), color=colour, alpha=0.1, linewidth=0)
    axes.set_xlabel(before[0])
    axes.set_ylabel(before[1])


def _written(group: Sequence[SelectivitySummary]) -> str:
    """The mean with its interval over images, or the range over networks; how many channels have no index."""
    means = [one.mean.mean for one in group]
    mean = group[0].mean if len(group) == 1 else Estimate(float(np.mean(means)), min(means), max(means), len(group))
    ends = interval(Cell(mean.mean, mean.low, mean.high))
    text = f"mean {number(mean.mean)}"
    if ends:
        text += f" [{ends[0]}, {ends[1]}]" if len(group) == 1 else f", {ends[0]} to {ends[1]} over {len(group)}"
    without = sum(int((one.channels.dead | one.channels.signed).sum()) for one in group)
    return text + (f"; {without} channels left out" if without else "")
