"""What tasks whose batches are images with labels have in common."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nlprobe.data import Batch, Batches
from nlprobe.processes import ALONE, Processes
from nlprobe.training.recipes import Recipe


class ImageTask:
    """Batches of images, by name and on the device; the parts of `training.task.Task` that do not hang on the loss.

    Args:
        training: Training batches.
        validation: Validation batches, whole ones dealt to the processes.
        recipe: Says in which memory order images are.
        device: Where to compute.
        processes: This process among those that train together.
    """

    def __init__(
        self,
        training: Batches,
        validation: Batches,
        recipe: Recipe,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self._training, self._validation, self._device, self._processes = training, validation, device, processes
        self._memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format

    def steps_per_epoch(self) -> int:
        """Number of training batches in an epoch, over all processes."""
        return len(self._training)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """This process's training batches of an epoch from step `start` on."""
        return self._training.epoch(epoch, start)

    def names(self, batch: Batch) -> list[str]:
        """Names of the batch's images."""
        return batch.ids


def onto(batch: Batch, device: torch.device, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Images and labels on a device; copies from pinned memory do not wait."""
    images = batch.images.to(device, non_blocking=True).contiguous(memory_format=memory_format)
    return images, batch.labels.to(device, non_blocking=True)
