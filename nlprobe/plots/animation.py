"""Attention maps over a clip that moves: each query's map beside the clip, frame by frame, as GIF."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nlprobe.files import atomic_path
from nlprobe.plots.attention import key_extent, map_scale
from nlprobe.plots.strip import Clip, overlay
from nlprobe.plots.style import QUERY_COLOUR

GAP = 4
MARK = 4


def animation_frames(clip: Clip, percentile: float = 99.5) -> list[Image.Image]:
    """A picture for each frame of a clip: the frame, and beside it the map of every query on one scale.

    A query is a dot in its own frame and a ring at its place in the others.
    """
    maps, scale = clip.maps, map_scale(clip.maps, percentile)
    frames, height, width = maps.image.shape[:3]
    found = []
    for frame, pixels in enumerate(maps.image):
        page = Image.new("RGB", ((1 + len(maps.queries)) * (width + GAP) - GAP, height), "white")
        page.paste(Image.fromarray(pixels), (0, 0))
        for at, weights in enumerate(maps.maps):
            values = weights[frame * maps.grid[0] // frames] * maps.n_keys
            page.paste(Image.fromarray(overlay(pixels, values, scale, key_extent(maps))), ((at + 1) * (width + GAP), 0))
        draw = ImageDraw.Draw(page)
        for at, (t, y, x) in enumerate(maps.queries):
            for left in (0, (at + 1) * (width + GAP)):
                box = (left + x - MARK, y - MARK, left + x + MARK, y + MARK)
                draw.ellipse(box, fill=QUERY_COLOUR if t == frame else None, outline=QUERY_COLOUR, width=2)
        found.append(page)
    return found


def save_animation(clip: Clip, path: Path, *, seconds: float = 0.4, percentile: float = 99.5) -> None:
    """Write a clip with its maps as an endless GIF, whole or not at all.

    All frames share the colours of one palette, made of all of them, so that equal weights look equal.

    Args:
        clip: The maps.
        path: The file.
        seconds: How long each frame is shown.
        percentile: Upper end of the colour scale.

    Raises:
        DataError: the file cannot be written.
    """
    frames = animation_frames(clip, percentile)
    together = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames]))
    palette = together.quantize(255, dither=Image.Dither.NONE)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    with atomic_path(path) as temporary:
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=rest,
            duration=round(seconds * 1000),
            loop=0,
            disposal=2,
        )
