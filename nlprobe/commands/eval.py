"""`nlprobe eval`: the accuracy of checkpoints on a data set, with intervals."""

from pathlib import Path

import click
import torch

from nlprobe.commands.options import (
    batch_size_option,
    config_option,
    device_option,
    format_option,
    limit_option,
    resolve_device,
    seed_option,
    workers_option,
)
from nlprobe.commands.report import progress, result, say
from nlprobe.commands.sources import Labelled, read_checkpoints
from nlprobe.data import Batches, ImageDataset, UnreadableImageError, open_dataset
from nlprobe.data.part import Part
from nlprobe.errors import DataError
from nlprobe.stats.intervals import Estimate, bootstrap_mean
from nlprobe.tables import Cell, Column, Table
from nlprobe.training import Scores, evaluate


@click.command("eval")
@click.option(
    "--ckpt",
    "checkpoints",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A checkpoint or a run's folder; repeat it for a table of several.",
)
@click.option("--label", "labels", multiple=True, help="Name of a checkpoint in the table; one for each --ckpt.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A data set's root.")
@click.option("--split", type=click.Choice(["val", "train"]), default="val", show_default=True, help="Its part.")
@limit_option
@batch_size_option(64)
@seed_option
@device_option
@workers_option
@format_option()
@config_option
def command(
    checkpoints: tuple[Path, ...],
    labels: tuple[str, ...],
    data: Path,
    split: str,
    limit: int | None,
    batch_size: int,
    seed: int,
    device: str,
    workers: int,
    format: str,
) -> None:
    """Score checkpoints on a data set.

    Single-crop top-1 and top-5, with the preprocessing that the checkpoint names, and 95 % bootstrap intervals over
    images. Images that cannot be read are named, left out and counted.

    \b
    Example:
      nlprobe eval --ckpt runs/nl --data data/imagenet
    """
    where = resolve_device(device)
    networks = read_checkpoints(checkpoints, labels)
    dataset = Part(open_dataset(data, "train" if split == "train" else "val"), limit)
    rows = []
    for one in networks:
        _refuse_other_classes(one, dataset)
        scores, unreadable = _score(one, dataset, batch_size, workers, where)
        top5 = _cell(bootstrap_mean(scores.hits(5), seed=seed)) if scores.classes > 5 else None
        top1 = _cell(bootstrap_mean(scores.hits(1), seed=seed))
        rows.append([one.label, top1, top5, float(scores.losses.mean()), len(scores.ids), unreadable])
    columns = [Column(name) for name in ("model", "top1", "top5", "loss", "images", "unreadable")]
    title = f"Single-crop accuracy on the {split} images of {data.resolve().name}"
    result(Table.of(title, columns, rows, notes=("Intervals: 95 % bootstrap over images.",)).render(format))


def _score(
    one: Labelled, dataset: ImageDataset, batch_size: int, workers: int, device: torch.device
) -> tuple[Scores, int]:
    """The scores of one network, and the number of images that could not be read."""
    unreadable: list[str] = []

    def report(error: UnreadableImageError) -> None:
        unreadable.append(error.image)
        say(f"left out: {error.cause}")

    say(f"{one.label}: {one.checkpoint.path}, {one.preprocessing}")
    batches = Batches(
        dataset,
        one.preprocessing.transform(),
        batch_size,
        workers=workers,
        report=report,
        pin_memory=device.type == "cuda",
    )
    shown = progress(iter(batches), one.label, total=len(dataset), count=lambda batch: len(batch.ids))
    scores = evaluate(one.checkpoint.model.to(device), shown, device)
    assert scores is not None
    return scores, len(unreadable)


def _cell(estimate: Estimate) -> Cell:
    return Cell(estimate.mean, estimate.low, estimate.high, estimate.n)


def _refuse_other_classes(one: Labelled, dataset: ImageDataset) -> None:
    """Make sure that label k means the same to the network and the data set.

    Raises:
        DataError: the data set has no labels, or other classes than the network was trained on.
    """
    if dataset.classes is None:
        raise DataError(
            f"`{dataset.root}` is a folder of photographs without labels", "accuracy needs a folder for each class"
        )
    trained = one.checkpoint.metadata.get("classes")
    if trained is not None and list(trained) != dataset.classes:
        odd = sorted(set(trained) ^ set(dataset.classes)) or ["their order"]
        raise DataError(
            f"`{one.label}` was trained on {len(trained)} classes, `{dataset.root}` has {len(dataset.classes)}, "
            f"and they differ, for one in `{odd[0]}`",
            "score it on the data set that it was trained on",
        )
