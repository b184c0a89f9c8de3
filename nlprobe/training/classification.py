"""Image classification: cross-entropy, top-1 and top-5."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from nlprobe.data import Batch, Batches, ImageDataset
from nlprobe.errors import DataError
from nlprobe.processes import ALONE, Processes
from nlprobe.training.image_task import ImageTask, onto
from nlprobe.training.recipes import Recipe
from nlprobe.training.task import Loss, Stop


@dataclass(frozen=True)
class Scores:
    """How a classifier did on each image.

    `ranks` holds for each image how many classes scored above its own: 0 is a top-1 hit. `losses` are cross-entropies.
    """

    ids: list[str]
    ranks: np.ndarray
    losses: np.ndarray
    classes: int

    def hits(self, k: int) -> np.ndarray:
        """1 for each image whose class is among the `k` best, else 0; float64."""
        return (self.ranks < k).astype(np.float64)

    def means(self) -> dict[str, float]:
        """Mean loss, top-1 and, where there are more than five classes, top-5."""
        means = {"loss": float(self.losses.mean()), "top1": float(self.hits(1).mean())}
        return means | ({"top5": float(self.hits(5).mean())} if self.classes > 5 else {})

    @classmethod
    def joined(cls, parts: Sequence["Scores"], order: Sequence[str]) -> "Scores":
        """The scores of several processes as one would have them, in the order of the names `order`."""
        place = {name: number for number, name in enumerate(order)}
        ids = [name for part in parts for name in part.ids]
        sorting = np.argsort([place[name] for name in ids], kind="stable")
        return cls(
            [ids[number] for number in sorting],
            np.concatenate([part.ranks for part in parts])[sorting],
            np.concatenate([part.losses for part in parts])[sorting],
            max(part.classes for part in parts),
        )


def rank_of_label(logits: Float[Tensor, "b classes"], labels: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
    """How many classes come before the label when classes are sorted by falling logit, ties in the order of classes.

    A row with a NaN has no order: its rank is the number of classes, a miss for every k.
    """
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return torch.where(logits.isnan().any(1), logits.shape[1], before.sum(1))


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    stop: Stop = lambda: False,
    processes: Processes = ALONE,
    order: Sequence[str] = (),
) -> Scores | None:
    """Classify every image, in evaluation mode and without gradients.

    Args:
        model: Images (B, 3, H, W) to logits (B, classes); its mode is put back afterwards.
        batches: Labelled images; of several processes each has its own.
        device: Where the model is.
        memory_format: Memory order of the images.
        stop: Asked after each batch; when it says so, the answer is None, in all processes.
        processes: Those that classify together; all of them get the scores of all images.
        order: Names of the images in the order in which several processes put them together.

    Raises:
        DataError: there are no images, or they have no labels.
    """
    parts = processes.gather(_scores(model, batches, device, memory_format, stop))
    if any(part is None for part in parts):
        return None
    return _refuse_nothing(parts[0] if len(parts) == 1 else Scores.joined(parts, order))


def _scores(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    memory_format: torch.memory_format,
    stop: Stop,
) -> Scores | None:
    """The scores of all images, perhaps of none; None if stopped."""
    training = model.training
    model.eval()
    ids: list[str] = []
    ranks: list[Tensor] = []
    losses: list[Tensor] = []
    classes = 0
    try:
        with torch.inference_mode():
            for batch in batches:
                if batch.labels is None:
                    raise DataError(
                        f"`{batch.ids[0]}` and the others have no labels",
                        "accuracy needs a folder for each class",
                    )
                images, labels = onto(batch, device, memory_format)
                logits = model(images).float()
                classes = logits.shape[1]
                ids += batch.ids
                ranks.append(rank_of_label(logits, labels))
                losses.append(functional.cross_entropy(logits, labels, reduction="none"))
                if stop():
                    return None
    finally:
        model.train(training)
    if not ids:
        return Scores([], np.empty(0, np.int64), np.empty(0), 0)
    return Scores(ids, torch.cat(ranks).cpu().numpy(), torch.cat(losses).cpu().double().numpy(), classes)


def _refuse_nothing(scores: Scores) -> Scores:
    if not scores.ids:
        raise DataError("no image of the data set can be read", "`nlprobe data check` names what is wrong with each")
    return scores


class Classification(ImageTask):
    """The task of `recipe.task` "classification"; see `training.task.Task`."""

    monitor = "top1"

    def __init__(
        self,
        training: Batches,
        validation: Batches,
        recipe: Recipe,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(training, validation, recipe, device, processes)
        self._smoothing = recipe.label_smoothing

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy, and the number of top-1 hits."""
        images, labels = onto(batch, self._device, self._memory_format)
        logits = model(images)
        mean = functional.cross_entropy(logits, labels, label_smoothing=self._smoothing)
        return Loss(mean, len(batch.ids), {"top1": (logits.detach().argmax(1) == labels).sum()})

    def validate(self, model: nn.Module, stop: Stop) -> dict[str, float] | None:
        """Loss, top-1 and top-5 on the validation set."""
        scores = evaluate(
            model,
            self._validation,
            self._device,
            memory_format=self._memory_format,
            stop=stop,
            processes=self._processes,
            order=self._validation.ids,
        )
        return scores.means() if scores else None


def check_data(training: ImageDataset, validation: ImageDataset, batch_size: int) -> None:
    """Make sure that a classifier can be trained and scored on the two.

    Raises:
        DataError: no labels, fewer than two classes, a class without a training image, a training set smaller than a
            batch, or classes that differ.
    """
    if training.labels is None or training.classes is None or validation.classes is None:
        raise DataError(
            f"`{training.root}` is a folder of photographs without labels",
            "training needs a folder for each class: train/<class>/ and val/<class>/",
        )
    if len(training.classes) < 2:
        raise DataError(
            f"`{training.root}` has one class only, `{training.classes[0]}`",
            "training needs two classes or more, each in its own folder",
        )
    counts = np.bincount(training.labels, minlength=len(training.classes))
    if empty := [name for name, count in zip(training.classes, counts, strict=True) if not count]:
        raise DataError(
            f"{len(empty)} of {len(counts)} classes in `{training.root}` have no training image, such as `{empty[0]}`",
            "remove the empty folders or fill them",
        )
    if len(training) < batch_size:
        raise DataError(
            f"`{training.root}` has {len(training)} training images, fewer than one batch of {batch_size}",
            f"use `--batch-size {max(len(training) // 4, 2)}` or less, or more images",
        )
    if training.classes != validation.classes:
        only = sorted(set(training.classes) ^ set(validation.classes))
        raise DataError(
            f"training has {len(training.classes)} classes and validation {len(validation.classes)}; `{only[0]}` is in "
            "one of them only",
            "both need the same class folders",
        )
