"""The miniature Cityscapes reads as the real one, and its scenes tell more than their objects."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from nlprobe.data import IGNORED, open_dataset, write_miniature_cityscapes
from nlprobe.data.miniature.streets import AMBIGUOUS, OBJECTS
from nlprobe.errors import ConfigError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_cityscapes(tmp_path_factory.mktemp("data"), train=24, val=12)


def digest(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_torchvisions_class_reads_it(root: Path) -> None:
    official = datasets.Cityscapes(root, split="val", mode="fine", target_type=["semantic", "color"])
    assert len(official) == 12
    for path in (official.images[0], *official.targets[0]):
        with Image.open(path) as file:
            assert file.size == (256, 128)


def test_all_nineteen_classes_occur_in_both_parts(root: Path) -> None:
    for split in ("train", "val"):
        dataset = open_dataset(root, split)
        seen = set(np.concatenate([np.unique(np.asarray(dataset[index].label)) for index in range(len(dataset))]))
        assert seen == {*range(19), IGNORED}


def test_the_files_are_a_function_of_the_seed(root: Path, tmp_path: Path) -> None:
    again = write_miniature_cityscapes(tmp_path / "again", train=24, val=12)
    assert digest(again) == digest(root)
    other = write_miniature_cityscapes(tmp_path / "other", seed=1, train=2, val=2)
    fewer = write_miniature_cityscapes(tmp_path / "fewer", train=2, val=2)
    name = "leftImg8bit/val/zahlenburg/zahlenburg_000000_000001_leftImg8bit.png"
    assert (fewer / name).read_bytes() == (root / name).read_bytes() != (other / name).read_bytes()


def test_the_sky_decides_which_class_two_of_the_digits_have(root: Path) -> None:
    classes = open_dataset(root, "train").classes
    seen = set()
    for line in json.loads((root / "annotations" / "train.json").read_text()):
        for one in line["objects"]:
            assert one["class"] == OBJECTS[one["digit"]][line["sky"] == "red"]
            assert one["class"] in classes
            seen.add((one["digit"], one["class"]))
    assert {len([name for digit, name in seen if digit == each]) for each in AMBIGUOUS} == {2}


def test_the_map_shows_an_object_where_the_annotation_says(root: Path) -> None:
    dataset = open_dataset(root, "val")
    agreeing, total = 0, 0
    for index, line in enumerate(json.loads((root / "annotations" / "val.json").read_text())):
        label = np.asarray(dataset[index].label)
        for one in line["objects"]:
            agreeing += dataset.classes[label[one["y"], one["x"]]] == one["class"]
            total += 1
    assert agreeing > 0.85 * total  # some centres are hidden


def test_a_folder_that_is_there_is_kept(root: Path) -> None:
    with pytest.raises(ConfigError):
        write_miniature_cityscapes(root.parent, train=1, val=1)
    with pytest.raises(ConfigError, match="at least 1"):
        write_miniature_cityscapes(root.parent, train=0, force=True)


def test_colours_are_the_data_sets_own(root: Path) -> None:
    name = "zahlenburg/zahlenburg_000000_000000_gtFine"
    ids = np.asarray(Image.open(root / "gtFine/val" / f"{name}_labelIds.png"))
    colours = np.asarray(Image.open(root / "gtFine/val" / f"{name}_color.png").convert("RGB"))
    table = {each.id: each.color for each in datasets.Cityscapes.classes}
    for each in np.unique(ids):
        assert (colours[ids == each] == table[int(each)]).all()
