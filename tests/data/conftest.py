"""Small folders of images in the layouts that people have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Writer = Callable[..., Path]


@pytest.fixture
def write_images() -> Writer:
    """A function that writes `count` small images of noise into a folder."""

    def write(folder: Path, count: int = 2, suffix: str = "png", side: int = 12) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.{suffix}")
        return folder

    return write


@pytest.fixture
def imagenet(tmp_path: Path, write_images: Writer) -> Path:
    """ImageNet's folders: two classes, three training and two validation images each."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            write_images(tmp_path / "set" / split / name, count)
    return tmp_path / "set"
