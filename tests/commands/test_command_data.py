"""`nlprobe data`: in process, as a newcomer would call it."""

import json
from pathlib import Path

import pytest
from PIL import Image
from videos_on_disk import write_video

from nlprobe.cli import run
from nlprobe.data import write_miniature_cityscapes, write_miniature_imagenet


@pytest.fixture
def miniature(tmp_path: Path) -> Path:
    return write_miniature_imagenet(tmp_path / "data", train=10, val=10)


def test_miniature_writes_imagenet_folders_and_says_where(tmp_path: Path, capsys) -> None:
    assert run(["data", "miniature", "--out", str(tmp_path), "--train", "20", "--val", "10"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert f"wrote {tmp_path / 'imagenet'}" in err
    assert len(list((tmp_path / "imagenet" / "train").glob("*/*.JPEG"))) == 20
    assert len(list((tmp_path / "imagenet" / "val").glob("*/*.JPEG"))) == 10
    assert len(list((tmp_path / "cityscapes" / "leftImg8bit" / "train").glob("*/*.png"))) == 20
    assert len(list((tmp_path / "cityscapes" / "gtFine" / "val").glob("*/*_labelIds.png"))) == 10


def test_miniature_is_not_overwritten_without_force(miniature: Path, capsys) -> None:
    assert run(["data", "miniature", "--out", str(miniature.parent), "--train", "20", "--val", "10"]) == 2
    assert "--force" in capsys.readouterr().err
    assert len(list(miniature.glob("train/*/*.JPEG"))) == 10


def test_too_few_pictures_are_a_usage_error(tmp_path: Path) -> None:
    assert run(["data", "miniature", "--out", str(tmp_path), "--train", "3"]) == 2
    assert not (tmp_path / "imagenet").exists()


def test_check_counts_both_parts(miniature: Path, capsys) -> None:
    assert run(["data", "check", str(miniature), "--format", "json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert [(part["part"], part["images"], part["classes"], part["unreadable"]) for part in parts] == [
        ("train", 10, 10, 0),
        ("val", 10, 10, 0),
    ]


def test_check_of_photographs(photographs: Path, capsys) -> None:
    assert run(["data", "check", str(photographs), "--format", "json"]) == 0
    (part,) = json.loads(capsys.readouterr().out)
    assert (part["part"], part["kind"], part["images"]) == ("all", "photographs", 5)


def test_check_names_what_cannot_be_read_and_ends_with_4(miniature: Path, capsys) -> None:
    bad = next(miniature.glob("val/3_three/*"))
    bad.write_bytes(bad.read_bytes()[:400])
    assert run(["data", "check", str(miniature)]) == 4
    out, err = capsys.readouterr()
    assert "ImageNet folders" in out
    assert f"`3_three/{bad.name}` cannot be read" in err
    assert "1 image of" in err


def test_check_of_a_missing_folder_ends_with_4(tmp_path: Path, capsys) -> None:
    assert run(["data", "check", str(tmp_path / "nowhere")]) == 4
    assert "is not there" in capsys.readouterr().err


def test_one_set_can_be_asked_for(tmp_path: Path, capsys) -> None:
    assert (
        run(["data", "miniature", "--only", "cityscapes", "--out", str(tmp_path), "--train", "10", "--val", "10"]) == 0
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cityscapes"]
    assert run(["data", "check", str(tmp_path / "cityscapes"), "--format", "json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert [(part["part"], part["images"], part["classes"]) for part in parts] == [("train", 10, 19), ("val", 10, 19)]


def test_nothing_is_written_where_one_of_the_sets_is_there(tmp_path: Path) -> None:
    (tmp_path / "cityscapes").mkdir()
    (tmp_path / "cityscapes" / "mine.txt").touch()
    assert run(["data", "miniature", "--out", str(tmp_path), "--train", "10", "--val", "10"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["cityscapes"]


def test_a_map_of_classes_that_cannot_be_read_is_named(tmp_path: Path, capsys) -> None:
    write_miniature_cityscapes(tmp_path, train=2, val=2)
    path = next((tmp_path / "cityscapes" / "gtFine" / "val").glob("*/*_labelIds.png"))
    path.write_bytes(b"no picture")
    assert run(["data", "check", str(tmp_path / "cityscapes")]) == 4
    assert path.name in capsys.readouterr().err


def test_objects_that_cannot_be_used_are_named_and_counted(tmp_path: Path, capsys) -> None:
    square = {"segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]], "bbox": [1, 1, 4, 4], "category_id": 3}
    annotations = [
        {**square, "id": 1, "image_id": 1},
        {**square, "id": 2, "image_id": 1, "bbox": [1, 1, 0, 4]},
        {**square, "id": 3, "image_id": 1, "bbox": [4, 4, 9, 2]},
        {**square, "id": 4, "image_id": 9},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 9}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}],
    }
    for folder in ("val2017", "annotations"):
        (tmp_path / folder).mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    Image.new("RGB", (9, 8)).save(tmp_path / "val2017" / "a.png")
    assert run(["data", "check", str(tmp_path), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    (part,) = json.loads(out)
    assert (part["kind"], part["classes"], part["images"], part["unreadable"]) == ("COCO 2017", 2, 1, 0)
    assert (part["smallest class"], part["largest class"], part["faulty objects"]) == (0, 2, 2)
    assert "val: annotation 2 of `a.png`: box without area (x 1, y 1, width 0, height 4 in 9x8 pixels)" in err
    assert "val: annotation 3 of `a.png`: box that reaches beyond its picture, and is cut off there" in err
    assert "val: annotation 4: picture that is not in the list (9)" in err
    Image.new("RGB", (8, 9)).save(tmp_path / "val2017" / "a.png")
    assert run(["data", "check", str(tmp_path)]) == 4
    assert "`a.png` cannot be read: it is 8x9 pixels, and its annotations are for 9x8" in capsys.readouterr().err


def test_check_of_kinetics_names_videos_that_are_missing_cut_off_or_no_videos(tmp_path: Path, capsys) -> None:
    root = tmp_path / "kinetics"
    rows = [f"jump,{name},0,10,train" for name in ("whole______", "cut________", "text_______", "gone_______")]
    (root / "train").mkdir(parents=True)
    (root / "train.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]))
    write_video(root / "train" / "whole______.mp4")
    cut = write_video(root / "train" / "cut________.mkv", count=200)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (root / "train" / "text_______.mp4").write_text("no video")
    assert run(["data", "check", str(root), "--format", "json"]) == 4
    out, err = capsys.readouterr()
    (part,) = json.loads(out)
    assert (part["part"], part["kind"], part["videos"], part["missing"], part["unreadable"]) == (
        "train",
        "Kinetics",
        3,
        1,
        2,
    )
    assert "`gone________000000_000010` is not there" in err
    assert "`cut________.mkv` cannot be read: it is cut off" in err
    assert "`text_______.mp4` cannot be read: it is no video" in err
    assert "2 videos of" in err
