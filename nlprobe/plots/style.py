"""How figures look: sizes of a two-column paper, fonts that stay text, colours for every eye."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style

PAGE_WIDTH = 7.16
"""Inches across both columns of a two-column paper."""

COLUMN_WIDTH = 3.5
"""Inches of one column."""

MAP_COLOURS = "viridis"
DIFFERENCE_COLOURS = "PuOr_r"

QUERY_COLOUR = "#e6001a"

# Okabe and Ito's colours, which keep apart in print, on a screen and for every kind of colour vision.
KIND_COLOURS = {"trained": "#0072b2", "init-block": "#d55e00", "init-all": "#6b6b6b"}

SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""For several networks, runs or classes in one panel: the same palette."""

Dashes = tuple[int, tuple[float, ...]]

WHOLE: Dashes = (0, ())
DASHED: Dashes = (0, (4.0, 1.5))
DOTTED: Dashes = (0, (1.0, 1.0))
DASH_DOTTED: Dashes = (0, (4.0, 1.5, 1.0, 1.5))
SERIES_DASHES = (WHOLE, DASHED, DOTTED, DASH_DOTTED)

STYLE_FILE = Path(__file__).with_name("paper.mplstyle")


@contextmanager
def style() -> Iterator[None]:
    """Settings for a figure that is drawn or saved inside the block, whatever the caller's matplotlibrc says.

    The caller's own settings come back at the end.
    """
    with matplotlib.style.context(STYLE_FILE, after_reset=True):
        yield


def legend_columns(labels: Iterable[str], width: float) -> int:
    """How many columns a legend below a figure may have, so that the longest of its labels fits.

    Args:
        labels: What it says.
        width: Of the figure, in inches.
    """
    longest = max(map(len, labels), default=0)
    return max(1, int(width / (0.48 + 0.058 * longest)))
