"""`nlprobe viz`: figures; without a further word it draws attention maps."""

from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from nlprobe.checkpoints import initial_model
from nlprobe.commands.options import config_option, device_option, force_option, format_option, resolve_device
from nlprobe.commands.report import result, terminal_width, wrote
from nlprobe.commands.sources import Labelled, read_checkpoints
from nlprobe.data import Preprocessing, open_dataset
from nlprobe.data.part import Part
from nlprobe.files import refuse_existing
from nlprobe.plots import FORMATS, attention_data, draw_attention, save_figure
from nlprobe.probe import AttentionMaps, attention_map
from nlprobe.tables import Cell, Column, Row, Table

SPREAD = ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75))
"""Where the queries lie when none is given, as shares of height and width."""


class DefaultsToAttention(click.Group):
    """`nlprobe viz --ckpt …` is `nlprobe viz attention --ckpt …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default in front of anything that is neither a figure nor a plea for help."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["attention", *args]
        return super().parse_args(ctx, args)


class QueryType(click.ParamType):
    """A position: `Y,X` in pixels of the photograph, or in percent of its height and width (`50%,25%`)."""

    name = "Y,X"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float | int, float | int]:
        """Numbers from text; a share stays a float and pixels an int, which is how they are told apart later."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        try:
            if len(parts) == 2 and all(part.endswith("%") for part in parts):
                shares = [float(part[:-1]) / 100 for part in parts]
                if all(0 <= share <= 1 for share in shares):
                    return shares[0], shares[1]
            elif len(parts) == 2:
                return int(parts[0]), int(parts[1])
        except ValueError:
            pass
        self.fail(f"`{value}` is no position; write `Y,X` in pixels (`120,200`) or in percent (`50%,25%`)")


@click.group("viz", cls=DefaultsToAttention)
def command() -> None:
    """Draw figures; `nlprobe viz --ckpt …` draws attention maps."""


@command.command("attention")
@click.option(
    "--ckpt",
    "checkpoints",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A checkpoint or a run's folder; repeat it to set several networks below each other.",
)
@click.option("--label", "labels", multiple=True, help="What a checkpoint is called; once for each --ckpt.")
@click.option(
    "--image",
    "--data",
    "sources",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A photograph, a folder of them, or a data set's root; repeatable.",
)
@click.option("--limit", type=click.IntRange(min=1), default=6, show_default=True, help="Draw at most N images.")
@click.option("--site", help="The site; needed where a network has several (`nlprobe inspect` lists them).")
@click.option(
    "--query",
    "queries",
    multiple=True,
    type=QueryType(),
    help="A query point, Y,X in pixels or percent; repeatable. Three on the diagonal by default.",
)
@click.option("--difference", is_flag=True, help="Also draw each map's difference from the mean map.")
@click.option("--initial", is_flag=True, help="Also draw each network as it was before training.")
@click.option("--smooth", is_flag=True, help="Interpolate between the centres of the cells.")
@click.option(
    "--percentile",
    type=click.FloatRange(50, 100),
    default=99.5,
    show_default=True,
    help="Upper end of an image's colour scale, of all its weights.",
)
@click.option("--crop", is_flag=True, help="Cut the images as for measuring, instead of showing them whole.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Path of the figure; the ending is optional."
)
@click.option(
    "--figure-format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    help="png, pdf or svg; repeatable. By default all, or the ending of --out.",
)
@format_option()
@device_option
@config_option
@force_option
def attention(
    checkpoints: tuple[Path, ...],
    labels: tuple[str, ...],
    sources: tuple[Path, ...],
    limit: int,
    site: str | None,
    queries: tuple[tuple[float | int, float | int], ...],
    difference: bool,
    initial: bool,
    smooth: bool,
    percentile: float,
    crop: bool,
    out: Path,
    formats: tuple[str, ...],
    format: str,
    device: str,
    force: bool,
) -> None:
    """Draw attention maps over photographs for chosen query points (Figures 1 and 2 of the paper).

    A row for each image: the photograph with its query points, the map of each query and the mean map over all
    queries, all on one colour scale in units of the uniform weight 1/N. The figure is written as PNG, PDF and SVG, its
    data as CSV and NPZ beside it; a line for each image goes to stdout.

    \b
    Examples:
      nlprobe viz --ckpt runs/nl --image dog.jpg --query 120,200 --query 40,310 --out figure2
      nlprobe viz --ckpt runs/nl --data photos --limit 6 --difference --out figure2.pdf
    """
    place = resolve_device(device)
    ending = out.suffix.lstrip(".")
    kinds = formats or ((ending,) if ending in FORMATS else FORMATS)
    stem = out.with_suffix("") if ending in FORMATS else out
    for kind in (*kinds, "csv", "npz"):
        refuse_existing(stem.with_name(f"{stem.name}.{kind}"), force=force)
    networks = read_checkpoints(checkpoints, labels)
    found: list[AttentionMaps] = []
    for name, picture in _pictures(sources, limit):
        for one in networks:
            for model, label in _versions(one, initial):
                image, shown = _prepare(picture, one.preprocessing, crop)
                points = [_pixel(query, shown.shape) for query in queries or SPREAD]
                model.to(place)
                found.append(
                    attention_map(model, image.to(place), points, site, picture=shown, image_id=name, label=label)
                )
    figure = draw_attention(found, difference=difference, percentile=percentile, smooth=smooth)
    arrays = {f"maps_{index}": maps.maps for index, maps in enumerate(found)}
    arrays |= {f"mean_{index}": maps.mean for index, maps in enumerate(found)}
    for path in save_figure(figure, stem, formats=kinds, data=attention_data(found, percentile), arrays=arrays):
        wrote(path)
    result(_table(found).render(format, width=terminal_width()))


def _pictures(sources: tuple[Path, ...], limit: int) -> list[tuple[str, Image.Image]]:
    pictures: list[tuple[str, Image.Image]] = []
    for source in sources:
        if len(pictures) == limit:
            break
        part = Part(open_dataset(source), limit - len(pictures))
        pictures += [(part.ids[index], part.picture(index)) for index in range(len(part))]
    return pictures


def _versions(one: Labelled, initial: bool) -> list[tuple[torch.nn.Module, str]]:
    versions = [(one.checkpoint.model, one.label)]
    if initial:
        versions.append((initial_model(one.checkpoint), f"{one.label} at initialisation"))
    return versions


def _prepare(picture: Image.Image, preprocessing: Preprocessing, crop: bool) -> tuple[torch.Tensor, np.ndarray]:
    """The tensor that the network takes, and the picture of just what it sees."""
    image = (preprocessing.transform() if crop else preprocessing.photograph())(picture)
    if not crop:
        return image, np.asarray(picture)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels = (image * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return image, pixels.permute(1, 2, 0).contiguous().numpy()


def _pixel(query: tuple[float | int, float | int], shape: tuple[int, ...]) -> tuple[int, int]:
    y, x = (
        min(int(value * size), size - 1) if isinstance(value, float) else value
        for value, size in zip(query, shape[:2], strict=True)
    )
    return y, x


def _table(found: list[AttentionMaps]) -> Table:
    columns = (
        Column("image"),
        Column("model"),
        Column("site"),
        Column("avg_dist", head="avg. distance of all maps"),
        Column("peak", head="peak of the mean map, x uniform", decimals=2),
    )
    rows = tuple(
        Row(
            (
                Cell(maps.image_id),
                Cell(maps.label),
                Cell(maps.site),
                Cell(maps.avg_dist),
                Cell(float(maps.mean.max()) * maps.n_keys),
            )
        )
        for maps in found
    )
    return Table("Attention maps", columns, rows)
