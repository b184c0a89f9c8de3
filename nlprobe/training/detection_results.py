"""What was found in each picture, in pixels of the original: masks pasted into it, and COCO's results JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from nlprobe.data.outlines import pycocotools_masks
from nlprobe.errors import DataError
from nlprobe.files import write_text
from nlprobe.models.detections import Detections

Kind = Literal["box", "mask"]
KINDS: tuple[Kind, ...] = ("box", "mask")

INSIDE = 0.5
"""The probability from which a pixel belongs to the object."""


@dataclass(frozen=True)
class ImageDetections:
    """What was found in one picture, in its own pixels.

    Attributes:
        image_id: The picture's number in COCO's JSON.
        boxes: Left, top, right and bottom edge.
        scores: Probability of the class.
        labels: Class, from 0, in the order of the sorted category ids.
        masks: Run lengths of each object, as pycocotools packs them into strings; None without masks.
    """

    image_id: int
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    masks: tuple[dict[str, Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


def in_original(found: Detections, image_id: int, size: tuple[int, int], original: tuple[int, int]) -> ImageDetections:
    """What a network found, brought back into the pixels of the picture before it was resized.

    Args:
        found: Boxes in pixels of the network's input, and masks within them.
        image_id: The picture's number in COCO's JSON.
        size: Height and width of the picture within the input.
        original: Height and width of the picture itself.

    Raises:
        MissingExtraError: there are masks, and pycocotools is not installed.
    """
    (height, width), (rows, columns) = original, size
    scale = torch.tensor([width / columns, height / rows] * 2, dtype=torch.float64)
    limits = torch.tensor([width, height] * 2, dtype=torch.float64)
    boxes = (found.boxes.detach().cpu().double() * scale).clamp(min=0).minimum(limits)
    masks = None
    if found.masks is not None:
        probabilities = found.masks.detach().cpu().float()
        masks = tuple(_packed(paste(one, box, original)) for one, box in zip(probabilities, boxes, strict=True))
    return ImageDetections(
        image_id,
        boxes.numpy(),
        found.scores.detach().cpu().double().numpy(),
        found.labels.detach().cpu().numpy(),
        masks,
    )


def paste(
    probabilities: Float[Tensor, "s s"], box: Float[Tensor, "4"], size: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """The pixels of a picture whose centres a mask within a box gives a probability of one half or more.

    The grid of probabilities is spread over the box, at sub-pixel precision, and interpolated bilinearly between the
    centres of its cells; beyond the outermost ones it falls to 0 within a cell. Cost: O(pixels of the box).
    """
    height, width = size
    drawn = np.zeros(size, dtype=bool)
    left, top, right, bottom = box.tolist()
    if right <= left or bottom <= top:
        return drawn
    cell_x, cell_y = ((end - start) / len(probabilities) for start, end in ((left, right), (top, bottom)))
    first_x, last_x = max(math.floor(left - cell_x), 0), min(math.ceil(right + cell_x), width)
    first_y, last_y = max(math.floor(top - cell_y), 0), min(math.ceil(bottom + cell_y), height)
    x = (torch.arange(first_x, last_x, dtype=torch.float64) + 0.5 - left) / (right - left) * 2 - 1
    y = (torch.arange(first_y, last_y, dtype=torch.float64) + 0.5 - top) / (bottom - top) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).float()
    values = functional.grid_sample(probabilities[None, None], grid[None], align_corners=False)[0, 0]
    drawn[first_y:last_y, first_x:last_x] = (values >= INSIDE).numpy()
    return drawn


def results(found: Sequence[ImageDetections], categories: Sequence[int], kind: Kind) -> list[dict[str, Any]]:
    """The lines of COCO's results JSON, for boxes or for masks.

    The two are apart because pycocotools takes an object's area from its box wherever there is one, and would sort
    masks by size wrongly.

    Args:
        found: What was found in each picture.
        categories: The JSON's number of each class.
        kind: `box` for `bbox` (left, top, width, height), `mask` for `segmentation`.

    Raises:
        DataError: masks are asked for, and there are none.
    """
    lines = []
    for each in found:
        if kind == "mask" and each.masks is None:
            raise DataError(f"no masks were found in picture {each.image_id}, only boxes", "score boxes only")
        shapes = each.masks if kind == "mask" and each.masks is not None else _corner_and_sides(each.boxes)
        for shape, label, score in zip(shapes, each.labels.tolist(), each.scores.tolist(), strict=True):
            line = {"image_id": each.image_id, "category_id": categories[label], "score": score}
            lines.append({**line, "segmentation" if kind == "mask" else "bbox": shape})
    return lines


def write_results(path: Path | str, found: Sequence[ImageDetections], categories: Sequence[int], kind: Kind) -> None:
    """Write COCO's results JSON, whole or not at all; pycocotools' `loadRes` and COCO's server take it.

    Raises:
        DataError: the folder cannot be written to.
    """
    lines = ",\n".join(json.dumps(line) for line in results(found, categories, kind))
    write_text(path, f"[\n{lines}\n]\n" if lines else "[]\n")


def _corner_and_sides(boxes: Float[np.ndarray, "n 4"]) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def _packed(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    runs = pycocotools_masks().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}
