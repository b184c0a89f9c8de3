"""What a data set of images is: samples with stable names."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image


class Sample(NamedTuple):
    """One image: its picture in RGB, its label, its name within the data set.

    The label is the image's class, or what else a data set tells of it, such as a map with a class for each pixel; None
    where there is nothing.
    """

    image: Image.Image
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
    """

    kind: str
    root: Path
    classes: list[str] | None
    ids: list[str]
    labels: list[int] | None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Read one image and its label.

        Raises:
            UnreadableImageError: one of the two is missing or damaged.
        """
        picture = self.picture(index)
        return Sample(picture, self.label(index, picture), self.ids[index])

    def label(self, index: int, picture: Image.Image) -> Any:
        """What the data set tells of an image whose picture was read; its class, or None."""
        return self.labels[index] if self.labels is not None else None

    @property
    def shapes(self) -> Int64[np.ndarray, "n 2"] | None:
        """Height and width of each picture where they are known without reading it."""
        return None

    def notes(self) -> list[str]:
        """What its files hold that is not used, in sentences."""
        return []

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """The picture in RGB."""

    @abstractmethod
    def size(self, index: int) -> int:
        """A number that changes with the image's contents: the bytes of its file, or a checksum. -1 if it is gone."""


def data_fingerprint(dataset: ImageDataset) -> dict[str, Any]:
    """How many images there are, and a SHA-256 over names, sizes and labels; O(images) look-ups, no file is read."""
    digest = hashlib.sha256()
    for index, name in enumerate(dataset.ids):
        label = dataset.labels[index] if dataset.labels is not None else None
        digest.update(f"{name}\t{dataset.size(index)}\t{label}\n".encode())
    return {"images": len(dataset), "sha256": digest.hexdigest()}
