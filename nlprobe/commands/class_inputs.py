"""Labelled images for the figures that compare classes, as each network takes them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from nlprobe.activations import Reading
from nlprobe.commands.inputs import feed
from nlprobe.commands.options import Function
from nlprobe.commands.report import say
from nlprobe.commands.sources import Named
from nlprobe.data.labelled import LabelledImages
from nlprobe.measuring import Shown

CHANNELS = {"auto": None, "first": False, "last": True}

_DATA = click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="The root of a data set with a class for each image."
)
_SPLIT = click.option(
    "--split", type=click.Choice(("val", "train")), default="val", show_default=True, help="Which part of it."
)
_CHANNELS = click.option(
    "--channels-axis",
    "channels_axis",
    type=click.Choice(tuple(CHANNELS)),
    default="auto",
    show_default=True,
    help="Where a module's output has its channels: first, (B, C, …), or last, (B, …, C). auto: last if it has three "
    "axes, else first.",
)


def class_options(command: Function) -> Function:
    """`--data`, `--split` and `--channels-axis`."""
    return _DATA(_SPLIT(_CHANNELS(command)))


def shown_to(one: Named, images: LabelledImages, batch_size: int, workers: int) -> Iterator[Shown]:
    """One pass over the images as the network takes them; what is done to them is said first."""
    found = feed(images.data, one, batch_size, workers)
    if one.checkpoint is None:
        say(f"{one.label}: {one.network.weights}")
    say(f"{one.label}: {found.description}")
    return found.batches()


def say_readings(one: Named, readings: Sequence[Reading]) -> None:
    """Say what is read of a network."""
    shown = ", ".join(reading.name for reading in readings[:8]) + (", …" if len(readings) > 8 else "")
    kinds = " and ".join(dict.fromkeys(reading.what for reading in readings))
    say(f"{one.label}: {kinds} of {len(readings)} module{'s' if len(readings) > 1 else ''}: {shown}")
