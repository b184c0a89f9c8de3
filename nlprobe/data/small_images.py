"""MNIST, Fashion-MNIST and CIFAR, through torchvision's own classes, from a local folder."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torchvision import datasets

from nlprobe.data.dataset import ImageDataset
from nlprobe.errors import DataError

Split = Literal["train", "val"]


@dataclass(frozen=True)
class _Set:
    kind: str
    folder: str
    loader: Any

    @property
    def own_folder(self) -> str:
        """The folder that holds this set and no other."""
        return self.folder.split("/")[0]


SETS = (
    _Set("MNIST", "MNIST/raw", datasets.MNIST),
    _Set("Fashion-MNIST", "FashionMNIST/raw", datasets.FashionMNIST),
    _Set("CIFAR-10", "cifar-10-batches-py", datasets.CIFAR10),
    _Set("CIFAR-100", "cifar-100-python", datasets.CIFAR100),
)


def find_small_images(root: Path) -> list[tuple[_Set, Path]]:
    """The sets that lie below `root`, each with the folder that torchvision calls its root.

    `root` may be that folder or the set's own (`MNIST`, `cifar-10-batches-py`), which tells apart sets that lie side by
    side.
    """
    found = []
    for candidate in SETS:
        base = root.parent if root.name == candidate.own_folder else root
        if (base / candidate.folder).is_dir():
            found.append((candidate, base))
    return found


class SmallImages(ImageDataset):
    """One of torchvision's in-memory sets; `val` is what it calls the test set. Images are named `test/00000`, ….

    Raises:
        DataError: files are missing or their checksums do not match.
    """

    def __init__(self, chosen: _Set, base: Path, root: Path, split: Split) -> None:
        self.kind, self.root = chosen.kind, root
        # torchvision checks the MD5 sums of CIFAR's pickles against its own table before it opens them.
        try:
            self._set = chosen.loader(base, train=split == "train", download=False)
        except (RuntimeError, OSError, ValueError, EOFError) as error:
            raise DataError(
                f"`{base / chosen.folder}` is not a whole {chosen.kind}: {str(error).splitlines()[0]}",
                "unpack the set's original archive there once more (`.gz` files have to be unpacked, too)",
            ) from error
        self.classes = list(self._set.classes)
        self.labels = [int(label) for label in self._set.targets]
        side = "train" if split == "train" else "test"
        self.ids = [f"{side}/{index:05d}" for index in range(len(self.labels))]

    def picture(self, index: int) -> Image.Image:
        """The picture in RGB; grey becomes three equal channels."""
        return Image.fromarray(np.asarray(self._set.data[index])).convert("RGB")

    def size(self, index: int) -> int:
        """Checksum of the pixels."""
        return zlib.crc32(np.ascontiguousarray(self._set.data[index]).tobytes())
