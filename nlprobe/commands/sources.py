"""What the measuring commands take in: checkpoints with their labels, and images preprocessed as a checkpoint asks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nlprobe.checkpoints import Checkpoint, read_checkpoint
from nlprobe.commands.report import progress, say
from nlprobe.data import Batches, ImageDataset, Preprocessing, UnreadableImageError
from nlprobe.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Labelled:
    """A checkpoint and the name that it has in tables."""

    label: str
    checkpoint: Checkpoint

    @property
    def preprocessing(self) -> Preprocessing:
        """What was done to the images that the network was trained for.

        Raises:
            CheckpointError: the file does not say.
        """
        settings = self.checkpoint.metadata.get("preprocessing")
        if not settings:
            raise CheckpointError(
                f"`{self.checkpoint.path}` does not say how its images are preprocessed",
                "write it again with `preprocessing` in its metadata",
            )
        return Preprocessing.from_dict(settings)


def read_checkpoints(paths: Sequence[Path], labels: Sequence[str]) -> list[Labelled]:
    """Read checkpoints; each is called by its label, else by its zoo name, else by its path where two share one.

    Raises:
        ConfigError: as many labels as checkpoints, or none; no label twice.
    """
    if labels and len(labels) != len(paths):
        raise ConfigError(
            f"{len(paths)} checkpoints and {len(labels)} labels", "give one --label for each --ckpt, in the same order"
        )
    if len(set(labels)) != len(labels):
        raise ConfigError("two checkpoints have the same label", "give each a --label of its own")
    checkpoints = [read_checkpoint(path) for path in paths]
    names = list(labels) or [str(one.metadata.get("model") or one.path.stem) for one in checkpoints]
    if len(set(names)) != len(names):
        names = [str(path) for path in paths]
    if len(set(names)) != len(names):
        raise ConfigError("the same checkpoint is given twice", "give it once, or give each a --label of its own")
    return [Labelled(name, checkpoint) for name, checkpoint in zip(names, checkpoints, strict=True)]


@dataclass
class Images:
    """The images of a data set as one network takes them; each pass shows its progress on stderr.

    Attributes:
        dataset: Where they come from.
        preprocessing: What is done to them.
        batch_size: Images in a batch.
        workers: Processes that read.
        label: What the progress line says.
        unreadable: Names of the images that could not be read, once a pass has met them.
    """

    dataset: ImageDataset
    preprocessing: Preprocessing
    batch_size: int
    workers: int = 0
    label: str = "images"
    unreadable: list[str] = field(default_factory=list)

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, list[str]]]:
        """One pass from batch number `start` on: preprocessed images with their names."""
        loaded = Batches(
            self.dataset,
            self.preprocessing.transform(),
            self.batch_size,
            workers=self.workers,
            report=self._report,
            pin_memory=torch.cuda.is_available(),
        )
        left = max(0, len(self.dataset) - start * self.batch_size)
        if start:
            say(f"{self.label}: going on after {len(self.dataset) - left} images")
        passed = loaded.epoch(0, start)
        for batch in progress(passed, self.label, total=left, count=lambda batch: len(batch.ids)):
            yield batch.images, batch.ids

    def _report(self, error: UnreadableImageError) -> None:
        if error.image not in self.unreadable:
            self.unreadable.append(error.image)
            say(f"left out: {error.cause}")
