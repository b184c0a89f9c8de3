"""Semantic segmentation: cross-entropy of every pixel, and mean intersection over union."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from nlprobe.data import IGNORED, Batch, Batches, ImageDataset, LabelMapDataset
from nlprobe.errors import DataError
from nlprobe.processes import ALONE, Processes
from nlprobe.training.confusion import SegmentationScores, confusion_matrices
from nlprobe.training.image_task import ImageTask, onto
from nlprobe.training.recipes import Recipe
from nlprobe.training.segmentation_inference import WHOLE, Inference
from nlprobe.training.segmentation_recipes import SegmentationRecipe
from nlprobe.training.task import Loss, Stop

Keep = Callable[[Sequence[str], Int64[Tensor, "b h w"]], object]


def evaluate_segmentation(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    inference: Inference = WHOLE,
    memory_format: torch.memory_format = torch.contiguous_format,
    keep: Keep = lambda ids, predicted: None,
    stop: Stop = lambda: False,
    processes: Processes = ALONE,
    order: Sequence[str] = (),
) -> SegmentationScores | None:
    """Score every image, in evaluation mode and without gradients.

    Args:
        model: Images (B, 3, H, W) to scores (B, classes, H, W); its mode is put back afterwards.
        batches: Images with maps of classes; of several processes each has its own.
        device: Where the model is.
        inference: Whole pictures or windows, scales, flips.
        memory_format: Memory order of the images.
        keep: Gets the names of each batch's images and their predicted classes.
        stop: Asked after each batch; when it says so, the answer is None, in all processes.
        processes: Those that score together; all of them get the scores of all images.
        order: Names of the images in the order in which several processes put them together.

    Raises:
        DataError: there are no images, or one has no map.
    """
    parts = processes.gather(_scores(model, batches, device, inference, memory_format, keep, stop))
    if any(part is None for part in parts):
        return None
    if not any(part.ids for part in parts):
        raise DataError("no image of the data set can be read", "`nlprobe data check` names what is wrong with each")
    return parts[0] if len(parts) == 1 else SegmentationScores.joined(parts, order)


def _scores(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    inference: Inference,
    memory_format: torch.memory_format,
    keep: Keep,
    stop: Stop,
) -> SegmentationScores | None:
    """The scores of all images, perhaps of none; None if stopped."""
    training = model.training
    model.eval()
    ids: list[str] = []
    confusion: list[Tensor] = []
    losses: list[Tensor] = []
    try:
        with torch.inference_mode():
            for batch in batches:
                _refuse_without_maps(batch)
                images, labels = onto(batch, device, memory_format)
                logits = inference.logits(model, images)
                predicted = logits.argmax(1)
                keep(batch.ids, predicted)
                ids += batch.ids
                confusion.append(confusion_matrices(predicted, labels, logits.shape[1]))
                losses.append(_image_means(pixel_losses(logits, labels), labels != IGNORED))
                if stop():
                    return None
    finally:
        model.train(training)
    if not ids:
        return SegmentationScores([], np.empty((0, 0, 0), np.int64), np.empty(0))
    return SegmentationScores(ids, torch.cat(confusion).cpu().numpy(), torch.cat(losses).cpu().double().numpy())


def pixel_losses(
    logits: Float[Tensor, "b classes h w"], labels: Int64[Tensor, "b h w"], label_smoothing: float = 0.0
) -> Float[Tensor, "b h w"]:
    """Cross-entropy of each pixel; 0 where there is no label."""
    return functional.cross_entropy(
        logits, labels, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
    )


def hard_pixels(
    logits: Float[Tensor, "b classes h w"], labels: Int64[Tensor, "b h w"], threshold: float, kept: int
) -> Bool[Tensor, "b h w"]:
    """Labelled pixels whose own class has a probability below the threshold, and the `kept` hardest of each image."""
    labelled = labels != IGNORED
    with torch.no_grad():
        own = logits.detach().float().softmax(1).gather(1, labels.where(labelled, 0).unsqueeze(1)).squeeze(1)
        own = own.where(labelled, 2.0).flatten(1)  # above any probability: never among the hardest
        hardest = own.kthvalue(min(kept, own.shape[1]), dim=1, keepdim=True).values.clamp(max=1.0)
        return ((own <= hardest) | (own < threshold)).view_as(labels) & labelled


class Segmentation(ImageTask):
    """The task of `recipe.task` "segmentation"; see `training.task.Task`."""

    monitor = "miou"

    def __init__(
        self,
        training: Batches,
        validation: Batches,
        recipe: Recipe,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        assert isinstance(recipe, SegmentationRecipe)
        super().__init__(training, validation, recipe, device, processes)
        self._recipe = recipe
        self._inference = inference_of(recipe)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The cross-entropy of the head, and by their weights those of the auxiliary head and others.

        The mean over images of the mean over an image's labelled pixels; an image without any counts 0.
        """
        _refuse_without_maps(batch)
        images, labels = onto(batch, self._device, self._memory_format)
        found = model(images)
        total = images.new_zeros(())
        for name, logits in found.items():
            weight = {"scores": 1.0, "auxiliary": self._recipe.auxiliary}.get(name, self._recipe.further)
            if weight:
                total = total + weight * self._mean_loss(logits.float(), labels, main=name == "scores")
        labelled = labels != IGNORED
        right = (found["scores"].detach().argmax(1) == labels).float()
        accuracy = _image_means(right, labelled).nan_to_num(0)
        return Loss(total, len(batch.ids), {"pixel_accuracy": accuracy.sum()})

    def validate(self, model: nn.Module, stop: Stop) -> dict[str, float] | None:
        """Loss, mIoU and pixel accuracy on the validation set."""
        scores = evaluate_segmentation(
            model,
            self._validation,
            self._device,
            inference=self._inference,
            memory_format=self._memory_format,
            stop=stop,
            processes=self._processes,
            order=self._validation.ids,
        )
        return scores.means() if scores else None

    def _mean_loss(self, logits: Tensor, labels: Tensor, *, main: bool) -> Tensor:
        counted = labels != IGNORED
        if main and self._recipe.ohem:
            counted = hard_pixels(logits, labels, self._recipe.ohem, self._recipe.ohem_kept)
        losses = pixel_losses(logits, labels, self._recipe.label_smoothing)
        sums, counts = (losses * counted).sum((1, 2)), counted.sum((1, 2))
        return (sums / counts.clamp(min=1)).mean()


def inference_of(recipe: SegmentationRecipe) -> Inference:
    """How the recipe scores pictures."""
    if recipe.inference == "sliding":
        return Inference(recipe.window, recipe.window_stride)
    return WHOLE


def check_label_maps(training: ImageDataset, validation: ImageDataset, batch_size: int) -> None:
    """Make sure that segmentation can be trained and scored on the two.

    Raises:
        DataError: a data set without maps of classes, other classes, or a training set smaller than a batch.
    """
    for dataset in (training, validation):
        if not isinstance(dataset, LabelMapDataset) or not dataset.has_maps:
            raise DataError(
                f"`{dataset.root}` ({dataset.kind}) has no maps of classes",
                "segmentation needs a data set like Cityscapes, with `leftImg8bit` and `gtFine`",
            )
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


def _image_means(values: Float[Tensor, "b h w"], counted: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Mean over each image's counted pixels; NaN for an image without."""
    return values.where(counted, 0).sum((1, 2)) / counted.sum((1, 2))


def _refuse_without_maps(batch: Batch) -> None:
    if batch.labels is None:
        raise DataError(f"`{batch.ids[0]}` and the others have no maps of classes", "give a data set that has them")
