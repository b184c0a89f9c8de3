"""Data sets that tell the class of every pixel, and their maps of classes."""

import struct
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from nlprobe.data.dataset import ImageDataset
from nlprobe.data.images import UnreadableImageError, reason_of

IGNORED = 255
"""Stands in a map of classes where a pixel has none: it is neither learnt from nor scored."""


class LabelMapDataset(ImageDataset):
    """Images whose label is a picture of the same size with the number of a class in every pixel, or `IGNORED`.

    Attributes:
        palette: The colour of each class, for pictures of predictions.
        has_maps: Whether the maps are there; without them the pictures alone can be measured.
    """

    labels = None
    palette: tuple[tuple[int, int, int], ...]
    has_maps: bool

    @abstractmethod
    def label(self, index: int, picture: Image.Image) -> Image.Image:
        """The map of classes of an image whose picture was read, as grey values of 8 bits.

        Raises:
            UnreadableImageError: it is missing, damaged, of another size than the picture, or holds unknown ids.
        """


def read_label_map(path: Path, name: str, size: tuple[int, int], classes: Mapping[int, int]) -> Image.Image:
    """Read a picture of ids and turn them into classes.

    Pictures of 8 and 16 bits and of a palette (whose indices are the ids) are taken.

    Args:
        path: The file.
        name: What its image is called in an error.
        size: Width and height of the image.
        classes: Class, or `IGNORED`, by id.

    Raises:
        UnreadableImageError: it is missing or damaged, of another size, in colour, or holds an id that has no class.
    """
    try:
        with Image.open(path) as file:
            file.load()
            ids = np.asarray(file)
    except MemoryError:
        raise
    # Pillow's decoders raise nearly anything on damaged files.
    except (Exception, struct.error) as error:
        raise UnreadableImageError(name, f"its label map `{path.name}`: {reason_of(error)}") from error
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        kind = "in colour" if ids.ndim == 3 else f"of {ids.dtype} pixels"
        raise UnreadableImageError(name, f"its label map `{path.name}` is {kind}, not one of ids")
    height, width = ids.shape
    if (width, height) != size:
        raise UnreadableImageError(
            name, f"its label map is {width}x{height} pixels, the picture {size[0]}x{size[1]}: they are no pair"
        )
    return Image.fromarray(_classes_of(ids, classes, path.name, name))


def map_tensor(label: Image.Image) -> Int64[Tensor, "h w"]:
    """A map of classes as the loss takes it."""
    return torch.from_numpy(np.array(label, dtype=np.int64))


def coloured(
    classes: UInt8[np.ndarray, "h w"] | Int64[np.ndarray, "h w"], palette: tuple[tuple[int, int, int], ...]
) -> Image.Image:
    """A picture of a map of classes, each in its colour; what has none is black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return Image.fromarray(table[classes.astype(np.uint8)])


def _classes_of(ids: np.ndarray, classes: Mapping[int, int], file: str, name: str) -> UInt8[np.ndarray, "h w"]:
    found = np.unique(ids)
    unknown = [int(each) for each in found if int(each) not in classes]
    if unknown:
        some = ", ".join(map(str, unknown[:5])) + (", …" if len(unknown) > 5 else "")
        hint = " (an instance map?)" if min(unknown) >= 1000 else ""
        raise UnreadableImageError(
            name, f"its label map `{file}` holds ids that the data set does not have: {some}{hint}"
        )
    table = np.array([classes[int(each)] for each in found], dtype=np.uint8)
    return table[np.searchsorted(found, ids)]
