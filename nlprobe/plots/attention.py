"""Attention maps over photographs, as in Figure 2 of the paper.

All maps of an image share one linear colour scale. Maps that look alike are alike: nothing is normalised for a single
map. Weights are in units of the uniform weight 1/N, so that 1 means "as much as without any attention".
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nlprobe.plots.style import DIFFERENCE_COLOURS, MAP_COLOURS, PAGE_WIDTH, QUERY_COLOUR, style
from nlprobe.probe.maps import AttentionMaps
from nlprobe.tables.table import number

OPACITY = 0.7
"""Weight of the map's colour over the grey photograph."""

GREY = 0.6
"""What a mid-grey of the photograph becomes below a map."""

# Inches.
GAP = 0.06
TITLE = 0.16
NOTE = 0.11
BAR = 0.09
BAR_LABELS = 0.48
MARGIN = 0.02
CHARACTER = 0.046
NARROWEST = 0.8
TALLEST = 1.9
LOWEST = 0.75


@dataclass(frozen=True)
class Scale:
    """The colour scale of one image.

    Attributes:
        limit: Upper end, in units of the uniform weight.
        signed: Whether it reaches down to −limit, for maps with negative weights.
        percentile: Of which share of the weights `limit` is the bound; the rest is drawn in the last colour.
        largest: The largest size of a weight.
        of_uniform: Whether the weights of a map sum to 1, so that 1 is the weight of a uniform map.
    """

    limit: float
    signed: bool
    percentile: float
    largest: float
    of_uniform: bool

    @property
    def clipped(self) -> bool:
        """Whether any weight lies beyond the limit."""
        return self.largest > self.limit

    @property
    def norm(self) -> Normalize:
        """The scale for matplotlib."""
        return Normalize(-self.limit if self.signed else 0.0, self.limit)


@dataclass(frozen=True)
class _Panel:
    title: str
    values: Float[np.ndarray, "h w"] | None
    queries: tuple[int, ...]


@dataclass(frozen=True)
class _Block:
    """The panels of one image that share a colour scale, and where they go, in inches."""

    maps: AttentionMaps
    panels: tuple[_Panel | None, ...]
    scale: Scale
    note: tuple[str, ...]
    columns: int
    photo: tuple[float, float]

    @property
    def slot(self) -> float:
        return max(self.photo[0], NARROWEST)

    @property
    def lines(self) -> int:
        return math.ceil(len(self.panels) / self.columns)

    @property
    def width(self) -> float:
        return self.columns * (self.slot + GAP) + BAR + BAR_LABELS

    @property
    def height(self) -> float:
        return self.lines * (TITLE + self.photo[1]) + GAP + len(self.note) * NOTE + GAP


def draw_attention(
    images: Sequence[AttentionMaps],
    *,
    difference: bool = False,
    percentile: float = 99.5,
    smooth: bool = False,
    width: float = PAGE_WIDTH,
) -> Figure:
    """A row for each image: the photograph with the query points, the map of each query, the mean map.

    Args:
        images: The maps of each image.
        difference: Add each query's map minus the mean map of all queries, on a diverging scale of its own.
        percentile: Upper end of the colour scale, as a percentile of all weights drawn for an image; 100 is the
            maximum. Whatever lies above it takes the last colour, and the colour bar ends in an arrow.
        smooth: Interpolate between the centres of the cells; without it each key's weight fills its own cell.
        width: Of the figure, in inches.

    Returns:
        The figure. Photographs of any size and shape are shown whole; the panels of very wide ones go on several lines.

    Raises:
        ValueError: there is no image, or one is a clip.
    """
    if not images:
        raise ValueError("no image to draw")
    if clips := [maps.image_id for maps in images if len(maps.grid) != 2]:
        raise ValueError(f"no image but a clip: {clips[0]}")
    with style():
        blocks = [block for maps in images for block in _blocks(maps, difference, percentile, width)]
        used = max(block.width for block in blocks)
        top = sum(block.height for block in blocks)
        figure = Figure(figsize=(used, top))
        for block in blocks:
            _draw_block(figure, block, top, smooth)
            top -= block.height
    return figure


