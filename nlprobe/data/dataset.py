"""What a data set of images is: samples with stable names."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from nlprobe.errors import DataError


class Sample(NamedTuple):
    """One image: its picture in RGB, or a video's handle; its label; its name within the data set.

    The label is the image's class, or what else a data set tells of it, such as a map with a class for each pixel; None
    where there is nothing.
    """

    image: Any
    label: Any
    id: str


class ImageDataset(ABC):
    """Images in a fixed order.

    Attributes:
        kind: What the data set is, in words: "ImageNet folders", "Fashion-MNIST", …
        root: The folder that was given.
        classes: Names of the classes in the order of the labels; None for photographs without labels.
        ids: Names of the images: paths relative to their split's folder, so that they stay the same on another machine.
        labels: Class of each image; None where images have none, or another kind of label.
        holds: What the images are: pictures, or videos.
        missing: Names of what the data set lists, but does not hold.
    """

    kind: str
    root: Path
    classes: list[str] | None
    ids: list[str]
    labels: list[int] | None
    holds: Literal["images", "videos"] = "images"
    missing: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Read one image and its label.

        Raises:
            UnreadableImageError: one of the two is missing or damaged.
        """
        picture = self.picture(index)
        return Sample(picture, self.label(index, picture), self.ids[index])

    def label(self, index: int, picture: Any) -> Any:
        """What the data set tells of an image whose picture was read; its class, or None."""
        return self.labels[index] if self.labels is not None else None

    @property
    def shapes(self) -> Int64[np.ndarray, "n 2"] | None:
        """Height and width of each picture where they are known without reading it."""
        return None

    def notes(self) -> list[str]:
        """What its files hold that is not used, or list and do not hold, in sentences."""
        return []

    @abstractmethod
    def picture(self, index: int) -> Any:
        """The picture in RGB, or the video's handle."""

    @abstractmethod
    def size(self, index: int) -> int:
        """A number that changes with the image's contents: the bytes of its file, or a checksum. -1 if it is gone."""


def refuse_other_kind(dataset: ImageDataset, holds: str, taker: str) -> None:
    """Make sure that a data set holds what `taker`, named in the message, takes: "images" or "videos".

    Raises:
        DataError: it holds the other.
    """
    if dataset.holds != holds:
        raise DataError(
            f"{taker} takes {holds}, and `{dataset.root}` holds {dataset.holds}",
            f"give data of {holds}, or another network",
        )


def data_fingerprint(dataset: ImageDataset) -> dict[str, Any]:
    """How many images there are, and a SHA-256 over names, sizes and labels; O(images) look-ups, no file is read."""
    digest = hashlib.sha256()
    for index, name in enumerate(dataset.ids):
        label = dataset.labels[index] if dataset.labels is not None else None
        digest.update(f"{name}\t{dataset.size(index)}\t{label}\n".encode())
    return {"images": len(dataset), "sha256": digest.hexdigest()}
