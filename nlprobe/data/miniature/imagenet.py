"""A miniature ImageNet: class folders of JPEG files, in which an object alone does not tell its picture's class."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nlprobe.data.miniature.scenes import DIGITS, Scene, SceneSettings, compose, material
from nlprobe.errors import ConfigError
from nlprobe.files import new_folder

CLASSES = tuple(f"{digit}_{word}" for digit, word in enumerate(DIGITS))
SPLITS = ("train", "val")
SETTINGS = SceneSettings()


def write_miniature_imagenet(
    out: Path | str,
    seed: int = 0,
    train: int = 4000,
    val: int = 800,
    *,
    force: bool = False,
    settings: SceneSettings = SETTINGS,
    progress: Callable[[Iterable[int], str], Iterable[int]] = lambda pictures, label: pictures,
) -> Path:
    """Write `out`/imagenet/{train,val}/<class>/*.JPEG and `out`/imagenet/annotations/{train,val}.json.

    A picture shows seven to ten digits. Its class is the digit that most of them are: 50 to 57 % are of that class, the
    others all differ. So the class is in the whole scene, while a classifier that knows every digit perfectly but sees
    only one of them is right in about 54 % of the cases.

    The files are a function of `seed` and the picture's number: byte for byte the same each time, and the same whether
    more or fewer of them are asked for.

    Args:
        out: Folder in which `imagenet` is made.
        seed: Seed of everything random.
        train: Number of training pictures, spread evenly over the ten classes.
        val: Number of validation pictures.
        force: Replace an `imagenet` that is there.
        settings: What the scenes look like.
        progress: Passes the pictures' numbers on and shows how far they are, under a label.

    Returns:
        The folder `out`/imagenet.

    Raises:
        ConfigError: the folder is there already, or there would be a class without a picture.
        MissingExtraError: scikit-learn is not installed.
        DataError: the folder cannot be written.
    """
    if min(train, val) < len(CLASSES):
        raise ConfigError(
            f"{train} training and {val} validation pictures leave classes empty", "ask for at least 10 of each"
        )
    root = Path(out) / "imagenet"
    with new_folder(root, force=force) as partial_root:
        for split, count in zip(SPLITS, (train, val), strict=True):
            for name in CLASSES:
                (partial_root / split / name).mkdir(parents=True)
            write = partial(_write_picture, partial_root, split, seed, settings)
            annotations = [write(index) for index in progress(range(count), f"{split} pictures")]
            (partial_root / "annotations").mkdir(exist_ok=True)
            lines = ",\n".join(json.dumps(annotation) for annotation in annotations)
            (partial_root / "annotations" / f"{split}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return root


def draw_labels(label: int, rng: np.random.Generator) -> list[int]:
    """Classes of the digits in a scene of class `label`, in the order in which they are laid down."""
    count = int(rng.integers(7, 11))
    majority = count // 2 + count % 2
    others = [other for other in range(len(CLASSES)) if other != label]
    distractors = rng.permutation(others)[: count - majority]
    return [int(drawn) for drawn in rng.permutation([label] * majority + distractors.tolist())]


def _write_picture(root: Path, split: str, seed: int, settings: SceneSettings, index: int) -> dict[str, Any]:
    label = index % len(CLASSES)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = compose(material(split), draw_labels(label, rng), rng, settings)
    stem = f"{CLASSES[label]}_{index:06d}" if split == "train" else f"miniature_val_{index:08d}"
    path = root / split / CLASSES[label] / f"{stem}.JPEG"
    scene.image.save(path, quality=92, subsampling=0)
    return _annotation(path.relative_to(root / split).as_posix(), label, scene)


def _annotation(image: str, label: int, scene: Scene) -> dict[str, Any]:
    objects = [
        {"class": CLASSES[seen.label], "box": list(seen.box), "visible": round(seen.visible, 4), "digit": seen.digit}
        for seen in scene.objects
    ]
    return {"image": image, "class": CLASSES[label], "objects": objects}
