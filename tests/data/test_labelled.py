"""Images with a class each."""

from pathlib import Path

import pytest
from PIL import Image

from nlprobe.data.labelled import LabelledImages
from nlprobe.errors import ConfigError, DataError


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Six classes, of which the last has no image."""
    for number, name in enumerate("abcdef"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for image in range(0 if name == "f" else 2):
            Image.new("RGB", (4, 4), (number, image, 0)).save(tmp_path / "val" / name / f"{image}.png")
    return tmp_path


def test_every_image_has_its_class_and_classes_without_images_keep_their_number(folders) -> None:
    found = LabelledImages.open(folders)
    assert found.classes == tuple("abcdef")
    assert found.labels == {f"{name}/{image}.png": number for number, name in enumerate("abcde") for image in range(2)}
    assert len(LabelledImages.open(folders, limit=5).labels) == 5


def test_classes_are_chosen_by_name_or_spread_evenly(folders) -> None:
    found = LabelledImages.open(folders)
    assert found.chosen(["d", "a", "d"]) == [3, 0]
    assert found.chosen() == [0, 1, 2, 3]
    assert found.chosen(count=2) == [0, 2]
    with pytest.raises(ConfigError, match="has no class `g`"):
        found.chosen(["g"])
    with pytest.raises(ConfigError, match="`f` has no image here"):
        found.chosen(["f"])


def test_photographs_have_no_classes(tmp_path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match=r"\(photographs\) has no class for each image"):
        LabelledImages.open(tmp_path)
