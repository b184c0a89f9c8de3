"""Kinetics' CSV finds its videos in the layouts that people have, and says which are not there."""

import os
from pathlib import Path

import pytest
from videos_on_disk import number_of, write_frames, write_video

from nlprobe.data import FrameFolder, VideoFile, data_fingerprint, open_dataset, open_parts
from nlprobe.data.part import Part
from nlprobe.errors import DataError

HEADER = "label,youtube_id,time_start,time_end,split\n"
ROWS = (
    "juggling balls,AAAAAAAAAAA,4,14,train\n"
    "abseiling,-bB_BBBBBBB,137,147,train\n"
    "juggling balls,CCCCCCCCCCC,0,10,train\n"
)
STEMS = ("AAAAAAAAAAA_000004_000014", "-bB_BBBBBBB_000137_000147", "CCCCCCCCCCC_000000_000010")
FOLDERS = ("juggling balls", "abseiling", "juggling balls")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", count=5)


def lay(root: Path, names: list[str], video: Path) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(video, root / name)


def tables(root: Path, train: str = HEADER + ROWS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "train.csv").write_text(train)
    (root / "val.csv").write_text(HEADER + "zumba,DDDDDDDDDDD,1,11,val\nabseiling,EEEEEEEEEEE,2,12,val\n")
    return root


LAYOUTS = {
    "by class": [f"train/{folder}/{stem}.mp4" for folder, stem in zip(FOLDERS, STEMS, strict=True)],
    "by class with underscores": [
        f"train/{folder.replace(' ', '_')}/{stem}.mp4" for folder, stem in zip(FOLDERS, STEMS, strict=True)
    ],
    "flat with times": [f"train/{stem}.mkv" for stem in STEMS],
    "flat without times": [f"videos/{stem[:11]}.mp4" for stem in STEMS],
    "in the root": [f"{stem[:11]}.webm" for stem in STEMS],
    "renamed": [f"videos_train/{stem}.mp4" for stem in STEMS],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_videos_are_found(tmp_path: Path, video: Path, layout: str) -> None:
    lay(tables(tmp_path), LAYOUTS[layout], video)
    dataset = open_dataset(tmp_path, "train")
    assert (dataset.kind, dataset.holds, len(dataset), dataset.missing) == ("Kinetics", "videos", 3, [])
    assert dataset.classes == ["abseiling", "juggling balls", "zumba"]
    assert dataset.labels == [1, 0, 1]
    assert [Path(name).stem[:11] for name in dataset.ids] == [stem[:11] for stem in STEMS]
    sample = dataset[1]
    assert isinstance(sample.image, VideoFile)
    assert (sample.label, sample.id, sample.image.name) == (0, dataset.ids[1], dataset.ids[1])
    assert number_of(sample.image.frames([3])[0].numpy()) == 3
    assert dataset.size(0) == video.stat().st_size


def test_folders_of_frames_are_found(tmp_path: Path) -> None:
    tables(tmp_path)
    for folder, stem in zip(FOLDERS, STEMS, strict=True):
        write_frames(tmp_path / "rawframes_train" / folder / stem, 4)
    dataset = open_dataset(tmp_path, "train")
    assert dataset.ids == [f"{folder}/{stem}" for folder, stem in zip(FOLDERS, STEMS, strict=True)]
    assert isinstance(dataset[0].image, FrameFolder)
    before = data_fingerprint(dataset)
    write_frames(tmp_path / "rawframes_train" / FOLDERS[0] / STEMS[0], 5)
    assert data_fingerprint(dataset) != before


def test_what_the_csv_lists_and_nobody_has_is_missing(tmp_path: Path, video: Path) -> None:
    lay(tables(tmp_path), [*LAYOUTS["by class"][:2], "val/abseiling/EEEEEEEEEEE_000002_000012.mp4"], video)
    dataset = open_dataset(tmp_path, "train")
    assert (len(dataset), dataset.missing) == (2, [STEMS[2]])
    assert Part(dataset, 1).missing == [STEMS[2]]
    validation = open_parts(tmp_path)["val"]
    assert validation.labels == [0]
    assert validation.classes == dataset.classes
    assert validation.missing == ["DDDDDDDDDDD_000001_000011"]


def test_a_data_set_without_a_single_video_says_how_they_are_called(tmp_path: Path) -> None:
    (tables(tmp_path) / "train").mkdir()
    with pytest.raises(DataError, match=r"none of the 3 videos of `train.csv`, such as `AAAAAAAAAAA_000004_000014`"):
        open_dataset(tmp_path, "train")


def test_a_clip_of_two_classes_is_taken_from_the_folder_of_each(tmp_path: Path, video: Path) -> None:
    rows = "jump,AAAAAAAAAAA,0,10,train\nwalk,AAAAAAAAAAA,0,10,train\n"
    names = [f"train/{folder}/AAAAAAAAAAA_000000_000010.mp4" for folder in ("jump", "walk")]
    lay(tables(tmp_path, HEADER + rows), names, video)
    assert open_dataset(tmp_path, "train").ids == [name.removeprefix("train/") for name in names]


def test_csvs_may_lie_in_annotations_and_be_called_validate(tmp_path: Path, video: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "validate.csv").write_text(
        "\ufefflabel,youtube_id,time_start,time_end,split,is_cc\nabseiling,AAAAAAAAAAA,4.0,14.0,validate,0\n"
    )
    lay(tmp_path, ["validate/AAAAAAAAAAA_000004_000014.mp4"], video)
    assert list(open_parts(tmp_path)) == ["val"]
    assert open_dataset(tmp_path).ids == ["AAAAAAAAAAA_000004_000014.mp4"]
    with pytest.raises(DataError, match=r"no `train.csv`"):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label,youtube_id\na,b\n", "no column `time_start`, `time_end`"),
        (HEADER, "lists no video"),
        (HEADER + "a,AAAAAAAAAAA,soon,14,train\n", "line 2 .* is not understood"),
        (HEADER + ",AAAAAAAAAAA,4,14,train\n", "line 2 .* has no label"),
    ],
)
def test_an_odd_csv_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(tables(tmp_path, content), "train")


