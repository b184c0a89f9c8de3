"""`nlprobe eval`: the scores of checkpoints on a data set, with intervals."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import click
import torch

from nlprobe.commands.action_scoring import ActionScoring
from nlprobe.commands.detection_scoring import DetectionScoring
from nlprobe.commands.options import (
    answers_option,
    config_option,
    device_option,
    force_option,
    format_option,
    limit_option,
    seed_option,
    workers_option,
)
from nlprobe.commands.report import progress, result, say, wrote
from nlprobe.commands.scoring import ClassificationScoring, Scoring
from nlprobe.commands.segmentation_scoring import SegmentationScoring
from nlprobe.commands.several import own_device, several_processes
from nlprobe.commands.sources import Labelled, read_checkpoints, task_of_checkpoint
from nlprobe.data import Batch, Batches, ImageDataset, UnreadableImageError, open_dataset
from nlprobe.data.dataset import refuse_other_kind
from nlprobe.data.loading import Share
from nlprobe.data.part import Part
from nlprobe.errors import ConfigError
from nlprobe.files import refuse_existing
from nlprobe.processes import Processes

FLAGS = {
    "segmentation": ("by_class", "predictions", "scales", "flip", "window", "stride"),
    "detection": ("by_class", "predictions"),
    "action_recognition": ("clips", "crops"),
}
"""The flags of single tasks."""


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
@answers_option
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A data set's root.")
@click.option("--split", type=click.Choice(["val", "train"]), default="val", show_default=True, help="Its part.")
@limit_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images in one forward pass; 64 for classification, else 1.",
)
@click.option("--by-class", is_flag=True, help="Segmentation, detection: the IoU or AP of every class.")
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
    help="Segmentation: write the predicted classes of every picture, in grey values and in colours, to this folder. "
    "Detection: COCO's results JSON.",
)
@click.option("--clips", type=click.IntRange(min=1), help="Action: clips of each video. Else as in the recipe.")
@click.option("--crops", type=click.IntRange(min=1), help="Action: crops of each clip. Else as in the recipe.")
@seed_option
@device_option
@workers_option
@format_option()
@config_option
@force_option
def command(
    checkpoints: tuple[Path, ...],
    labels: tuple[str, ...],
    answers: tuple[str, ...],
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
    recipe says; --scale and --flip average the probabilities of several versions of a picture. Detection: COCO's
    average precision of boxes and masks. Action: top-1 and top-5 by video, from the mean of the probabilities of its
    views, and by clip. With the preprocessing
    that the checkpoint names, and 95 % bootstrap intervals over images. Images that cannot be read are named, left out
    and counted.

    Under `torchrun` the processes share out the batches, one GPU each; the answer has the same bits for any number of
    them, if each has as many threads (`OMP_NUM_THREADS`).

    \b
    Examples:
      nlprobe eval --ckpt runs/nl --data data/imagenet
      nlprobe eval --ckpt runs/gc --data data/cityscapes --by-class --predictions predicted
      torchrun --nproc-per-node 8 -m nlprobe eval --ckpt runs/nl --data data/imagenet --workers 8
    """
    with several_processes("while scoring", "start again") as processes:
        where = processes.together(lambda: own_device(device, processes))
        networks = processes.together(lambda: read_checkpoints(checkpoints, labels, answers))
        scoring = processes.together(lambda: _scoring(networks, asked))
        if asked["predictions"] is not None:
            processes.first(lambda: refuse_existing(asked["predictions"], force=force))
        whole = processes.together(lambda: open_dataset(data, "train" if split == "train" else "val"))
        for note in whole.notes() if processes.leads else ():
            say(note)
        for one in networks:
            refuse_other_kind(whole, one.preprocessing.holds, f"`{one.label}`")
        dataset, size = Part(whole, limit), batch_size or scoring.batch_size
        rows = [(one.label, *_score(scoring, one, dataset, size, workers, where, processes)) for one in networks]

        def finish() -> None:
            if asked["predictions"] is not None:
                wrote(asked["predictions"])
            title = f"{scoring.title} on the {split} images of {data.resolve().name}"
            result(scoring.table(rows, title, seed).render(format))

        processes.first(finish)


def _scoring(networks: Sequence[Labelled], asked: dict[str, Any]) -> Scoring:
    """How the networks' task is scored.

    Raises:
        ConfigError: networks of several tasks, or flags of another task.
    """
    tasks = sorted({task_of_checkpoint(one.checkpoint) for one in networks})
    if len(tasks) > 1:
        raise ConfigError(f"the checkpoints are of several tasks: {', '.join(tasks)}", "score those of one at a time")
    (task,) = tasks
    for name, value in asked.items():
        if value not in (None, (), False) and name not in FLAGS.get(task, ()):
            flag = {"scales": "scale"}.get(name, name).replace("_", "-")
            owners = " and ".join(own for own, names in FLAGS.items() if name in names)
            raise ConfigError(f"`--{flag}` is for {owners}, and the checkpoints are of {task}", "leave it out")
    if task == "segmentation":
        return SegmentationScoring(_inference(asked), by_class=asked["by_class"], predictions=asked["predictions"])
    if task == "action_recognition":
        return ActionScoring(asked["clips"], asked["crops"])
    if task == "detection":
        return DetectionScoring(by_class=asked["by_class"], predictions=asked["predictions"])
    if task != "classification":
        raise ConfigError(f"`eval` scores no networks for {task}", "`nlprobe stats` measures them")
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
    scoring: Scoring,
    one: Labelled,
    dataset: ImageDataset,
    batch_size: int,
    workers: int,
    device: torch.device,
    processes: Processes,
) -> tuple[Any, int]:
    """The scores of one network, in every process those of all, and the number of images that could not be read."""
    unreadable: list[str] = []

    def report(error: UnreadableImageError) -> None:
        unreadable.append(error.image)
        say(f"left out: {error.cause}")

    def score() -> Any:
        scoring.check(one, dataset)
        batches = Batches(
            dataset,
            scoring.transform(one),
            batch_size,
            workers=workers,
            report=report,
            pin_memory=device.type == "cuda",
            share=Share(processes.rank, processes.count),
            keep_empty=True,
            pad=one.preprocessing.pad,
        )
        before, step = batches.order.before, processes.count
        passed: Iterator[tuple[int, Batch]] = zip(count(processes.rank, step), batches, strict=False)
        if processes.leads:
            say(f"{one.label}: {one.checkpoint.path}, {scoring.describe(one)}")
            passed = progress(
                passed, one.label, len(dataset), count=lambda item: before(item[0] + step) - before(item[0])
            )
        with closing(processes.in_step(batch for _, batch in passed)) as items:
            own = (batch for batch in items if batch is not None and batch.ids)
            return scoring.score(one, own, device, processes, dataset.ids)

    scores = processes.together(score)
    return scores, sum(map(len, processes.gather(unreadable)))
