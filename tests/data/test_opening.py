"""What lies in a folder decides what it is; what cannot be decided is said."""

from pathlib import Path

import pytest

from nlprobe.data import data_fingerprint, open_dataset, open_parts
from nlprobe.errors import DataError


def test_imagenet_folders_have_two_parts_with_names_relative_to_them(imagenet: Path) -> None:
    training, validation = open_dataset(imagenet, "train"), open_dataset(imagenet)
    assert (training.kind, len(training), len(validation)) == ("ImageNet folders", 6, 4)
    assert training.classes == validation.classes == ["cat", "dog"]
    assert training.ids[:4] == ["cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png"]
    image, label, name = training[3]
    assert (image.size, image.mode, label, name) == ((12, 12), "RGB", 1, "dog/0.png")


def test_a_part_opened_by_itself_has_the_same_names(imagenet: Path) -> None:
    assert open_dataset(imagenet / "val").ids == open_dataset(imagenet, "val").ids


def test_any_image_folder_is_the_same_for_both_parts(imagenet: Path) -> None:
    flat = open_dataset(imagenet / "train", "train")
    assert flat.kind == "class folders"
    assert flat.ids == open_dataset(imagenet / "train", "val").ids


def test_nested_and_hidden_folders(imagenet: Path, write_images) -> None:
    write_images(imagenet / "val" / "cat" / "inner", 1)
    write_images(imagenet / "val" / ".ipynb_checkpoints", 1)
    (imagenet / "val" / "cat" / "._0.png").write_bytes(b"resource fork")
    found = open_dataset(imagenet)
    assert found.classes == ["cat", "dog"]
    assert "cat/inner/0.png" in found.ids
    assert len(found) == 5


def test_a_flat_folder_of_photographs_has_no_labels(tmp_path: Path, write_images) -> None:
    found = open_dataset(write_images(tmp_path / "photos", 3, "jpg"))
    assert found.kind == "photographs"
    assert found.classes is None
    assert found.ids == ["0.jpg", "1.jpg", "2.jpg"]
    assert found[1].label is None


def test_a_single_photograph(tmp_path: Path, write_images) -> None:
    found = open_dataset(write_images(tmp_path / "photos", 1) / "0.png")
    assert found.ids == ["0.png"]
    assert found[0].image.size == (12, 12)


def test_parts_of_each_kind(imagenet: Path) -> None:
    assert list(open_parts(imagenet)) == ["train", "val"]
    assert list(open_parts(imagenet / "val")) == ["all"]


def test_an_empty_folder_names_what_is_understood(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no image.*\n.*train/<class>/"):
        open_dataset(tmp_path)


def test_a_missing_folder_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"`{tmp_path}` is there"):
        open_dataset(tmp_path / "a" / "b")


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="no image"):
        open_dataset(tmp_path / "a.txt")


def test_images_beside_class_folders_are_ambiguous(imagenet: Path, write_images) -> None:
    write_images(imagenet / "val", 1)
    with pytest.raises(DataError, match="holds both 1 images and 2 folders"):
        open_dataset(imagenet / "val")


def test_the_folder_above_points_to_the_data_set(imagenet: Path) -> None:
    with pytest.raises(DataError, match=f"give `{imagenet}`"):
        open_dataset(imagenet.parent)


def test_an_unsorted_validation_archive_is_recognised(imagenet: Path, write_images) -> None:
    write_images(imagenet / "flat" / "val", 2)
    with pytest.raises(DataError, match=r"2 images but no class folders\n.*valprep"):
        open_dataset(imagenet / "flat")


def test_a_missing_part_is_named(imagenet: Path) -> None:
    (imagenet / "val").rename(imagenet / "test")
    with pytest.raises(DataError, match="no folder `val`, only `test`, `train`"):
        open_dataset(imagenet)


def test_class_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no image: 1 folders, all empty"):
        open_dataset(tmp_path)


def test_the_fingerprint_changes_with_names_sizes_and_labels_only(imagenet: Path) -> None:
    before = data_fingerprint(open_dataset(imagenet))
    assert before["images"] == 4
    assert len(before["sha256"]) == 64
    assert data_fingerprint(open_dataset(imagenet)) == before
    assert data_fingerprint(open_dataset(imagenet, "train")) != before
    with (imagenet / "val" / "cat" / "0.png").open("ab") as file:
        file.write(b"more")
    assert data_fingerprint(open_dataset(imagenet)) != before


def test_a_vanished_file_still_has_a_fingerprint(imagenet: Path) -> None:
    found = open_dataset(imagenet)
    (imagenet / "val" / "cat" / "0.png").unlink()
    assert found.size(0) == -1
