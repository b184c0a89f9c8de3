"""Object detection and instance segmentation: the network's own losses, and average precision of boxes and masks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlprobe.data import Batch, ImageDataset, Instances
from nlprobe.errors import DataError
from nlprobe.models.detections import Detections
from nlprobe.processes import ALONE, Processes
from nlprobe.training.detection_results import ImageDetections, Kind, in_original
from nlprobe.training.detection_scores import DetectionScores, score_detections, whole_of
from nlprobe.training.image_task import ImageTask
from nlprobe.training.task import Loss, Stop


@dataclass(frozen=True)
class Found:
    """What a network found in each image, in pixels of the original picture."""

    ids: list[str]
    detections: list[ImageDetections]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Boxes, and masks where the network gives any."""
        return ("box", "mask") if any(each.masks is not None for each in self.detections) else ("box",)

    @classmethod
    def joined(cls, parts: Sequence["Found"], order: Sequence[str]) -> "Found":
        """What several processes found as one would have it, in the order of the names `order`."""
        place = {name: number for number, name in enumerate(order)}
        pairs = [pair for part in parts for pair in zip(part.ids, part.detections, strict=True)]
        pairs.sort(key=lambda pair: place[pair[0]])
        return cls([name for name, _ in pairs], [found for _, found in pairs])


def detect(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    stop: Stop = lambda: False,
    processes: Processes = ALONE,
    order: Sequence[str] = (),
) -> Found | None:
    """What a network finds in every image, in evaluation mode and without gradients.

    Args:
        model: Images (B, 3, H, W) and the sizes of their pictures to `Detections`; its mode is put back afterwards.
        batches: Images with their objects; of several processes each has its own.
        device: Where the model is.
        memory_format: Memory order of the images.
        stop: Asked after each batch; when it says so, the answer is None, in all processes.
        processes: Those that look together; all of them get what all found.
        order: Names of the images in the order in which several processes put them together.

    Raises:
        DataError: there are no images, or their objects are not known.
    """
    parts = processes.gather(_found(model, batches, device, memory_format, stop))
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    if not any(part.ids for part in whole):
        raise DataError("no image of the data set can be read", "`nlprobe data check` names what is wrong with each")
    return whole[0] if len(whole) == 1 else Found.joined(whole, order)


def _found(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    memory_format: torch.memory_format,
    stop: Stop,
) -> Found | None:
    training = model.training
    model.eval()
    ids: list[str] = []
    detections: list[ImageDetections] = []
    try:
        with torch.inference_mode():
            for batch in batches:
                objects = _objects(batch)
                images = batch.images.to(device, non_blocking=True).contiguous(memory_format=memory_format)
                sizes = sizes_of(batch)
                found: list[Detections] = model(images, sizes)
                ids += batch.ids
                detections += [
                    in_original(each, own.image_id, size, own.size)
                    for each, own, size in zip(found, objects, sizes, strict=True)
                ]
                if stop():
                    return None
    finally:
        model.train(training)
    return Found(ids, detections)


def sizes_of(batch: Batch) -> list[tuple[int, int]]:
    """Height and width of each picture within its image; all of it where nothing was padded."""
    return batch.sizes or [(batch.images.shape[2], batch.images.shape[3])] * len(batch.images)


class Detection(ImageTask):
    """The task of `recipe.task` "detection"; see `training.task.Task`.

    Boxes choose the best epoch: COCO's first number.
    """

    monitor = "box_ap"

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The sum of the network's losses, each the mean over the batch as the network takes it."""
        objects = [each.to(self._device, non_blocking=True) for each in _objects(batch)]
        images = batch.images.to(self._device, non_blocking=True).contiguous(memory_format=self._memory_format)
        losses: dict[str, Tensor] = model(images, sizes_of(batch), objects)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        count = len(batch.ids)
        return Loss(total, count, {f"loss_{name}": loss.detach().float() * count for name, loss in losses.items()})

    def validate(self, model: nn.Module, stop: Stop) -> dict[str, float] | None:
        """COCO's numbers for boxes and masks on the validation set."""
        found = detect(
            model,
            self._validation,
            self._device,
            memory_format=self._memory_format,
            stop=stop,
            processes=self._processes,
            order=self._validation.ids,
        )
        if found is None:
            return None
        scores: DetectionScores = score_detections(self._validation.dataset, found.detections, found.kinds)
        # A kind of object that is not there has no precision, which JSON and the choice of the best epoch cannot hold.
        return {name: value for name, value in scores.means().items() if value == value}


def check_instances(training: ImageDataset, validation: ImageDataset, batch_size: int) -> None:
    """Make sure that detection can be trained and scored on the two.

    Raises:
        DataError: a data set without objects, other classes, or a training set smaller than a batch.
    """
    for dataset in (training, validation):
        whole_of(dataset)
    if len(training) < batch_size:
        raise DataError(
            f"`{training.root}` has {len(training)} training images, fewer than one batch of {batch_size}",
            f"use `--batch-size {max(len(training) // 4, 2)}` or less, or more images",
        )
    if training.classes != validation.classes:
        raise DataError(
            f"training and validation have other classes: {len(training.classes or ())} and "
            f"{len(validation.classes or ())}",
            "both need the same",
        )


def _objects(batch: Batch) -> list[Instances]:
    if batch.labels is None:
        raise DataError(f"`{batch.ids[0]}` and the others have no boxes", "give a data set that has them, such as COCO")
    objects: list[Instances] = batch.labels
    return objects
