"""Batches from data sets: the same whatever the number of processes, from any point of any epoch on.

What a sample looks like is a function of (seed, epoch, index), the order of an epoch one of (seed, epoch). So nothing a
worker holds has to be saved to go on later, samples that were consumed already are not even read, and processes that
train together need not talk about who takes which sample.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, default_collate

from nlprobe.data.dataset import ImageDataset
from nlprobe.data.images import UnreadableImageError
from nlprobe.data.order import ALL, BatchOrder, Share, derived_seed
from nlprobe.data.preprocessing import Joint, Transform
from nlprobe.errors import ConfigError, DataError

Report = Callable[[UnreadableImageError], object]

_SECONDS_AFTER_SIGTERM = 10


class Batch(NamedTuple):
    """Some images: (B, 3, H, W), their labels, their names, and those that could not be read.

    Clips of videos are (B, 3, T, H, W), or (B, views, 3, T, H, W) where all views of each come together.

    Labels are one tensor, (B,) for classes, (B, H, W) for maps of classes, or a list where they are no tensors; None
    where there are none. `sizes` is height and width of each picture within its image where images were padded at the
    right and lower edges, and None where they never are.
    """

    images: Tensor
    labels: Any
    ids: list[str]
    unreadable: list[tuple[str, str]]
    sizes: list[tuple[int, int]] | None = None


class Batches:
    """Loads batches of a data set; with a seed in random order and with random transforms.

    Args:
        dataset: Where samples come from.
        transform: From a picture to a tensor, or from a picture and its label to both; may draw random numbers from
            torch's generator.
        batch_size: Samples in a batch, over all processes.
        workers: Processes that read ahead; with 0 this one reads.
        seed: Seed of order and samples; None reads the data set in its own order.
        report: Called in this process for each image that cannot be read. Such an image is left out of its batch.
        pin_memory: Hand out batches in pinned memory, from which a GPU copies without waiting.
        share: What this process takes of the batches; see `BatchOrder`.
        parts: With a seed, into how many batches this process cuts what it takes of one.
        keep_empty: Without a seed, hand out batches too of which no image can be read, so that all are counted.
        pad: Pad the images of a batch at the right and lower edges to one size, a multiple of this; with 0 they are not
            padded, and have to be of one size.
        by_aspect: With a seed, pictures that are wider than high come together, and the others; see `BatchOrder`.

    Raises:
        ConfigError: a batch cannot be cut into equal parts, or nobody knows which pictures are wide.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Transform | Joint,
        batch_size: int,
        *,
        workers: int = 0,
        seed: int | None = None,
        report: Report = lambda error: None,
        pin_memory: bool = False,
        share: Share = ALL,
        parts: int = 1,
        keep_empty: bool = False,
        pad: int = 0,
        by_aspect: bool = False,
    ) -> None:
        self._keep_empty = keep_empty
        groups = _aspects(dataset) if by_aspect else None
        self.order = BatchOrder(len(dataset), batch_size, seed, share=share, parts=parts, groups=groups)
        self.dataset, self.ids = dataset, dataset.ids
        self._report = report
        self._loader: DataLoader[Any] = DataLoader(
            _SeededSamples(dataset, transform, seed or 0),
            batch_sampler=self.order,
            num_workers=workers,
            collate_fn=partial(_collate, pad),
            pin_memory=pin_memory,
            worker_init_fn=_outlive_signals,
            persistent_workers=workers > 0,
            # It would otherwise draw its workers' seed from the global generator.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's batches of an epoch from number `start` on.

        Raises:
            DataError: no image of a batch can be read (in random order; else such a batch is passed over).
        """
        self.order.epoch, self.order.start = epoch, start
        for batch in self._loader:
            for name, reason in batch.unreadable:
                self._report(UnreadableImageError(name, reason))
            if batch.ids or (self._keep_empty and self.order.seed is None):
                yield batch
            elif self.order.seed is not None:
                name, reason = batch.unreadable[0]
                raise DataError(
                    f"none of the {len(batch.unreadable)} images of a batch can be read; `{name}`: {reason}",
                    "check that the data set's folder is still there and whole: `nlprobe data check` reads every image",
                )


class _SeededSamples(Dataset[Any]):
    """Transformed samples by (epoch, index); an unreadable one comes as its reason, which passes between processes."""

    def __init__(self, dataset: ImageDataset, transform: Transform | Joint, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | None, Any, str, str]:
        epoch, index = key
        try:
            sample = self.dataset[index]
            with _seeded(derived_seed(self.seed, epoch, index)):
                if isinstance(self.transform, Joint):
                    return *self.transform.transform(sample.image, sample.label), sample.id, ""
                return self.transform(sample.image), sample.label, sample.id, ""
        except UnreadableImageError as error:  # a video is read by its transform
            return None, None, self.dataset.ids[index], error.reason


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside, and put its state back after."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _aspects(dataset: ImageDataset) -> list[int]:
    """0 for each picture that is wider than high, 1 for the others."""
    if dataset.shapes is None:
        raise ConfigError(
            f"pictures of `{dataset.root}` ({dataset.kind}) cannot be grouped by their shape before they are read",
            "leave the grouping out, or give a data set that lists their sizes, such as COCO",
        )
    heights, widths = dataset.shapes.T
    return [int(group) for group in heights >= widths]


def _collate(pad: int, samples: Sequence[tuple[Tensor | None, Any, str, str]]) -> Batch:
    good = [(image, label, name) for image, label, name, _ in samples if image is not None]
    unreadable = [(name, reason) for image, _, name, reason in samples if image is None]
    names = [name for *_, name in good]
    images = [image for image, _, _ in good]
    sizes = [(image.shape[-2], image.shape[-1]) for image in images] if pad else None
    stacked = _stacked(padded(images, pad), names) if good else torch.empty(0)
    return Batch(stacked, _labels([label for _, label, _ in good], names), names, unreadable, sizes)


def padded(images: list[Tensor], multiple: int) -> list[Tensor]:
    """Images (3, h, w) with zeros at their right and lower edges, all of one size, a multiple of `multiple`.

    With a multiple of 0 they stay as they are.
    """
    if not multiple or not images:
        return images
    height, width = (-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (-2, -1))
    return [functional.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images]


def _labels(labels: list[Any], names: list[str]) -> Any:
    if not labels or any(label is None for label in labels):
        return None
    if all(isinstance(label, Tensor) for label in labels):
        return _stacked(labels, names)
    return torch.tensor(labels) if all(isinstance(label, int) for label in labels) else labels


def _stacked(tensors: list[Tensor], names: list[str]) -> Tensor:
    for tensor, name in zip(tensors, names, strict=True):
        if tensor.shape != tensors[0].shape:
            raise DataError(
                f"`{names[0]}` and `{name}` are of different sizes, {_size(tensors[0])} and {_size(tensor)}, and come "
                "in one batch",
                "use `--batch-size 1`, or bring the images to one size",
            )
    # In a worker it stacks straight into the memory that the main process reads, where torch.stack would copy twice.
    stacked: Tensor = default_collate(tensors)
    return stacked


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[-2:]))


def _outlive_signals(_worker: int) -> None:
    # Ctrl-C, and the SIGTERM of torchrun and of batch systems, reach the whole process group. The main process ends its
    # step first and needs its workers for that; but a worker that it has to terminate must not live on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda _signal, _frame: signal.alarm(_SECONDS_AFTER_SIGTERM))
