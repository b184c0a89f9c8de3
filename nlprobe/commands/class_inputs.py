"""Labelled images for the figures that compare classes, as each network takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from nlprobe.activations import Reading
from nlprobe.commands.inputs import Feed, feed
from nlprobe.commands.options import Function
from nlprobe.commands.report import say
from nlprobe.commands.sources import Named
from nlprobe.data import ImageDataset, open_dataset
from nlprobe.data.part import Part
from nlprobe.errors import DataError
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


@dataclass(frozen=True)
class Labelled:
    """A data set with a class for each image.

    Attributes:
        data: The images.
        classes: Names of the classes.
        labels: Class of each image by its name.
    """

    data: ImageDataset
    classes: tuple[str, ...]
    labels: dict[str, int]

    def shown_to(self, one: Named, batch_size: int, workers: int) -> Iterator[Shown]:
        """One pass over the images as the network takes them; what is done to them is said first."""
        found: Feed = feed(self.data, one, batch_size, workers)
        if one.checkpoint is None:
            say(f"{one.label}: {one.network.weights}")
        say(f"{one.label}: {found.description}")
        return found.batches()


def open_labelled(root: Path, split: str, limit: int | None) -> Labelled:
    """The labelled data set at `root`.

    Raises:
        DataError: its images have no class each, or as `open_dataset`.
    """
    data = Part(open_dataset(root, "train" if split == "train" else "val"), limit)
    if data.labels is None or data.classes is None:
        raise DataError(
            f"`{root}` ({data.kind}) has no class for each image, and classes are to be compared",
            "give a data set with a folder for each class, such as the miniature ImageNet of `nlprobe data miniature`",
        )
    return Labelled(data, tuple(data.classes), dict(zip(data.ids, data.labels, strict=True)))


def say_readings(one: Named, readings: Sequence[Reading]) -> None:
    """Say what is read of a network."""
    shown = ", ".join(reading.name for reading in readings[:8]) + (", …" if len(readings) > 8 else "")
    kinds = " and ".join(dict.fromkeys(reading.what for reading in readings))
    say(f"{one.label}: {kinds} of {len(readings)} module{'s' if len(readings) > 1 else ''}: {shown}")
