"""COCO in its own layout: train2017/ and val2017/, and annotations/instances_<split>2017.json."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image

from nlprobe.data.coco_entries import Fault
from nlprobe.data.coco_index import CocoIndex, read_index
from nlprobe.data.dataset import ImageDataset
from nlprobe.data.images import UnreadableImageError, is_image, read_image
from nlprobe.data.instances import Instances
from nlprobe.data.outlines import filled, packed, pycocotools_masks
from nlprobe.errors import DataError

YEARS = ("2017", "2014")
ANNOTATIONS = "annotations"


class Coco(ImageDataset):
    """Photographs with a box, a class and an outline for each object.

    Opening reads the JSON once, and checks every annotation in it; what cannot be used is named in `faults`. Pictures
    and outlines are read when they are asked for. Without the JSON the pictures alone can be measured. The orientation
    in a picture's EXIF data is not heeded, as its annotations would not follow.

    Args:
        root: The folder that holds `train2017`, `val2017` and `annotations`.
        split: `train` or `val`.
        year: Which of COCO's editions, in the names of folders and files.

    Attributes:
        categories: The JSON's number of each class, in the order of the labels.
        faults: What cannot be used of the JSON.
        has_instances: Whether the JSON is there.
        has_masks: Whether its objects have outlines.

    Raises:
        DataError: the folder of pictures is missing or holds none of them, or the JSON is not understood.
    """

    labels = None

    def __init__(self, root: Path, split: str, year: str = YEARS[0]) -> None:
        self.root, self.kind = root, f"COCO {year}"
        name = f"{split}{year}"
        self._folder = next((folder for folder in _folders(root, name) if folder.is_dir()), root / name)
        path = root / ANNOTATIONS / f"instances_{name}.json"
        if not self._folder.is_dir():
            raise DataError(f"`{root}` has no folder `{name}`", f"unpack COCO's `{name}` archive there")
        self._index = read_index(path) if path.is_file() else None
        self.has_instances = self._index is not None
        if self._index is None:
            self.faults: tuple[Fault, ...] = ()
            self.classes, self.categories, self.has_masks = None, [], False
            self.ids = sorted(path.name for path in self._folder.iterdir() if is_image(path))
        else:
            self.faults = self._index.faults
            self.classes, self.categories = self._index.classes, self._index.category_ids
            self.has_masks = bool(self._index.outlined.any())
            self.ids = self._index.names
        if not any((self._folder / name).is_file() for name in self.ids):
            raise DataError(
                f"`{self._folder}` holds none of the {len(self.ids)} pictures of `{path.name}`, such as `{self.ids[0]}`"
                if self.ids
                else f"`{self._folder}` holds no picture",
                f"unpack COCO's `{name}` archive there",
            )

    @property
    def index(self) -> CocoIndex:
        """What the JSON holds.

        Raises:
            DataError: it is not there.
        """
        if self._index is None:
            raise DataError(
                f"`{self.root}` ({self.kind}) has no annotations",
                f"put COCO's instances JSON into `{self.root / ANNOTATIONS}`",
            )
        return self._index

    @property
    def shapes(self) -> Int64[np.ndarray, "n 2"] | None:
        """Height and width of each picture, as the JSON has them."""
        return None if self._index is None else self._index.shapes

    def occupied(self) -> list[int]:
        """Numbers of the pictures that show an object from which a network can learn."""
        index = self.index
        chosen = np.concatenate([[0], np.cumsum(index.learnt & ~index.crowd)])[index.first]
        return [int(number) for number in np.flatnonzero(np.diff(chosen))]

    def picture(self, index: int) -> Image.Image:
        """The picture in RGB."""
        return read_image(self._folder / self.ids[index], self.ids[index], upright=False)

    def label(self, index: int, picture: Image.Image) -> Instances | None:
        """The objects of an image whose picture was read; None without the JSON.

        Crowds are among them; what has no area within the picture, or no outline where others have one, is not.

        Raises:
            UnreadableImageError: the picture has another size than the JSON says.
        """
        if self._index is None:
            return None
        height, width = self._index.shapes[index].tolist()
        if picture.size != (width, height):
            raise UnreadableImageError(
                self.ids[index],
                f"it is {picture.width}x{picture.height} pixels, and its annotations are for {width}x{height}",
            )
        return self.instances(index)

    def instances(self, index: int) -> Instances:
        """The same without the picture.

        Raises:
            DataError: there is no JSON.
            MissingExtraError: pycocotools is not installed, and there are outlines.
        """
        found = self.index
        chosen = np.flatnonzero(found.learnt[found.of(index)]) + found.first[index]
        height, width = found.shapes[index].tolist()
        masks = None
        if self.has_masks:
            outlines = (one["segmentation"] for one in found.read(chosen.tolist()))
            drawn = [filled(outline, (height, width)) for outline in outlines]
            masks = torch.from_numpy(np.stack(drawn) if drawn else np.zeros((0, height, width), dtype=np.bool_))
        return Instances(
            boxes=torch.from_numpy(_corners(found.boxes[chosen], height, width)),
            labels=torch.from_numpy(found.labels[chosen]),
            masks=masks,
            crowd=torch.from_numpy(found.crowd[chosen]),
            image_id=int(found.image_ids[index]),
            size=(height, width),
        )

    def size(self, index: int) -> int:
        """Bytes of the picture, plus a checksum of its annotations; -1 if the picture is gone."""
        try:
            length = (self._folder / self.ids[index]).stat().st_size
        except OSError:
            return -1
        return length if self._index is None else length + int(self._index.checksums[index])

    def truth(self, index: int) -> list[dict[str, Any]]:
        """The annotations of a picture as COCO's metric takes them: also those that nothing can be learnt from.

        Each has `category_id`, `bbox`, `area`, `iscrowd` and, if it has an outline, `segmentation`, packed. What the
        file does not say of the area is counted.

        Raises:
            DataError: there is no JSON.
            MissingExtraError: pycocotools is not installed, and there are outlines.
        """
        found = self.index
        height, width = found.shapes[index].tolist()
        own = range(*found.of(index).indices(len(found.labels)))
        lines = []
        for number, one in zip(own, found.read(own), strict=True):
            line = {
                "category_id": self.categories[found.labels[number]],
                "bbox": found.boxes[number].tolist(),
                "iscrowd": int(found.crowd[number]),
            }
            area = float(found.boxes[number, 2:].prod())
            if found.outlined[number]:
                line["segmentation"] = packed(one["segmentation"], (height, width))
                area = float(pycocotools_masks().area(line["segmentation"]))
            lines.append({**line, "area": one.get("area", area)})
        return lines

    def notes(self) -> list[str]:
        """How many entries of the JSON are left out, by what is wrong with them."""
        lost = Counter(fault.reason for fault in self.faults if not fault.kept)
        if not lost:
            return []
        reasons = ", ".join(f"{reason} ({count})" for reason, count in lost.most_common())
        return [
            f"{lost.total()} {'entry' if lost.total() == 1 else 'entries'} of `{self.index.path.name}` left out: "
            f"{reasons}; `nlprobe data check {self.root}` names each"
        ]


def coco_year(root: Path) -> str | None:
    """The edition of COCO that lies below `root`, the later one of two; None if none does."""
    for year in YEARS:
        names = [f"{split}{year}" for split in ("train", "val")]
        if any(folder.is_dir() for name in names for folder in _folders(root, name)):
            return year
        if any((root / ANNOTATIONS / f"instances_{name}.json").is_file() for name in names):
            return year
    return None


def holds_pictures(root: Path, split: str, year: str) -> bool:
    """Whether the pictures of that part of COCO lie below `root`."""
    return any(folder.is_dir() for folder in _folders(root, f"{split}{year}"))


def _folders(root: Path, name: str) -> Sequence[Path]:
    """Where the pictures of a part may lie."""
    return root / name, root / "images" / name


def _corners(boxes: Float[np.ndarray, "n 4"], height: int, width: int) -> Float[np.ndarray, "n 4"]:
    """Left, top, right and bottom within the picture, from left, top, width and height."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return corners.clip(0, np.array([width, height, width, height])).astype(np.float32)
