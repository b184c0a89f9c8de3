"""What a data set of images is: samples with stable names."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image


class Sample(NamedTuple):
    """One image: its picture in RGB, its class (None where there are no labels), its name within the data set."""

    image: Image.Image
    label: int | None
    id: str


class ImageDataset(ABC):
    """Images in a fixed order.

    Attributes:
        kind: What the data set is, in words: "ImageNet folders", "Fashion-MNIST", …
        root: The folder that was given.
        classes: Names of the classes in the order of the labels; None for photographs without labels.
        ids: Names of the images: paths relative to their split's folder, so that they stay the same on another machine.
        labels: Class of each image, or None.
    """

    kind: str
    root: Path
    classes: list[str] | None
    ids: list[str]
    labels: list[int] | None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Read one image.

        Raises:
            UnreadableImageError: it is missing or damaged.
        """
        return Sample(self.picture(index), self.labels[index] if self.labels is not None else None, self.ids[index])

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
