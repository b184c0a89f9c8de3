"""`nlprobe data`: write the miniature data sets, and look over any data set."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click

from nlprobe.commands.options import config_option, force_option, format_option, seed_option
from nlprobe.commands.report import progress, result, say, wrote
from nlprobe.data import (
    Coco,
    ImageDataset,
    LabelMapDataset,
    UnreadableImageError,
    Video,
    open_parts,
    write_miniature_cityscapes,
    write_miniature_coco,
    write_miniature_imagenet,
    write_miniature_kinetics,
)
from nlprobe.data.decoding import pyav
from nlprobe.errors import DataError
from nlprobe.files import refuse_existing
from nlprobe.tables import Column, Table

MINIATURES: dict[str, Callable[..., Path]] = {
    "imagenet": write_miniature_imagenet,
    "cityscapes": write_miniature_cityscapes,
    "coco": write_miniature_coco,
    "kinetics": write_miniature_kinetics,
}


@click.group("data")
def command() -> None:
    """Write the miniature data sets, or look over a data set."""


@command.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write into.")
@click.option(
    "--only",
    type=click.Choice(tuple(MINIATURES)),
    multiple=True,
    help="Write this set alone; repeatable. All of them by default.",
)
@click.option("--train", type=click.IntRange(min=10), help="Training pictures, or videos, of each set.")
@click.option("--val", type=click.IntRange(min=10), help="Validation pictures, or videos, of each set.")
@seed_option
@force_option
@config_option
def miniature(out: Path, only: tuple[str, ...], train: int | None, val: int | None, seed: int, force: bool) -> None:
    """Write small data sets of real material.

    `OUT/imagenet` has ImageNet's folders: scenes of handwritten digits on photographs, whose class is the digit that
    most of them are; 4000 for training and 800 for validation. `OUT/cityscapes` has Cityscapes' leftImg8bit and gtFine:
    streets in which the digits are the traffic; 1000 and 200. `OUT/coco` has COCO's pictures and instances JSON: plates
    with digits as objects, each with box, class and outline; 1000 and 200. `OUT/kinetics` has Kinetics' CSVs and video
    files: digits whose motion is the class; 800 and 160. The files are a function of the seed, byte for byte. Needs
    scikit-learn, and for the videos PyAV.

    \b
    Example:
      nlprobe data miniature --out data
      nlprobe train miniature-imagenet/resnet-nl --data data/imagenet --out runs/nl
    """
    if "kinetics" in (only or MINIATURES):
        pyav("writing miniature videos")
    for name in only or MINIATURES:
        refuse_existing(out / name, force=force)
    for name in only or MINIATURES:
        counts = {split: count for split, count in (("train", train), ("val", val)) if count is not None}
        wrote(MINIATURES[name](out, seed, **counts, force=force, progress=partial(_shown, name)))


@command.command()
@click.argument("root", type=click.Path(path_type=Path))
@format_option()
def check(root: Path, format: str) -> None:
    """Look over a data set and read every image; of every video its first, its middle and its last frame.

    Says what kind of data set ROOT is, and how many classes and images it has.

    An image that cannot be read is named, and the command ends with 4; training and measuring would leave it out. So is
    a video that has been cut off, of which they would use what is left. Videos that Kinetics' CSV lists, but that are
    not there, are counted and named. Annotations of COCO that cannot be used are named, too; they are left out, and
    their pictures are not.
    """
    rows, unreadable = [], 0
    parts = open_parts(root)
    videos = any(dataset.holds == "videos" for dataset in parts.values())
    for name, dataset in parts.items():
        for listed in dataset.missing:
            say(f"`{listed}` is not there")
        bad = list(_unreadable(dataset, name))
        faults = dataset.faults if isinstance(dataset, Coco) else ()
        for line in [error.cause for error in bad] + [f"{name}: {fault}" for fault in faults]:
            say(line)
        unreadable += len(bad)
        counts = _counts(dataset)
        classes = len(dataset.classes) if dataset.classes is not None else None
        smallest = min((counts[label] for label in range(classes or 0)), default=None) if counts else None
        largest = max(counts.values()) if counts else None
        lost = sum(not fault.kept for fault in faults) if isinstance(dataset, Coco) else None
        absent = [len(dataset.missing)] if videos else []
        rows.append([name, dataset.kind, classes, len(dataset), *absent, len(bad), smallest, largest, lost])
    holds = ("videos", "missing") if videos else ("images",)
    columns = ("part", "kind", "classes", *holds, "unreadable", "smallest class", "largest class", "faulty objects")
    result(Table.of(f"`{root}`", [Column(column) for column in columns], rows).render(format))
    if unreadable:
        one = "video" if videos else "image"
        raise DataError(
            f"{unreadable} {one}{'s' if unreadable > 1 else ''} of `{root}` cannot be read",
            f"replace or remove what is named above; training and measuring leave such {one}s out",
        )


def _counts(dataset: ImageDataset) -> Counter[int] | None:
    """Images of each class, or objects where images show several."""
    if isinstance(dataset, Coco) and dataset.has_instances:
        return Counter(dataset.index.labels[dataset.index.learnt].tolist())
    return Counter(dataset.labels) if dataset.labels is not None else None


def _shown(name: str, pictures: Iterable[int], label: str) -> Iterable[int]:
    return progress(pictures, f"{name}, {label}")


def _unreadable(dataset: ImageDataset, part: str) -> Iterator[UnreadableImageError]:
    """Read every image and map of classes, on all cores: decoders do not hold Python's lock."""
    whole = not isinstance(dataset, LabelMapDataset) or dataset.has_maps

    def attempt(index: int) -> UnreadableImageError | None:
        try:
            if isinstance(picture := dataset.picture(index), Video):
                picture.check()
            elif whole:
                dataset.label(index, picture)
        except UnreadableImageError as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        attempts = pool.map(attempt, range(len(dataset)))
        passed = progress(attempts, part, len(dataset), unit=dataset.holds)
        yield from (error for error in passed if error is not None)
