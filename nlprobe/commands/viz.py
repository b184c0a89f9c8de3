"""`nlprobe viz`: figures; without a further word it draws attention maps."""

from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from nlprobe.commands.figures import Target, figure_options
from nlprobe.commands.options import (
    Chosen,
    config_option,
    device_option,
    force_option,
    format_option,
    network_options,
    resolve_device,
)
from nlprobe.commands.report import result, say, terminal_width, wrote
from nlprobe.commands.sources import Named, read_adapters, read_networks
from nlprobe.commands.viz_activations import activations
from nlprobe.commands.viz_emergence import emergence
from nlprobe.commands.viz_selectivity import selectivity
from nlprobe.commands.viz_video import video
from nlprobe.data import Preprocessing, open_dataset
from nlprobe.data.part import Part
from nlprobe.errors import ConfigError
from nlprobe.plots import attention_data, draw_attention, save_figure
from nlprobe.probe import AttentionMaps, attention_map
from nlprobe.tables import Cell, Column, Row, Table

SPREAD = ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75))
"""Where the queries lie when none is given, as shares of height and width."""


HEADS = ("num_heads", "num_attention_heads", "heads")
"""What attention modules call their number of heads."""


class DefaultsToAttention(click.Group):
    """`nlprobe viz --ckpt …` is `nlprobe viz attention --ckpt …`, and `viz video` where there is a --video."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default in front of any flag but a plea for help; a word is the name of a figure, or misspelt."""
        if args and args[0].startswith("-") and args[0] not in ("--help", "-h"):
            videos = any(one == "--video" or one.startswith("--video=") for one in args)
            args = ["video" if videos else "attention", *args]
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


for _figure in (activations, emergence, selectivity, video):
    command.add_command(_figure)


@command.command("attention")
@network_options(without=("size", "mean", "std"))
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
@click.option("--head", type=click.IntRange(min=0), help="Draw this head, from 0; the average of all by default.")
@click.option(
    "--call",
    type=click.IntRange(min=0),
    help="Draw this use of a module that one forward call runs several times, from 0; by default the first, of "
    "criss-cross attention all steps composed.",
)
@click.option(
    "--prefix", type=click.IntRange(min=0), help="Tokens in front that are no positions; else the site's own."
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
@figure_options
@format_option()
@device_option
@config_option
@force_option
def attention(
    chosen: Chosen,
    sources: tuple[Path, ...],
    limit: int,
    site: str | None,
    queries: tuple[tuple[float | int, float | int], ...],
    head: int | None,
    call: int | None,
    prefix: int | None,
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

    A network of another library (--model) is shown the image as its own preprocessing makes it, and --query counts in
    pixels of just that; without --weights its weights are random.

    \b
    Examples:
      nlprobe viz attention --ckpt runs/nl --image dog.jpg --query 120,200 --query 40,310 --out figure2
      nlprobe viz attention --ckpt runs/nl --data photos --limit 6 --difference --out figure2.pdf
      nlprobe viz attention --model timm:vit_base_patch16_224 --weights vit.safetensors --image dog.jpg
        --site blocks.3.attn --query 50%,25% --head 0 --out head0
    """
    place = resolve_device(device)
    target = Target.of(out, formats)
    target.refuse_existing(("csv", "npz"), force=force)
    adapters = read_adapters(chosen.adapters)
    networks = read_networks(chosen)
    for one in networks:
        _refuse_without_pictures(one)
        if one.checkpoint is None:
            say(f"{one.label}: {one.network.weights}")
    found: list[AttentionMaps] = []
    for name, picture in _pictures(sources, limit):
        for one in networks:
            for model, label in _versions(one, initial):
                image, shown = _prepare(picture, one, crop)
                points = [_pixel(query, shown.shape) for query in queries or SPREAD]
                found.append(
                    attention_map(
                        model.to(place).eval(),
                        image.to(place),
                        points,
                        site,
                        head=head,
                        call=call,
                        prefix=prefix,
                        adapters=adapters,
                        picture=shown,
                        image_id=name,
                        label=label,
                    )
                )
                found[-1] = _with_call(_with_head(found[-1], model, head), call)
    figure = draw_attention(found, difference=difference, percentile=percentile, smooth=smooth)
    arrays = {f"maps_{index}": maps.maps for index, maps in enumerate(found)}
    arrays |= {f"mean_{index}": maps.mean for index, maps in enumerate(found)}
    data = attention_data(found, percentile)
    for path in save_figure(figure, target.stem, formats=target.formats, data=data, arrays=arrays):
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


def _versions(one: Named, initial: bool) -> list[tuple[torch.nn.Module, str]]:
    versions = [(one.model, one.label)]
    if initial:
        versions.append((one.untrained(), f"{one.label} at initialisation"))
    return versions


def _refuse_without_pictures(one: Named) -> None:
    """Make sure that a network takes a picture as its only, or its first, argument.

    Raises:
        ConfigError: it does not.
    """
    pictures = one.network.pictures
    if pictures is None:
        raise ConfigError(
            f"`{one.label}` takes no pictures, or does not say how they are preprocessed",
            "choose another network, or let its callable return the transform too",
        )
    first = next(iter(signature(one.model.forward).parameters))
    if pictures.argument is not None and first != pictures.argument:
        raise ConfigError(
            f"`{one.label}` takes `{first}` before its pictures (`{pictures.argument}`)",
            "draw the part of it that takes pictures alone, by --model python:package.module:callable",
        )


def _with_call(maps: AttentionMaps, call: int | None) -> AttentionMaps:
    """The maps with a label that says which use of the module they are of, where that was asked for or is all."""
    if call is not None:
        return replace(maps, label=f"{maps.label}, call {call}")
    return replace(maps, label=f"{maps.label}, all steps composed") if maps.instantiation == "composed" else maps


def _with_head(maps: AttentionMaps, model: torch.nn.Module, head: int | None) -> AttentionMaps:
    """The maps with a label that says which head they are of, where the site has several."""
    if head is not None:
        return replace(maps, label=f"{maps.label}, head {head}")
    site = dict(model.named_modules()).get(maps.site)
    heads = next((getattr(site, name) for name in HEADS if isinstance(getattr(site, name, None), int)), 1)
    return replace(maps, label=f"{maps.label}, mean of {heads} heads") if heads > 1 else maps


def _prepare(picture: Image.Image, one: Named, crop: bool) -> tuple[torch.Tensor, np.ndarray]:
    """The tensor that the network takes, and the picture of just what it sees."""
    pictures = one.network.pictures
    assert pictures is not None
    if one.checkpoint is not None and not crop:
        return Preprocessing.from_dict(dict(pictures.settings)).photograph()(picture), np.asarray(picture)
    image = pictures.transform(picture)
    return image, _seen(image, pictures.settings)


def _seen(image: torch.Tensor, settings: Mapping[str, Any]) -> np.ndarray:
    """A picture (H, W, 3) from a network's input, its normalisation undone; stretched where that is not known."""
    pixels = image.float()
    mean, std = (settings.get(one) or settings.get(f"image_{one}") for one in ("mean", "std"))
    if mean is not None and std is not None:
        mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
        pixels = pixels * std + mean
    elif pixels.min() < 0 or pixels.max() > 1:
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp_min(1e-12)
    pixels = pixels if len(pixels) == 3 else pixels.mean(0, keepdim=True).expand(3, -1, -1)
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


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