def attention_data(images: Sequence[AttentionMaps], percentile: float = 99.5) -> pd.DataFrame:
    """What `draw_attention` shows, a line for each cell of each map.

    Columns: image, model, site, map ("query 1", …, "mean"), query_y and query_x in pixels of the image (empty for the
    mean), row and column of the key grid, weight, times_uniform (weight · N), minus_mean (in the same unit), and the
    image's scale: scale_limit (times uniform), scale_percentile, avg_dist.
    """
    frames = []
    for maps in images:
        scale = map_scale(maps, percentile)
        rows, columns = (index.ravel() for index in np.indices(maps.grid))
        named = [(f"query {index + 1}", query, maps.maps[index]) for index, query in enumerate(maps.queries)]
        for name, (y, x), weight in [*named, ("mean", (pd.NA, pd.NA), maps.mean)]:
            frame = pd.DataFrame({"map": name, "query_y": y, "query_x": x, "row": rows, "column": columns})
            frame = frame.astype({"query_y": "Int64", "query_x": "Int64"})
            frame["weight"] = weight.ravel()
            frame["times_uniform"] = weight.ravel() * maps.n_keys
            frame["minus_mean"] = (weight - maps.mean).ravel() * maps.n_keys
            frame.insert(0, "site", maps.site)
            frame.insert(0, "model", maps.label)
            frame.insert(0, "image", maps.image_id)
            frame["scale_limit"] = scale.limit
            frame["scale_percentile"] = scale.percentile
            frame["avg_dist"] = maps.avg_dist
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def map_scale(maps: AttentionMaps, percentile: float = 99.5) -> Scale:
    """The colour scale of an image's maps: one for all its queries and their mean.

    It starts at zero, or is symmetric about zero where a weight is negative. Softmax maps get at least twice the
    uniform weight, so that a flat map looks flat instead of bright.
    """
    weights = np.concatenate([maps.maps.ravel(), maps.mean.ravel()]) * maps.n_keys
    softmax = _is_softmax(maps)
    return _scale(weights, bool(weights.min() < 0), percentile, softmax, least=2.0 if softmax else 0.0)


def difference_scale(maps: AttentionMaps, percentile: float = 99.5) -> Scale:
    """The symmetric colour scale of an image's differences from the mean map."""
    return _scale((maps.maps - maps.mean) * maps.n_keys, True, percentile, _is_softmax(maps), least=0.0)


def _is_softmax(maps: AttentionMaps) -> bool:
    return bool(maps.maps.min() >= 0 and np.allclose(maps.maps.reshape(len(maps.maps), -1).sum(1), 1, atol=1e-3))


def _scale(weights: np.ndarray, signed: bool, percentile: float, softmax: bool, least: float) -> Scale:
    size = np.abs(weights)
    limit = max(float(np.percentile(size, percentile)), least)
    limit = limit or float(size.max()) or 1.0
    return Scale(limit, signed, percentile, float(size.max()), softmax)


def _blocks(maps: AttentionMaps, difference: bool, percentile: float, width: float) -> list[_Block]:
    """An image's maps and, if asked for, below them their differences from the mean map."""
    every = tuple(range(len(maps.queries)))
    uniform, mean = maps.maps * maps.n_keys, maps.mean * maps.n_keys
    scale = map_scale(maps, percentile)
    columns, photo = _layout(maps.image.shape[0] / maps.image.shape[1], len(every) + 2, width)
    panels = (
        _Panel("image", None, every),
        *(_Panel(f"query {index + 1}", uniform[index], (index,)) for index in every),
        _Panel("mean map", mean, ()),
    )
    room = columns * (max(photo[0], NARROWEST) + GAP) + BAR + BAR_LABELS
    blocks = [_Block(maps, panels, scale, _wrap(_note(maps, scale), room), columns, photo)]
    if difference:
        own = difference_scale(maps, percentile)
        differences = [_Panel(f"query {index + 1} − mean", uniform[index] - mean, (index,)) for index in every]
        # On one line, each stands below its query's map.
        less = (None, *differences) if columns == len(panels) else tuple(differences)
        share = f"on a scale that is {own.limit / scale.limit:.2g} times the maps’ scale" if own.largest else "all zero"
        note = f"differences from the mean map, {share}"
        blocks.append(_Block(maps, less, own, _wrap(note, room), columns, photo))
    return blocks


def _layout(aspect: float, panels: int, width: float) -> tuple[int, tuple[float, float]]:
    """How many panels go on a line, and a photograph's width and height.

    A line has as many panels as leave the photograph at least `LOWEST` high and its title room; none is higher than
    `TALLEST`.
    """
    for lines in range(1, panels + 1):
        columns = math.ceil(panels / lines)
        panel = (width - BAR - BAR_LABELS) / columns - GAP
        if panel * aspect >= LOWEST and panel >= NARROWEST:
            break
    height = min(panel * aspect, TALLEST)
    return columns, (height / aspect, height)


def _note(maps: AttentionMaps, scale: Scale) -> str:
    parts = [text for text in (maps.label, maps.site, maps.image_id) if text]
    parts += [f"avg_dist of the maps {number(maps.avg_dist)}", f"keys {maps.grid[0]} × {maps.grid[1]}"]
    if scale.clipped:
        parts.append(f"scale to percentile {scale.percentile:g}, largest {scale.largest:.3g}")
    return "  ·  ".join(parts)


