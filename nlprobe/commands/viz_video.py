"""`nlprobe viz video`: what a place in a video attends to, before and after it."""

from pathlib import Path

import click
import numpy as np

from nlprobe.commands.figures import Target, figure_options
from nlprobe.commands.options import (
    Chosen,
    config_option,
    device_option,
    force_option,
    network_options,
    resolve_device,
)
from nlprobe.commands.report import result, say, wrote
from nlprobe.commands.sources import Named, read_adapters, read_networks
from nlprobe.data import ClipPreprocessing
from nlprobe.data.clips import clip_starts, read_preprocessing
from nlprobe.data.video import open_video
from nlprobe.errors import ConfigError
from nlprobe.files import refuse_existing
from nlprobe.plots import save_figure
from nlprobe.plots.animation import save_animation
from nlprobe.plots.strip import Clip, draw_strip, strip_data
from nlprobe.probe import attention_map

SPREAD = ((0.25, 0.25, 0.25), (0.5, 0.5, 0.5), (0.75, 0.75, 0.75))
"""Where the queries lie when none is given, as shares of time, height and width."""

Place = tuple[float | int, float | int, float | int]


class PlaceType(click.ParamType):
    """A place: `T,Y,X`, the frame of the clip and pixels of it, or percent of each (`50%,50%,25%`)."""

    name = "T,Y,X"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """Numbers from text; shares stay floats, frames and pixels ints, which is how they are told apart later."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        try:
            numbers = [float(part[:-1]) / 100 if part.endswith("%") else int(part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) == 3 and all(0 <= number <= 1 for number in numbers if isinstance(number, float)):
            return numbers[0], numbers[1], numbers[2]
        self.fail(f"`{value}` is no place; write `T,Y,X`: frame of the clip and pixels (`3,60,80`), or percent")


@click.command("video")
@network_options(without=("size", "mean", "std"))
@click.option(
    "--video", "source", required=True, type=click.Path(path_type=Path), help="A video file, or a folder of its frames."
)
@click.option(
    "--start", type=click.IntRange(min=0), help="The video's frame that the clip begins at; by default it is central."
)
@click.option("--site", help="The site; needed where a network has several (`nlprobe inspect` lists them).")
@click.option(
    "--query",
    "queries",
    multiple=True,
    type=PlaceType(),
    help="A query, T,Y,X: frame of the clip from 0 and pixels, or percent; repeatable. Three by default.",
)
@click.option("--head", type=click.IntRange(min=0), help="Draw this head, from 0; the average of all by default.")
@click.option("--smooth", is_flag=True, help="Interpolate between the centres of the cells.")
@click.option(
    "--percentile",
    type=click.FloatRange(50, 100),
    default=99.5,
    show_default=True,
    help="Upper end of the colour scale, of all weights.",
)
@figure_options
@device_option
@config_option
@force_option
def video(
    chosen: Chosen,
    source: Path,
    start: int | None,
    site: str | None,
    queries: tuple[Place, ...],
    head: int | None,
    smooth: bool,
    percentile: float,
    out: Path,
    formats: tuple[str, ...],
    device: str,
    force: bool,
) -> None:
    """Draw what places in a video attend to, over all frames of a clip.

    A line for each query: its map over every frame, with the share of its attention that the frame gets, on one colour
    scale in units of the uniform weight 1/N. The strip is written as PNG, PDF and SVG, its data as CSV, and an
    animation as GIF. The frames are shown to the network whole.

    \b
    Example:
      nlprobe viz video --ckpt runs/nl --video jump.mp4 --query 3,60,80 --site layer3.1:after_block --out jump
    """
    place = resolve_device(device)
    target = Target.of(out, formats)
    target.refuse_existing(("csv",), force=force)
    refuse_existing(target.path("gif"), force=force)
    (one, *more) = read_networks(chosen)
    if more:
        raise ConfigError("`viz video` draws one network", "give one --ckpt or --model")
    preprocessing = _preprocessing(one)
    if one.checkpoint is None:
        say(f"{one.label}: {one.network.weights}")
    handle = open_video(source)
    (central,) = clip_starts(handle.frame_count, preprocessing.offsets(handle)[-1] + 1, 1)
    first = central if start is None else start
    if first >= handle.frame_count:
        raise ConfigError(f"--start {first}, and `{source}` has {handle.frame_count} frames", "start earlier")
    numbers = preprocessing.indices(handle, first)
    frames = handle.frames(numbers)
    image = preprocessing.finished(preprocessing.resized(frames.permute(0, 3, 1, 2)))
    shown = np.asarray(frames)
    points = [_point(query, shown.shape) for query in queries or SPREAD]
    maps = attention_map(
        one.model.to(place).eval(), image.to(place), points, site, head=head, adapters=read_adapters(chosen.adapters),
        picture=shown, image_id=source.name, label=one.label,
    )  # fmt: skip
    times = None if not handle.fps else tuple(number / handle.fps for number in numbers)
    clip = Clip(maps, times, tuple(numbers))
    data = strip_data(clip, percentile)
    figure = draw_strip(clip, percentile=percentile, smooth=smooth)
    for path in save_figure(figure, target.stem, formats=target.formats, data=data):
        wrote(path)
    save_animation(clip, target.path("gif"), percentile=percentile)
    wrote(target.path("gif"))
    result(f"{maps.site}: average distance of all maps {maps.avg_dist:.3g}\n")


def _preprocessing(one: Named) -> ClipPreprocessing:
    """How the network takes clips.

    Raises:
        ConfigError: it takes none, or does not say how.
    """
    settings = one.network.pictures.settings if one.network.pictures is not None else {}
    found = read_preprocessing(dict(settings)) if "frames" in settings else None
    if not isinstance(found, ClipPreprocessing):
        raise ConfigError(f"`{one.label}` takes no videos", "`nlprobe viz attention --image` draws photographs")
    return found


def _point(query: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(
        min(int(value * size), size - 1) if isinstance(value, float) else value
        for value, size in zip(query, shape[:3], strict=True)
    )
