"""Scores of `nlprobe eval` beside the distances: the form of the paper's Tables 1 and 4."""

import json
from pathlib import Path

import pytest
from checkpoints_on_disk import write_checkpoint

from nlprobe.cli import run
from nlprobe.data import open_dataset, write_miniature_imagenet


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_imagenet(tmp_path_factory.mktemp("data"), train=10, val=10)


@pytest.fixture(scope="module")
def network(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.safetensors", classes=open_dataset(data).classes)


@pytest.fixture
def scores(network: Path, data: Path, tmp_path: Path, capsys) -> Path:
    assert run(["eval", "--ckpt", str(network), "--label", "mine", "--data", str(data), "--format", "json"]) == 0
    path = tmp_path / "scores.json"
    path.write_text(capsys.readouterr().out)
    return path


def test_a_networks_scores_stand_before_its_distances(network: Path, data: Path, scores: Path, capsys) -> None:
    arguments = ["--ckpt", str(network), "--label", "mine", "--data", str(data), "--scores", str(scores)]
    assert run(["stats", *arguments, "--baseline", "init-block", "--draws", "2", "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    evaluated = json.loads(scores.read_text())[0]
    trained, redrawn = rows
    assert float(trained["top1"]) == evaluated["top1"]
    assert float(trained["top5_high"]) == evaluated["top5_high"]
    assert trained["top1_n"] == "10"
    assert redrawn["kind"] == "init-block"
    assert redrawn["top1"] == ""
    assert "loss" not in trained
    assert lines[0].index("top1") < lines[0].index("input")


def test_scores_of_somebody_else_are_refused(network: Path, data: Path, scores: Path, capsys) -> None:
    arguments = ["--ckpt", str(network), "--label", "mini", "--data", str(data), "--scores", str(scores)]
    assert run(["stats", *arguments]) == 2
    error = capsys.readouterr().err
    assert "has scores of `mine`, which is not measured here" in error
    assert "--label" in error


@pytest.mark.parametrize("text", ["", "[1]", '{"model": 1}', "no json"])
def test_other_files_hold_no_scores(network: Path, data: Path, tmp_path: Path, text: str, capsys) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert run(["stats", "--ckpt", str(network), "--data", str(data), "--scores", str(path)]) == 4
    assert "holds no scores of networks" in capsys.readouterr().err
    assert run(["stats", "--ckpt", str(network), "--data", str(data), "--scores", str(tmp_path / "no")]) == 4