def test_class_folders_of_videos(tmp_path: Path, video: Path) -> None:
    names = [f"{split}/{label}/{n}.mp4" for split in ("train", "val") for label in ("a", "b") for n in (0, 1)]
    lay(tmp_path, names, video)
    parts = open_parts(tmp_path)
    assert list(parts) == ["train", "val"]
    assert (parts["val"].kind, parts["val"].ids) == (
        "class folders of videos",
        ["a/0.mp4", "a/1.mp4", "b/0.mp4", "b/1.mp4"],
    )
    assert open_dataset(tmp_path / "val").labels == [0, 0, 1, 1]


def test_class_folders_of_frames_are_told_from_pictures_by_their_numbers(tmp_path: Path, write_images) -> None:
    for label in ("a", "b"):
        for name in ("one", "two"):
            write_frames(tmp_path / "films" / label / name, 3)
        write_images(tmp_path / "pictures" / label, 3)
        write_images(tmp_path / "gaps" / label / "inner", 3)
        (tmp_path / "gaps" / label / "inner" / "1.png").unlink()
    films = open_dataset(tmp_path / "films")
    assert (films.kind, films.ids) == ("class folders of frames", ["a/one", "a/two", "b/one", "b/two"])
    assert open_dataset(tmp_path / "pictures").kind == "class folders"
    assert open_dataset(tmp_path / "gaps").holds == "images"


def test_a_folder_of_videos_and_a_single_one_have_no_labels(tmp_path: Path, video: Path) -> None:
    lay(tmp_path, ["b.mp4", "a.mov", "notes.mp4.txt"], video)
    dataset = open_dataset(tmp_path)
    assert (dataset.kind, dataset.ids, dataset.classes) == ("videos", ["a.mov", "b.mp4"], None)
    assert open_dataset(tmp_path / "b.mp4").ids == ["b.mp4"]


def test_a_part_of_kinetics_without_its_csv_is_explained(tmp_path: Path, video: Path) -> None:
    lay(tmp_path, LAYOUTS["flat with times"], video)
    with pytest.raises(DataError, match=r"3 videos but no class folders, and .* no `train.csv`"):
        open_dataset(tmp_path, "train")


def test_the_folder_above_points_to_the_data_set(tmp_path: Path, video: Path) -> None:
    lay(tmp_path, [f"kinetics/{name}" for name in LAYOUTS["by class"]], video)
    with pytest.raises(DataError, match="`kinetics` may be one"):
        open_dataset(tmp_path)
