"""A miniature COCO: pictures of different sizes and their JSON, in which an object alone may not tell its class."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from nlprobe.data.miniature.playgrounds import KINDS, Playground, PlaygroundSettings, compose_playground, outlines
from nlprobe.data.miniature.scenes import material
from nlprobe.errors import ConfigError
from nlprobe.files import new_folder

SETTINGS = PlaygroundSettings()

CATEGORY_IDS = {
    "person": 1,
    "car": 3,
    "bus": 6,
    "train": 7,
    "stop sign": 13,
    "sports ball": 37,
    "kite": 38,
    "bowl": 51,
    "clock": 85,
}
"""The classes with the numbers that COCO gives them."""

_STEP = 7  # from one picture's number to the next; COCO's have gaps, too


def write_miniature_coco(
    out: Path | str,
    seed: int = 0,
    train: int = 1000,
    val: int = 200,
    *,
    force: bool = False,
    settings: PlaygroundSettings = SETTINGS,
    progress: Callable[[Iterable[int], str], Iterable[int]] = lambda pictures, label: pictures,
) -> Path:
    """Write `out`/coco/{train2017,val2017}/*.jpg and `out`/coco/annotations/instances_{train,val}2017.json.

    Nine classes, of which two look alike: a plate with a seven is a sports ball by day and a clock in the evening, and
    whoever sees the object's own pixels only is right about half of these (see `nlprobe.data.miniature.playgrounds`).
    Masks are polygons along the pixels' edges; some scenes have a crowd, in run lengths, and some nothing at all.
    Beyond what COCO has, a picture tells its `light`, and an annotation its `digit`.

    The files are a function of `seed` and the picture's number: byte for byte the same each time, and the same whether
    more or fewer of them are asked for.

    Args:
        out: Folder in which `coco` is made.
        seed: Seed of everything random.
        train: Number of training pictures.
        val: Number of validation pictures.
        force: Replace a `coco` that is there.
        settings: What the scenes look like.
        progress: Passes the pictures' numbers on and shows how far they are, under a label.

    Returns:
        The folder `out`/coco.

    Raises:
        ConfigError: the folder is there already, or there would be no picture.
        MissingExtraError: scikit-learn is not installed.
        DataError: the folder cannot be written.
    """
    if min(train, val) < 1:
        raise ConfigError(f"{train} training and {val} validation pictures", "ask for at least 1 of each")
    root = Path(out) / "coco"
    with new_folder(root, force=force) as partial_root:
        (partial_root / "annotations").mkdir(parents=True)
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            folder = partial_root / f"{split}2017"
            folder.mkdir()
            pictures: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for index in progress(range(count), f"{split} pictures"):
                rng = np.random.default_rng([seed, 2, number, index])
                scene = compose_playground(material(split), rng, settings)
                pictures.append(_picture(scene, (2 * index + number + 1) * _STEP))
                annotations += _annotations(scene, pictures[-1]["id"], len(annotations) + 1)
                scene.image().save(folder / pictures[-1]["file_name"], quality=92, subsampling=0)
            path = partial_root / "annotations" / f"instances_{split}2017.json"
            path.write_text(_json(pictures, annotations), encoding="utf-8")
    return root


def _picture(scene: Playground, number: int) -> dict[str, Any]:
    height, width = scene.owner.shape
    return {"file_name": f"{number:012d}.jpg", "height": height, "width": width, "id": number, "light": scene.light}


def _annotations(scene: Playground, picture: int, first: int) -> list[dict[str, Any]]:
    """A line for each object of which something is seen."""
    lines = []
    for number, plate in enumerate(scene.plates):
        mask = scene.mask(number)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        lines.append(
            {
                "segmentation": _runs(mask) if plate.crowd else outlines(mask),
                "area": int(mask.sum()),
                "iscrowd": int(plate.crowd),
                "image_id": picture,
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "category_id": CATEGORY_IDS[plate.name],
                "id": first + number,
                "digit": plate.digit,
            }
        )
    return lines


def _runs(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Lengths of the runs of 0, 1, 0, … down the columns."""
    flat = np.concatenate([[False], mask.T.ravel(), [mask[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()}


def _json(pictures: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> str:
    """COCO's JSON, with an entry a line."""
    lists = {
        "images": pictures,
        "annotations": annotations,
        "categories": [
            {"supercategory": "playground", "id": number, "name": name} for name, number in CATEGORY_IDS.items()
        ],
    }
    assert {name for kind in KINDS.values() for name in kind.names} == set(CATEGORY_IDS)
    info = {"description": "miniature COCO of nlprobe: handwritten digits on photographs of scikit-learn"}
    entries = {name: ",\n".join(map(json.dumps, each)) for name, each in lists.items()}
    parts = [f'"info": {json.dumps(info)}', *(f'"{name}": [\n{lines}\n]' for name, lines in entries.items())]
    return "{" + ",\n".join(parts) + "}\n"
