"""Activations of transforms by class, channel by channel (Figure 6 of the paper)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nlprobe.plots.style import COLUMN_WIDTH, DOTTED, PAGE_WIDTH, SERIES_COLOURS, legend_columns, style
from nlprobe.stats.class_summaries import ActivationSummary
from nlprobe.stats.intervals import Estimate
from nlprobe.tables.table import Cell, interval, number

ALL = "all classes"
CHANNELS = 50
"""As many as the figure of squeeze-and-excitation has, which the paper's follows."""

PANELS_IN_LINE = 3


def drawn_channels(channels: int, count: int = CHANNELS) -> np.ndarray:
    """The channels that are drawn: `count` of them, spread evenly."""
    taken = min(channels, count)
    return np.arange(taken) * channels // taken


def activation_data(
    summaries: Sequence[ActivationSummary], classes: Sequence[str], channels: int = CHANNELS
) -> pd.DataFrame:
    """What `draw_activations` shows, and the channels that it leaves out.

    Args:
        summaries: Of all networks.
        classes: Names of the classes.
        channels: How many are drawn.

    Returns:
        A line for each channel and chosen class, and for the mean over all classes: model, module, what, channel,
        drawn, class, mean, low, high, n (images), class_share (of the channel).
    """
    parts = []
    for one in summaries:
        count = len(one.shares)
        drawn = np.isin(np.arange(count), drawn_channels(count, channels))
        lines = [
            (classes[label], one.means[label], one.low[at], one.high[at], int(one.counts[label]))
            for at, label in enumerate(one.chosen)
        ]
        nowhere = np.full(count, np.nan)
        for name, mean, low, high, n in [*lines, (ALL, one.overall, nowhere, nowhere, one.images)]:
            parts.append(
                pd.DataFrame(
                    {
                        "model": one.model,
                        "module": one.module,
                        "what": one.what,
                        "channel": np.arange(count),
                        "drawn": drawn,
                        "class": name,
                        "mean": mean,
                        "low": low,
                        "high": high,
                        "n": n,
                        "class_share": one.shares,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def draw_activations(
    summaries: Sequence[ActivationSummary], classes: Sequence[str], channels: int = CHANNELS
) -> Figure:
    """A panel for each module of each network: the mean activation of evenly spread channels, by class.

    A line for each chosen class with its 95 % interval over images as a band, and a dotted one for the mean over all
    classes. Each panel has its own axis; class spread and class share are written in it.

    Args:
        summaries: Of all networks, those of one network after each other.
        classes: Names of the classes.
        channels: How many are drawn.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not summaries:
        raise ValueError("no summary to draw")
    several = len({one.model for one in summaries}) > 1
    across = 2 if len(summaries) == 4 else min(len(summaries), PANELS_IN_LINE)
    lines = -(-len(summaries) // across)
    width = COLUMN_WIDTH if across == 1 else PAGE_WIDTH
    labels = [*(classes[label] for label in summaries[0].chosen), ALL]
    columns = legend_columns(labels, width)
    below = 0.42 + 0.17 * -(-len(labels) // columns)
    height = 1.65 * lines + below
    with style():
        figure = Figure(figsize=(width, height))
        panels = list(figure.subplots(lines, across, squeeze=False).ravel())
        for at, (axes, one) in enumerate(zip(panels, summaries, strict=False)):
            _draw_panel(axes, one, classes, channels)
            axes.set_title(f"{one.model}  ·  {one.module}" if several else one.module, loc="left")
            axes.set_ylabel(_unit(one) if at % across == 0 else "")
            if at + across >= len(summaries):
                axes.set_xlabel("channel")
        for axes in panels[len(summaries) :]:
            axes.set_visible(False)
        handles, _ = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False, borderaxespad=0.2)
        figure.subplots_adjust(
            left=0.58 / width,
            right=1 - 0.1 / width,
            bottom=below / height,
            top=1 - 0.22 / height,
            hspace=0.42,
            wspace=0.24,
        )
    return figure


def _unit(one: ActivationSummary) -> str:
    return {"transform": "activation t", "gate": "gate σ(t)"}.get(one.what, "activation")


def _printed(estimate: Estimate) -> str:
    ends = interval(Cell(estimate.mean, estimate.low, estimate.high))
    return number(estimate.mean) + (f" [{ends[0]}, {ends[1]}]" if ends else "")


def _draw_panel(axes: Axes, one: ActivationSummary, classes: Sequence[str], channels: int) -> None:
    drawn = drawn_channels(len(one.shares), channels)
    for at, label in enumerate(one.chosen):
        colour = SERIES_COLOURS[at % (len(SERIES_COLOURS) - 1)]
        axes.plot(drawn, one.means[label][drawn], color=colour, linewidth=0.7, label=classes[label])
        axes.fill_between(drawn, one.low[at][drawn], one.high[at][drawn], color=colour, alpha=0.2, linewidth=0)
    axes.plot(drawn, one.overall[drawn], color="black", linewidth=0.8, linestyle=DOTTED, label=ALL, zorder=3)
    axes.text(
        0.98,
        0.98,
        f"spread {_printed(one.spread)}\nshare {_printed(one.share)}",
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=5.5,
    )
    # room for the text above the lines
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.22 * (high - low))
    axes.set_xlim(drawn[0], drawn[-1] if len(drawn) > 1 else drawn[0] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(linewidth=0.3, color="0.85")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
