"""A miniature Cityscapes: leftImg8bit and gtFine, in which an object alone does not always tell its class."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets

from nlprobe.data.label_maps import coloured
from nlprobe.data.miniature.scenes import material
from nlprobe.data.miniature.streets import Street, StreetSettings, compose_street
from nlprobe.errors import ConfigError
from nlprobe.files import new_folder

CITIES = {"train": "ziffernstadt", "val": "zahlenburg"}
SETTINGS = StreetSettings()

_IDS = {each.name: each.id for each in datasets.Cityscapes.classes}
_COLOURS = tuple(each.color for each in datasets.Cityscapes.classes if each.id >= 0)


def write_miniature_cityscapes(
    out: Path | str,
    seed: int = 0,
    train: int = 1000,
    val: int = 200,
    *,
    force: bool = False,
    settings: StreetSettings = SETTINGS,
    progress: Callable[[Iterable[int], str], Iterable[int]] = lambda pictures, label: pictures,
) -> Path:
    """Write `out`/cityscapes/leftImg8bit/<split>/<city>/*.png and the maps of ids, and colours, in gtFine.

    All 19 classes occur. Two kinds of object are each of one class under a blue sky and of another under a red one, so
    whoever sees the object's own pixels only is right about half of these (see `nlprobe.data.miniature.streets`).
    `annotations/<split>.json` lists the objects of each picture.

    The files are a function of `seed` and the picture's number: byte for byte the same each time, and the same whether
    more or fewer of them are asked for.

    Args:
        out: Folder in which `cityscapes` is made.
        seed: Seed of everything random.
        train: Number of training pictures.
        val: Number of validation pictures.
        force: Replace a `cityscapes` that is there.
        settings: What the scenes look like.
        progress: Passes the pictures' numbers on and shows how far they are, under a label.

    Returns:
        The folder `out`/cityscapes.

    Raises:
        ConfigError: the folder is there already, or there would be no picture.
        MissingExtraError: scikit-learn is not installed.
        DataError: the folder cannot be written.
    """
    if min(train, val) < 1:
        raise ConfigError(f"{train} training and {val} validation pictures", "ask for at least 1 of each")
    root = Path(out) / "cityscapes"
    with new_folder(root, force=force) as partial_root:
        (partial_root / "annotations").mkdir(parents=True)
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            for kind in ("leftImg8bit", "gtFine"):
                (partial_root / kind / split / CITIES[split]).mkdir(parents=True)
            annotations = []
            for index in progress(range(count), f"{split} pictures"):
                street = compose_street(material(split), np.random.default_rng([seed, 1, number, index]), settings)
                annotations.append(_write(partial_root, split, index, street))
            lines = ",\n".join(json.dumps(annotation) for annotation in annotations)
            (partial_root / "annotations" / f"{split}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return root


def _write(root: Path, split: str, index: int, street: Street) -> dict[str, Any]:
    """Write a street's picture and its maps; the line that says what is in it."""
    city = CITIES[split]
    name = f"{city}_{index // 1000:06d}_{index % 1000:06d}"
    picture = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    ids = np.array([_IDS[each] for each in street.names], dtype=np.uint8)[street.ids]
    maps = root / "gtFine" / split / city
    street.image().save(picture)
    Image.fromarray(ids).save(maps / f"{name}_gtFine_labelIds.png")
    coloured(ids, _COLOURS).save(maps / f"{name}_gtFine_color.png")
    return {"image": f"{city}/{picture.name}", "sky": street.sky, "objects": street.objects}
