"""COCO's folders, written by hand: a picture for each entry, and an instances JSON that may hold anything."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
SQUARE = [[2, 1, 8, 1, 8, 6, 2, 6]]


def picture(number: int, width: int = 20, height: int = 12, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height, **changes}


def annotation(number: int, image: int = 1, box: Any = (2, 1, 6, 5), **changes: Any) -> dict[str, Any]:
    one = {"id": number, "image_id": image, "category_id": 18, "bbox": list(box), "iscrowd": 0, "area": 30.0}
    return {**one, "segmentation": SQUARE, **changes}


def write_coco(
    root: Path,
    annotations: list[Any],
    pictures: list[Any] | None = None,
    categories: list[Any] | None = None,
    split: str = "val2017",
) -> Path:
    """Write pictures of noise and their JSON; the JSON's path."""
    pictures = [picture(1), picture(2)] if pictures is None else pictures
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    for each in pictures:
        noise = np.random.default_rng(each["id"]).integers(0, 256, (each["height"], each["width"], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / each["file_name"])
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    categories = CATEGORIES if categories is None else categories
    path.write_text(json.dumps({"images": pictures, "annotations": annotations, "categories": categories}))
    return path