def _wrap(note: str, width: float) -> tuple[str, ...]:
    return tuple(textwrap.wrap(note, int((width - MARGIN) / CHARACTER)))


def _draw_block(figure: Figure, block: _Block, top: float, smooth: bool) -> None:
    total_width, total_height = figure.get_size_inches()
    width, height = block.photo

    def add_axes(left: float, bottom: float, width: float, height: float) -> Axes:
        return figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))

    for index, panel in enumerate(block.panels):
        if panel is not None:
            line, column = divmod(index, block.columns)
            left = column * (block.slot + GAP) + (block.slot - width) / 2
            axes = add_axes(left, top - (line + 1) * (TITLE + height), width, height)
            _draw_panel(axes, block.maps, panel, block.scale, smooth)
    bottom = top - block.lines * (TITLE + height)
    # The bar begins below the panels' upper edge, so that a number at its end stays clear of the unit above it.
    bar = min(top - TITLE - bottom, TALLEST) - GAP
    _draw_bar(figure, add_axes(block.columns * (block.slot + GAP), top - TITLE - GAP - bar, BAR, bar), block)
    for line, text in enumerate(block.note):
        place = (MARGIN / total_width, (bottom - GAP - line * NOTE) / total_height)
        figure.text(*place, text, ha="left", va="top", fontsize=6, color="0.25")


def _draw_panel(axes: Axes, maps: AttentionMaps, panel: _Panel, scale: Scale, smooth: bool) -> None:
    height, width = maps.image.shape[:2]
    whole = (0, width, height, 0)
    axes.set_title(panel.title, pad=2)
    axes.set_axis_off()
    if panel.values is None:
        axes.imshow(maps.image, extent=whole, aspect="auto")
    else:
        grey = np.repeat(grey_photograph(maps.image)[..., None], 3, axis=-1)
        axes.imshow(grey, extent=whole, aspect="auto", vmin=0, vmax=1)
        axes.imshow(
            panel.values,
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
    for index in panel.queries:
        y, x = maps.queries[index]
        axes.plot(
            x + 0.5, y + 0.5, "o", color=QUERY_COLOUR, markersize=4, markeredgecolor="white", markeredgewidth=0.7,
            clip_on=False,
        )  # fmt: skip
        if panel.values is None and len(panel.queries) > 1:
            axes.annotate(
                str(index + 1),
                (x + 0.5, y + 0.5),
                xytext=(-4 if x > 0.85 * width else 4, -4 if y < 0.15 * height else 4),
                textcoords="offset points",
                ha="right" if x > 0.85 * width else "left",
                va="top" if y < 0.15 * height else "bottom",
                color="white",
                fontsize=7,
                fontweight="bold",
                path_effects=[withStroke(linewidth=1.5, foreground="black")],
            )


def key_extent(maps: AttentionMaps) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the key grid in pixels of the image.

    Query cells tile the image. Keys that were pooled 2×2 cover two query cells each way; the last row and column of an
    odd query grid have no key, and nothing is drawn there.
    """
    height, width = maps.image.shape[-3:-1]
    covered = [
        size * (2 * keys / queries if keys == queries // 2 else 1.0)
        for size, keys, queries in zip((height, width), maps.grid[-2:], maps.query_grid[-2:], strict=True)
    ]
    return (0.0, covered[1], covered[0], 0.0)


def grey_photograph(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """The photograph's luminance (Rec. 601), its contrast lowered, so that the map's colours keep their order."""
    luminance = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    return GREY + 0.6 * (luminance - 0.5)


def _colours(scale: Scale) -> Colormap:
    return matplotlib.colormaps[DIFFERENCE_COLOURS if scale.signed else MAP_COLOURS]


def _draw_bar(figure: Figure, axes: Axes, block: _Block) -> None:
    """The colour bar, in the colours that the map has over a mid-grey photograph."""
    over_grey = _colours(block.scale)(np.linspace(0, 1, 256))
    over_grey[:, :3] = OPACITY * over_grey[:, :3] + (1 - OPACITY) * GREY
    mappable = ScalarMappable(block.scale.norm, ListedColormap(over_grey))
    both = "both" if block.scale.signed else "max"
    bar = figure.colorbar(mappable, cax=axes, extend=both if block.scale.clipped else "neither", extendfrac=0.06)
    bar.outline.set_linewidth(0.4)
    bar.locator = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    bar.formatter = FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "−"))
    bar.update_ticks()
    axes.set_title("× uniform" if block.scale.of_uniform else "weight × N", loc="left", pad=2 + 72 * GAP)
