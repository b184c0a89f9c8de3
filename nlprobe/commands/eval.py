"""`nlprobe eval`: the scores of checkpoints on a data set, with intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from nlprobe.commands.options import (
    config_option,
    device_option,
    force_option,
    format_option,
    limit_option,
    resolve_device,
    seed_option,
    workers_option,
)
from nlprobe.commands.report import progress, result, say, wrote
from nlprobe.commands.scoring import ClassificationScoring, Scoring
from nlprobe.commands.segmentation_scoring import SegmentationScoring
from nlprobe.commands.sources import Labelled, read_checkpoints
from nlprobe.data import Batches, ImageDataset, UnreadableImageError, open_dataset
from nlprobe.data.part import Part
from nlprobe.errors import ConfigError
from nlprobe.files import refuse_existing


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
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Images in one forward pass; 64, and 1 for segmentation."
)
@click.option("--by-class", is_flag=True, help="Segmentation: the IoU of every class.")
@click.option("--scale", "scales", multiple=True, type=float, help="Segmentation: score at this size too; repeatable.")
@click.option("--flip", is_flag=True, help="Segmentation: score mirrored pictures too.")
@click.option(
    "--window",
    type=click.IntRange(min=0),
    help="Segmentation: slide a window of this side over the pictures; 0 takes them whole. Else as in the recipe.",
)
@click.option("--stride", type=click.IntRange(min=1), help="Segmentation: steps of the window; two thirds of it.")
@click.option(
    "--predictions",
    type=click.Path(file_okay=False, path_type=Path),
    help="Segmentation: write the predicted classes of every picture, in grey values and in colours, to this folder.",
)
@seed_option
@device_option
@workers_option
@format_option()
@config_option
@force_option
def command(
    checkpoints: tuple[Path, ...],
    labels: tuple[str, ...],
    data: Path,
    split: str,
    limit: int | None,
    batch_size: int | None,
    seed: int,
    device: str,
    workers: int,
    format: str,
    force: bool,
    **asked: Any,
) -> None:
    """Score checkpoints on a data set.

    Classification: single-crop top-1 and top-5. Segmentation: mean intersection over union, of whole pictures or as the
    recipe says; --scale and --flip average the probabilities of several versions of a picture. With the preprocessing
    that the checkpoint names, and 95 % bootstrap intervals over images. Images that cannot be read are named, left out
    and counted.

    \b
    Examples:
      nlprobe eval --ckpt runs/nl --data data/imagenet
      nlprobe eval --ckpt runs/gc --data data/cityscapes --by-class --predictions predicted
    """
    where = resolve_device(device)
    networks = read_checkpoints(checkpoints, labels)
    scoring = _scoring(networks, asked)
    if asked["predictions"] is not None:
        refuse_existing(asked["predictions"], force=force)
    dataset = Part(open_dataset(data, "train" if split == "train" else "val"), limit)
    rows = []
    for one in networks:
        scoring.check(one, dataset)
        scores, unreadable = _score(scoring, one, dataset, batch_size or scoring.batch_size, workers, where)
        rows.append((one.label, scores, unreadable))
    if asked["predictions"] is not None:
        wrote(asked["predictions"])
    result(scoring.table(rows, f"{scoring.title} on the {split} images of {data.resolve().name}", seed).render(format))


def _scoring(networks: Sequence[Labelled], asked: dict[str, Any]) -> Scoring:
    """How the networks' task is scored.

    Raises:
        ConfigError: networks of several tasks, or flags of another task.
    """
    tasks = sorted({one.checkpoint.metadata.get("recipe", {}).get("task", "classification") for one in networks})
    if len(tasks) > 1:
        raise ConfigError(f"the checkpoints are of several tasks: {', '.join(tasks)}", "score those of one at a time")
    if tasks == ["segmentation"]:
        return SegmentationScoring(_inference(asked), by_class=asked["by_class"], predictions=asked["predictions"])
    if given := [name for name, value in asked.items() if value not in (None, (), False)]:
        flag = {"scales": "scale"}.get(given[0], given[0]).replace("_", "-")
        raise ConfigError(f"`--{flag}` is for segmentation, and the checkpoints are of {tasks[0]}", "leave it out")
    return ClassificationScoring()


def _inference(asked: dict[str, Any]) -> dict[str, Any]:
    """What the flags change in the way in which the recipe scores pictures."""
    window, stride = asked["window"], asked["stride"]
    if stride is not None and not window:
        raise ConfigError("`--stride` without `--window`", "give the side of the window too")
    changes: dict[str, Any] = {"flip": True} if asked["flip"] else {}
    if asked["scales"]:
        changes["scales"] = asked["scales"]
    if window is not None:
        changes |= {"window": window, "stride": stride or max(2 * window // 3, 1)}
    return changes


def _score(
    scoring: Scoring, one: Labelled, dataset: ImageDataset, batch_size: int, workers: int, device: torch.device
) -> tuple[Any, int]:
    """The scores of one network, and the number of images that could not be read."""
    unreadable: list[str] = []

    def report(error: UnreadableImageError) -> None:
        unreadable.append(error.image)
        say(f"left out: {error.cause}")

    say(f"{one.label}: {one.checkpoint.path}, {scoring.describe(one)}")
    batches = Batches(
        dataset,
        scoring.transform(one),
        batch_size,
        workers=workers,
        report=report,
        pin_memory=device.type == "cuda",
    )
    shown = progress(iter(batches), one.label, total=len(dataset), count=lambda batch: len(batch.ids))
    return scoring.score(one, shown, device), len(unreadable)
