"""Attention maps over the frames of a clip, side by side: what a place attends to, before and after it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nlprobe.plots.attention import GREY, OPACITY, Scale, grey_photograph, key_extent, map_scale
from nlprobe.plots.style import DIFFERENCE_COLOURS, MAP_COLOURS, PAGE_WIDTH, QUERY_COLOUR, style
from nlprobe.probe.maps import AttentionMaps
from nlprobe.tables.table import number

# Inches.
GAP = 0.04
LABEL = 0.6
TITLE = 0.16
NOTE = 0.12
BAR = 0.09
BAR_LABELS = 0.48


@dataclass(frozen=True)
class Clip:
    """The maps of one clip, and when its frames are shown.

    Attributes:
        maps: The maps; their image holds the frames.
        times: The time of each frame in the video, in seconds; None where nobody knows.
        numbers: The number of each frame in the video.
    """

    maps: AttentionMaps
    times: tuple[float, ...] | None
    numbers: tuple[int, ...]

    def name(self, frame: int) -> str:
        """What the strip calls a frame."""
        if self.times is not None:
            return f"{self.times[frame]:.2f} s"
        return f"frame {self.numbers[frame]}"


def draw_strip(clip: Clip, *, percentile: float = 99.5, smooth: bool = False, width: float = PAGE_WIDTH) -> Figure:
    """The frames of a clip; below, for each query, a line with its map over every frame; last the mean map.

    All maps share one linear colour scale in units of the uniform weight 1/N, N counting the keys of all frames. The
    query is marked in its frame, which has a border; above each of its maps stands how much attention the frame gets.

    Args:
        clip: The maps.
        percentile: Upper end of the colour scale, as for `draw_attention`.
        smooth: Interpolate between the centres of the cells.
        width: Of the figure, in inches.

    Returns:
        The figure.
    """
    maps, scale = clip.maps, map_scale(clip.maps, percentile)
    frames, height, across = maps.image.shape[:3]
    panel = (width - LABEL - BAR - BAR_LABELS) / frames - GAP
    tall = panel * height / across
    lines = len(maps.queries) + 2
    note = _notes(clip, scale)
    total = TITLE + lines * (tall + TITLE) + GAP + NOTE * len(note) + GAP
    with style():
        figure = Figure(figsize=(width, total))

        def axes_at(left: float, top: float, wide: float, high: float) -> Axes:
            return figure.add_axes((left / width, (total - top - high) / total, wide / width, high / total))

        def text_at(left: float, top: float, text: str, **settings: object) -> None:
            figure.text(left / width, 1 - top / total, text, va="center", **settings)  # type: ignore[arg-type]

        rows = [("clip", None), *((f"query {at + 1}", at) for at in range(len(maps.queries))), ("mean map", -1)]
        for line, (name, at) in enumerate(rows):
            top = TITLE + line * (tall + TITLE)
            text_at(0.02, top + tall / 2, name, fontsize=7, ha="left")
            for frame in range(frames):
                axes = axes_at(LABEL + frame * (panel + GAP), top, panel, tall)
                _draw_frame(axes, clip, frame, at, scale, smooth)
                title = clip.name(frame) if at is None else _share(maps, at, frame)
                axes.set_title(title, pad=2, fontsize=6, color="black" if at is None else "0.35")
        bar = axes_at(width - BAR - BAR_LABELS + GAP, TITLE + tall + TITLE, BAR, min(2.0, (lines - 1) * tall))
        _draw_bar(figure, bar, scale)
        for at, text in enumerate(note):
            text_at(0.02, TITLE + lines * (tall + TITLE) + NOTE * (at + 0.3), text, fontsize=6, color="0.25", ha="left")
    return figure


def strip_data(clip: Clip, percentile: float = 99.5) -> pd.DataFrame:
    """What `draw_strip` shows, a line for each cell of each map.

    Columns: video, model, site, map ("query 1", …, "mean"), query_t, query_y and query_x in frames of the clip and
    pixels (empty for the mean), time of the keys on their grid, frame_number and seconds of that frame in the video,
    row, column, weight, times_uniform, frame_mass (the weight of all keys of that time), scale_limit,
    scale_percentile and avg_dist.
    """
    maps, scale = clip.maps, map_scale(clip.maps, percentile)
    time, row, column = (index.ravel() for index in np.indices(maps.grid))
    shown = time * len(clip.numbers) // maps.grid[0]
    named: list[tuple[str, tuple[Any, ...], np.ndarray]] = [
        (f"query {at + 1}", query, maps.maps[at]) for at, query in enumerate(maps.queries)
    ]
    named.append(("mean", (pd.NA,) * 3, maps.mean))
    frames = []
    for name, query, weight in named:
        frame = pd.DataFrame({"video": maps.image_id, "model": maps.label, "site": maps.site, "map": name}, index=time)
        for axis, value in zip("tyx", query, strict=True):
            frame[f"query_{axis}"] = value
        frame = frame.astype({f"query_{axis}": "Int64" for axis in "tyx"})
        frame["time"], frame["row"], frame["column"] = time, row, column
        frame["frame_number"] = np.array(clip.numbers)[shown]
        frame["seconds"] = np.nan if clip.times is None else np.array(clip.times)[shown]
        frame["weight"], frame["times_uniform"] = weight.ravel(), weight.ravel() * maps.n_keys
        frame["frame_mass"] = weight.sum((1, 2))[time]
        frame["scale_limit"], frame["scale_percentile"], frame["avg_dist"] = scale.limit, percentile, maps.avg_dist
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def overlay(
    image: UInt8[np.ndarray, "h w 3"], values: Float[np.ndarray, "a b"], scale: Scale, extent: Sequence[float]
) -> UInt8[np.ndarray, "h w 3"]:
    """A frame in grey below the colours of its map, in pixels: what the strip shows, for animations.

    Args:
        image: The frame.
        values: The map over it, in units of the uniform weight.
        scale: The colour scale.
        extent: Left, right, bottom and top of the keys in pixels; elsewhere there is grey alone.
    """
    colours = matplotlib.colormaps[_colours(scale)](scale.norm(values))[..., :3]
    grey = np.repeat(grey_photograph(image)[..., None], 3, axis=-1)
    covered = (extent[2], extent[1])
    rows, columns = (
        np.arange(np.ceil(min(size, end) - 0.5), dtype=int) * cells // end
        for size, end, cells in zip(image.shape[:2], covered, values.shape, strict=True)
    )
    mixed = grey.copy()
    over = mixed[: len(rows), : len(columns)]
    over[:] = OPACITY * colours[rows.astype(int)][:, columns.astype(int)] + (1 - OPACITY) * over
    return np.clip(mixed * 255 + 0.5, 0, 255).astype(np.uint8)


def _draw_frame(axes: Axes, clip: Clip, frame: int, at: int | None, scale: Scale, smooth: bool) -> None:
    maps = clip.maps
    frames, height, width = maps.image.shape[:3]
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    whole = (0, width, height, 0)
    if at is None:
        axes.imshow(maps.image[frame], extent=whole, aspect="auto")
    else:
        values = (maps.mean if at < 0 else maps.maps[at])[frame * maps.grid[0] // frames] * maps.n_keys
        grey = np.repeat(grey_photograph(maps.image[frame])[..., None], 3, axis=-1)
        axes.imshow(grey, extent=whole, aspect="auto", vmin=0, vmax=1)
        axes.imshow(
            values,
            extent=key_extent(maps),
            aspect="auto",
            cmap=_colours(scale),
            norm=scale.norm,
            alpha=OPACITY,
            interpolation="bilinear" if smooth else "nearest",
            interpolation_stage="data",
        )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for index, (t, y, x) in enumerate(maps.queries):
        if t != frame or at not in (None, index):
            continue
        axes.plot(
            x + 0.5, y + 0.5, "o", color=QUERY_COLOUR, markersize=4, markeredgecolor="white", markeredgewidth=0.7,
            clip_on=False,
        )  # fmt: skip
        if at is None:
            axes.annotate(
                str(index + 1), (x + 0.5, y + 0.5), xytext=(4, 2), textcoords="offset points", color="white",
                fontsize=6, fontweight="bold",
                bbox={"boxstyle": "round,pad=0.15", "fc": "black", "lw": 0, "alpha": 0.6},
            )  # fmt: skip
        else:
            border = Rectangle((0, 0), width, height, fill=False, edgecolor=QUERY_COLOUR, linewidth=1.6)
            axes.add_patch(border)


def _share(maps: AttentionMaps, at: int, frame: int) -> str:
    """How much attention a frame gets, in words."""
    weights = maps.mean if at < 0 else maps.maps[at]
    size = np.abs(weights).sum()
    share = np.abs(weights[frame * maps.grid[0] // len(maps.image)]).sum() / size if size else math.nan
    return f"{100 * share:.1f} %"


def _notes(clip: Clip, scale: Scale) -> tuple[str, ...]:
    maps = clip.maps
    parts = [text for text in (maps.label, maps.site, maps.image_id) if text]
    parts.append("keys " + " × ".join(map(str, maps.grid)))
    parts.append(f"avg_dist of the maps {number(maps.avg_dist)}")
    if scale.clipped:
        parts.append(f"scale to percentile {scale.percentile:g}, largest {scale.largest:.3g}")
    flat = f"Percentages: attention on the frame; a flat map has {100 / maps.grid[0]:.1f} % on each."
    return "  ·  ".join(parts), flat


def _colours(scale: Scale) -> str:
    return DIFFERENCE_COLOURS if scale.signed else MAP_COLOURS


def _draw_bar(figure: Figure, axes: Axes, scale: Scale) -> None:
    over_grey = matplotlib.colormaps[_colours(scale)](np.linspace(0, 1, 256))
    over_grey[:, :3] = OPACITY * over_grey[:, :3] + (1 - OPACITY) * GREY
    mappable = ScalarMappable(scale.norm, ListedColormap(over_grey))
    both = "both" if scale.signed else "max"
    bar = figure.colorbar(mappable, cax=axes, extend=both if scale.clipped else "neither", extendfrac=0.06)
    bar.outline.set_linewidth(0.4)
    bar.locator = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    bar.formatter = FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "−"))
    bar.update_ticks()
    axes.set_title("× uniform" if scale.of_uniform else "weight × N", loc="left", pad=6, fontsize=6)
