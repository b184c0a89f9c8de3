"""`nlprobe eval`: accuracy with an interval, on the data set that the network knows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints_on_disk import write_checkpoint

from nlprobe.checkpoints import read_checkpoint
from nlprobe.cli import run
from nlprobe.data import Preprocessing, open_dataset, write_miniature_imagenet


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_imagenet(tmp_path_factory.mktemp("data"), train=10, val=30)


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = open_dataset(data).classes
    return write_checkpoint(tmp_path_factory.mktemp("eval") / "best.safetensors", classes=classes)


def test_accuracy_is_that_of_the_model_on_each_image(data: Path, checkpoint: Path, capsys) -> None:
    assert run(["eval", "--ckpt", str(checkpoint), "--data", str(data), "--format", "json", "--device", "cpu"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    model = read_checkpoint(checkpoint).model
    transform = Preprocessing(64, 64).transform()
    hits = []
    for sample in open_dataset(data):
        with torch.no_grad():
            order = model(transform(sample.image)[None])[0].argsort(descending=True).tolist()
        hits.append((sample.label == order[0], sample.label in order[:5]))
    assert (row["top1"], row["top5"]) == pytest.approx(tuple(np.mean(hits, axis=0)))
    assert (row["images"], row["unreadable"]) == (30, 0)
    assert row["top1_low"] <= row["top1"] <= row["top1_high"]
    assert row["top1_n"] == 30


def test_the_batch_size_does_not_change_the_answer(data: Path, checkpoint: Path, capsys) -> None:
    answers = []
    for size in ("7", "30"):
        arguments = ["eval", "--ckpt", str(checkpoint), "--data", str(data), "--format", "json", "--batch-size", size]
        assert run(arguments) == 0
        answers.append(json.loads(capsys.readouterr().out)[0]["top1"])
    assert answers[0] == answers[1]


def test_a_limit_takes_images_of_all_classes(data: Path, checkpoint: Path, capsys) -> None:
    assert run(["eval", "--ckpt", str(checkpoint), "--data", str(data), "--limit", "10", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["images"] == 10


def test_several_checkpoints_make_one_table(data: Path, checkpoint: Path, capsys) -> None:
    arguments = ["--ckpt", str(checkpoint), "--label", "a", "--ckpt", str(checkpoint), "--label", "b"]
    assert run(["eval", *arguments, "--data", str(data), "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "| a " in out
    assert "| b " in out


def test_unreadable_images_are_left_out_named_and_counted(checkpoint: Path, tmp_path: Path, capsys) -> None:
    root = write_miniature_imagenet(tmp_path, train=10, val=20)
    bad = next(root.glob("val/4_four/*"))
    bad.write_bytes(b"gone")
    assert run(["eval", "--ckpt", str(checkpoint), "--data", str(root), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert (row["images"], row["unreadable"]) == (19, 1)
    assert f"left out: `4_four/{bad.name}`" in err


def test_other_classes_are_refused(data: Path, tmp_path: Path, capsys) -> None:
    other = write_checkpoint(tmp_path / "other.safetensors")
    assert run(["eval", "--ckpt", str(other), "--data", str(data)]) == 4
    assert "they differ, for one in `0`" in capsys.readouterr().err


def test_photographs_have_no_accuracy(checkpoint: Path, photographs: Path, capsys) -> None:
    assert run(["eval", "--ckpt", str(checkpoint), "--data", str(photographs)]) == 4
    assert "without labels" in capsys.readouterr().err


def test_a_missing_checkpoint_ends_with_4(data: Path, tmp_path: Path) -> None:
    assert run(["eval", "--ckpt", str(tmp_path / "no"), "--data", str(data)]) == 4
