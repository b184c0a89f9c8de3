"""Cityscapes' own layout: pairs, ids, and everything that may be wrong with a map of classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from nlprobe.data import IGNORED, UnreadableImageError, data_fingerprint, open_dataset, open_parts
from nlprobe.data.cityscapes import CLASSES, PALETTE
from nlprobe.errors import DataError

NAME = "bonn/bonn_000000_000019"


def write(root: Path, name: str = NAME, ids: np.ndarray | None = None, size: tuple[int, int] = (6, 4)) -> Path:
    """A picture and, where ids are given, its map; the path of the map."""
    picture = root / "leftImg8bit/val" / f"{name}_leftImg8bit.png"
    labels = root / "gtFine/val" / f"{name}_gtFine_labelIds.png"
    for path in (picture, labels):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 8, 7)).save(picture)
    if ids is not None:
        Image.fromarray(ids).save(labels)
    return labels


def refused(root: Path) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        open_dataset(root)[0]
    assert caught.value.image == f"{NAME}_leftImg8bit.png"
    return caught.value.reason


def test_ids_become_the_classes_of_the_official_table(tmp_path: Path) -> None:
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    write(tmp_path, ids=ids, size=(17, 2))
    dataset = open_dataset(tmp_path)
    official = datasets.Cityscapes(tmp_path, split="val", mode="fine", target_type="semantic")
    train_ids = {each.id: each.train_id for each in datasets.Cityscapes.classes}
    with Image.open(official.targets[0][0]) as file:
        expected = np.vectorize(train_ids.get)(np.asarray(file))
    np.testing.assert_array_equal(np.asarray(dataset[0].label), np.where(expected < 0, IGNORED, expected))
    assert len(CLASSES) == len(PALETTE) == 19
    assert dataset.classes == [
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
        *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    ]
    assert PALETTE[CLASSES.index("car")] == (0, 0, 142)


def test_maps_of_classes_are_taken_where_there_are_none_of_ids(tmp_path: Path) -> None:
    labels = write(tmp_path, ids=np.full((4, 6), 18, np.uint8))
    labels.rename(labels.with_name(labels.name.replace("labelIds", "labelTrainIds")))
    assert np.unique(np.asarray(open_dataset(tmp_path)[0].label)).tolist() == [18]


def test_maps_of_sixteen_bits_and_palettes_hold_the_same_ids(tmp_path: Path) -> None:
    ids = np.array([[7, 26, 0, 7, 7, 33]] * 4)
    labels = write(tmp_path, ids=ids.astype(np.uint16))
    wide = np.asarray(open_dataset(tmp_path)[0].label)
    palette = Image.fromarray(ids.astype(np.uint8)).convert("L")
    palette.putpalette([value for colour in np.arange(256) for value in (colour, 0, 255 - colour)])
    palette.save(labels)
    np.testing.assert_array_equal(np.asarray(open_dataset(tmp_path)[0].label), wide)
    assert wide[0].tolist() == [0, 13, IGNORED, 0, 0, 18]


def test_a_map_of_another_size_is_no_pair(tmp_path: Path) -> None:
    write(tmp_path, ids=np.zeros((4, 3), np.uint8))
    assert refused(tmp_path) == "its label map is 3x4 pixels, the picture 6x4: they are no pair"


def test_unknown_ids_are_named(tmp_path: Path) -> None:
    write(tmp_path, ids=np.full((4, 6), 77, np.uint8))
    assert refused(tmp_path).endswith("holds ids that the data set does not have: 77")


def test_an_instance_map_is_recognised(tmp_path: Path) -> None:
    write(tmp_path, ids=np.full((4, 6), 26001, np.uint16))
    assert refused(tmp_path).endswith("26001 (an instance map?)")


def test_a_map_in_colour_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ids=np.zeros((4, 6, 3), np.uint8))
    assert "is in colour" in refused(tmp_path)


def test_a_truncated_map_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 34, (64, 64), dtype=np.uint8)
    labels = write(tmp_path, ids=noise, size=(64, 64))
    labels.write_bytes(labels.read_bytes()[:900])
    assert "its label map" in refused(tmp_path)


def test_a_picture_without_a_map_and_a_map_without_a_picture_are_named(tmp_path: Path) -> None:
    write(tmp_path, ids=np.zeros((4, 6), np.uint8))
    write(tmp_path, "bonn/bonn_000000_000020")
    with pytest.raises(DataError, match=r"1 of 2 pictures .* have no label map, such as `bonn/bonn_000000_000020_left"):
        open_dataset(tmp_path)
    pictures = tmp_path / "leftImg8bit/val/bonn"
    (pictures / "bonn_000000_000020_leftImg8bit.png").unlink()
    (pictures / "bonn_000000_000019_leftImg8bit.png").rename(pictures / "other_leftImg8bit.png")
    with pytest.raises(DataError, match="no label map"):
        open_dataset(tmp_path)
    write(tmp_path, "bonn/other", ids=np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match=f"1 label maps .* have no picture, such as `{NAME}`"):
        open_dataset(tmp_path)


def test_pictures_alone_can_be_measured(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "gtFine/val/bonn").rmdir()
    (tmp_path / "gtFine/val").rmdir()
    dataset = open_dataset(tmp_path)
    assert not dataset.has_maps
    assert dataset.picture(0).size == (6, 4)


def test_the_orientation_in_a_picture_is_not_heeded(tmp_path: Path) -> None:
    write(tmp_path, ids=np.zeros((4, 6), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "leftImg8bit/val" / f"{NAME}_leftImg8bit.png", exif=exif)
    assert open_dataset(tmp_path)[0].image.size == (6, 4)


def test_parts_of_the_data_set_are_no_data_set(tmp_path: Path) -> None:
    write(tmp_path, ids=np.zeros((4, 6), np.uint8))
    for folder in ("leftImg8bit", "gtFine"):
        with pytest.raises(DataError, match="is a part of Cityscapes"):
            open_dataset(tmp_path / folder)
    with pytest.raises(DataError, match="has no folder `leftImg8bit/train`"):
        open_dataset(tmp_path, "train")
    assert list(open_parts(tmp_path)) == ["val"]


def test_the_fingerprint_changes_with_a_map(tmp_path: Path) -> None:
    labels = write(tmp_path, ids=np.zeros((4, 6), np.uint8))
    before = data_fingerprint(open_dataset(tmp_path))
    labels.write_bytes(labels.read_bytes() + b"\0")
    assert data_fingerprint(open_dataset(tmp_path)) != before
