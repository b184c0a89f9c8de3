"""One pass of a network over labelled images: what each channel of chosen modules gave, summed up by class.

Activations are reduced inside the forward pass to one number for each image and channel, the mean over positions, and
these to sums for each class and channel. Beside the sums the numbers of each image are kept in float32 where they are
few enough, for the sake of intervals; without them every number is the same, but has no interval.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from nlprobe.activations.readings import Reading
from nlprobe.errors import CaptureError, ConfigError, DataError
from nlprobe.measuring import Inputs, Shown, forward
from nlprobe.stats.class_sums import ClassSums, channel_means

KEPT_BYTES = 2 << 30
"""How much memory the numbers of single images may take: 50 000 images have 2 GiB for some 10 000 channels."""


@dataclass(frozen=True)
class Activations:
    """What one module gave.

    Attributes:
        name: Of the reading.
        what: What is read there.
        sums: By class and channel.
        values: The mean over positions of each image and channel, in the order of the images; None where they were too
            many to keep.
    """

    name: str
    what: str
    sums: ClassSums
    values: Float32[np.ndarray, "n c"] | None


@dataclass(frozen=True)
class Collected:
    """What one pass gave.

    Attributes:
        ids: The images in the order in which they came.
        labels: Class of each.
        readings: What each module gave.
    """

    ids: tuple[str, ...]
    labels: Int64[np.ndarray, " n"]
    readings: tuple[Activations, ...]


@torch.no_grad()
def collect(
    model: nn.Module,
    readings: Sequence[Reading],
    batches: Iterable[Shown | tuple[Inputs, Sequence[str]]],
    labels: Mapping[str, int],
    classes: int,
    *,
    device: torch.device | str = "cpu",
    channels_last: bool | None = None,
    kept_bytes: int = KEPT_BYTES,
) -> Collected:
    """Run a network over labelled images and sum up what chosen modules give.

    Args:
        model: The network; it is moved to the device and put into evaluation mode.
        readings: What to read.
        batches: Inputs of a forward call with the names of its images.
        labels: Class of each image by its name; those that do not come are left out.
        classes: How many classes there are.
        device: Where to compute.
        channels_last: Whether channels are the last axis; by default they are for (B, N, C), as transformers have it,
            and are the second axis of everything else.
        kept_bytes: How much memory the numbers of single images may take.

    Raises:
        CaptureError: a module did not run, ran several times in one forward call, or gives no tensor with a row for
            each image.
        ConfigError: two modules of one name.
        DataError: no image came, an image without label, or one that is padded.
        NlprobeError: an activation that is not finite.
    """
    names = [reading.name for reading in readings]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"`{twice[0]}` is to be read twice", "choose each module once")
    model.to(device).eval()
    call: dict[str, Tensor] = {}
    store = _Store(names, classes, len(labels), kept_bytes)
    handles = [reading.module.register_forward_hook(_reader(reading, call, channels_last)) for reading in readings]
    try:
        for shown in (Shown(*item) for item in batches):
            if ids := shown.ids:
                _refuse_padding(shown)
                call.clear()
                forward(model, shown.inputs, device)
                store.add(call, ids, _labels_of(ids, labels))
    finally:
        for handle in handles:
            handle.remove()
    if not store.ids:
        raise DataError("the data hold nothing that can be read", "check them: `nlprobe data check` reads every image")
    return store.collected(readings)


def _reader(reading: Reading, call: dict[str, Tensor], channels_last: bool | None) -> Callable[..., None]:
    """A forward hook that puts the channels' means into `call`."""

    def read(_module: nn.Module, _args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise CaptureError(
                f"`{reading.name}` gives a {type(output).__name__} and no tensor",
                "choose a module inside of it by --at",
            )
        if reading.name in call:
            raise CaptureError(
                f"`{reading.name}` ran twice in one forward call: it serves several places",
                "choose the module around one of them, such as the whole residual block",
            )
        value = reading.read(output)
        last = value.ndim == 3 if channels_last is None else channels_last
        call[reading.name] = channel_means(value, last)

    return read


def _refuse_padding(shown: Shown) -> None:
    if shown.sizes is not None and isinstance(shown.inputs, Tensor):
        for name, size in zip(shown.ids, shown.sizes, strict=True):
            if size != tuple(shown.inputs.shape[-2:]):
                raise DataError(
                    f"`{name}` is padded, and what is read would be averaged over the padding too",
                    "take a network whose images all come in one size, such as a classifier",
                )


def _labels_of(ids: Sequence[str], labels: Mapping[str, int]) -> np.ndarray:
    for name in ids:
        if name not in labels:
            raise DataError(f"the image `{name}` has no label", "give data with a class for each image")
    return np.array([labels[name] for name in ids], dtype=np.int64)


class _Store:
    """What has come so far."""

    def __init__(self, names: Sequence[str], classes: int, images: int, kept_bytes: int) -> None:
        self.ids: list[str] = []
        self._labels: list[np.ndarray] = []
        self._sums = {name: ClassSums(classes) for name in names}
        self._images, self._kept_bytes = images, kept_bytes
        self._values: dict[str, np.ndarray] | None = None

    def add(self, call: Mapping[str, Tensor], ids: Sequence[str], labels: np.ndarray) -> None:
        """Take in what one forward call gave."""
        if len(self.ids) + len(ids) > self._images:
            raise DataError(
                f"more than the {self._images} labelled images came", "show every image once, under a name of its own"
            )
        for name in self._sums:
            if name not in call:
                raise CaptureError(f"`{name}` did not run", "choose modules that run in every forward call")
            if len(call[name]) != len(ids):
                raise CaptureError(
                    f"`{name}` gives {len(call[name])} rows for {len(ids)} images",
                    "choose a module that keeps them apart",
                )
        if not self.ids:
            needed = 4 * self._images * sum(value.shape[1] for value in call.values())
            if needed <= self._kept_bytes:
                self._values = {
                    name: np.empty((self._images, value.shape[1]), np.float32) for name, value in call.items()
                }
        for name, value in call.items():
            self._sums[name].add(value, torch.from_numpy(labels))
            if self._values is not None:
                self._values[name][len(self.ids) : len(self.ids) + len(ids)] = value.cpu().numpy()
        self.ids += ids
        self._labels.append(labels)

    def collected(self, readings: Sequence[Reading]) -> Collected:
        """All of it."""
        values = self._values or {}
        return Collected(
            tuple(self.ids),
            np.concatenate(self._labels),
            tuple(
                Activations(
                    reading.name,
                    reading.what,
                    self._sums[reading.name],
                    values[reading.name][: len(self.ids)] if reading.name in values else None,
                )
                for reading in readings
            ),
        )
