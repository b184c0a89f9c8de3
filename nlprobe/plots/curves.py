"""Loss, scores and learning rate along a training run."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nlprobe.plots.style import PAGE_WIDTH, style

LEARNING_RATE = "learning_rate"
COLOURS = {"train": "#0072b2", "val": "#d55e00"}
NAMES = {"train": "training", "val": "validation"}


def curve_data(points: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What `draw_curves` shows, in long form: epoch, split, measure, value.

    Args:
        points: Along the training: `epoch` (with a fraction), `learning_rate`, and means over the images since the
            point before, `loss` first.
        epochs: The log's lines; of these, the columns that begin with `val_` are taken.
    """
    rows = [
        {"epoch": point["epoch"], "split": "train", "measure": name, "value": value}
        for point in points
        for name, value in point.items()
        if name != "epoch"
    ]
    rows += [
        {"epoch": row["epoch"], "split": "val", "measure": name.removeprefix("val_"), "value": value}
        for row in epochs
        for name, value in row.items()
        if name.startswith("val_")
    ]
    return pd.DataFrame(rows, columns=["epoch", "split", "measure", "value"])


def draw_curves(data: pd.DataFrame, *, width: float = PAGE_WIDTH) -> Figure:
    """A panel for each measure, the loss first and the learning rate last: training as a line, validation with dots.

    Args:
        data: As `curve_data` makes it.
        width: Of the figure, in inches.

    Raises:
        ValueError: there is nothing to draw.
    """
    if data.empty:
        raise ValueError("no step of the training is done")
    measures = sorted(data["measure"].unique(), key=lambda name: (name == LEARNING_RATE, not name.startswith("loss")))
    columns = min(len(measures), 4)
    lines = -(-len(measures) // columns)
    height = 1.5 * lines + 0.35
    with style():
        figure = Figure(figsize=(width, height))
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, measure in zip(panels, measures, strict=False):
            _draw_panel(axes, data[data["measure"] == measure], measure)
        for axes in panels[len(measures) :]:
            axes.set_visible(False)
        handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False)
        figure.subplots_adjust(
            left=0.4 / width, right=1 - 0.08 / width, bottom=0.55 / height, top=1 - 0.2 / height, hspace=0.6, wspace=0.3
        )
    return figure


def _draw_panel(axes: Axes, data: pd.DataFrame, measure: str) -> None:
    for split, own in data.groupby("split"):
        dots = {"marker": "o", "markersize": 2.5} if split == "val" else {"linewidth": 0.7}
        label = None if measure == LEARNING_RATE else NAMES[str(split)]
        axes.plot(own["epoch"], own["value"], color=COLOURS[str(split)], label=label, **dots)
    axes.set_title(measure.replace("_", " "), loc="left")
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(linewidth=0.3, color="0.85")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
