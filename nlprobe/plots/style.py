"""How figures look: sizes of a two-column paper, fonts that stay text, colours for every eye."""

from collections.abc import Iterator
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

STYLE_FILE = Path(__file__).with_name("paper.mplstyle")


@contextmanager
def style() -> Iterator[None]:
    """Settings for a figure that is drawn or saved inside the block, whatever the caller's matplotlibrc says.

    The caller's own settings come back at the end.
    """
    with matplotlib.style.context(STYLE_FILE, after_reset=True):
        yield
