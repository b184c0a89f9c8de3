"""The curves of a run: as a figure with its data, and for TensorBoard."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from nlprobe.cli import run
from nlprobe.data import write_miniature_imagenet

MODEL = "miniature-imagenet/resnet-nl"
SMALL = ["--batch-size", "8", "--device", "cpu", "--set", "preprocessing.crop=32", "--set", "preprocessing.resize=32"]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    data = write_miniature_imagenet(tmp_path / "data", train=30, val=10)
    return ["train", MODEL, "--data", str(data), "--out", str(tmp_path / "run"), *SMALL]


def test_a_run_leaves_its_curves(arguments: list[str], tmp_path: Path) -> None:
    assert run([*arguments, "--epochs", "2"]) == 0
    log, curves = pd.read_csv(tmp_path / "run" / "log.csv"), pd.read_csv(tmp_path / "run" / "curves.csv")
    loss = curves[curves["measure"] == "loss"]
    assert loss[loss["split"] == "val"]["value"].tolist() == log["val_loss"].tolist()
    train = loss[loss["split"] == "train"]
    assert train["epoch"].tolist() == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert train["value"].iloc[:3].mean() == pytest.approx(log["train_loss"][0])
    for ending in ("png", "pdf", "svg"):
        assert (tmp_path / "run" / f"curves.{ending}").stat().st_size > 0


@dataclass
class Writer:
    """What TensorBoard's writer would have been told."""

    log_dir: str
    purge_step: int
    scalars: list[tuple[str, float, int]] = field(default_factory=list)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        pass


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """The writers that were made; the package itself is not needed for that."""
    made: list[Writer] = []

    def make(log_dir: str, purge_step: int) -> Writer:
        made.append(Writer(log_dir, purge_step))
        return made[-1]

    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = make
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return made


def test_tensorboard_gets_every_point_once_also_after_a_resume(
    arguments: list[str], tmp_path: Path, writers: list[Writer]
) -> None:
    assert run([*arguments, "--epochs", "1", "--tensorboard"]) == 0
    assert run(["train", "--resume", "--out", str(tmp_path / "run"), "--epochs", "2"]) == 0
    first, second = writers
    assert first.log_dir == str(tmp_path / "run" / "tensorboard")
    assert (first.purge_step, second.purge_step) == (0, 3)
    steps = [step for writer in writers for name, _, step in writer.scalars if name == "train/loss"]
    assert steps == [1, 2, 3, 4, 5, 6]
    scores = [(step, value) for writer in writers for name, value, step in writer.scalars if name == "val/top1"]
    log = pd.read_csv(tmp_path / "run" / "log.csv")
    assert scores == list(zip([3, 6], log["val_top1"], strict=True))


def test_without_tensorboard_the_flag_names_what_to_install(
    arguments: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run([*arguments, "--tensorboard"]) == 4
    err = capsys.readouterr().err
    assert "pip install" in err
    assert "tensorboard" in err
    assert not (tmp_path / "run").exists()
