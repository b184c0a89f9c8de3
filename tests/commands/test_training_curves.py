"""The curves of a run: as a figure with its data, and for TensorBoard."""

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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


def scalars(folder: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a curve as TensorBoard shows it."""
    events = EventAccumulator(str(folder))
    events.Reload()
    found = events.Scalars(name)
    return [event.step for event in found], [event.value for event in found]


def test_tensorboard_shows_every_point_once_also_after_a_resume_and_a_kill(
    arguments: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    resume = ["train", "--resume", "--out", str(out), "--epochs", "2"]
    assert run([*arguments, "--epochs", "1", "--tensorboard"]) == 0
    state = (out / "state.pt").read_bytes()
    assert run(resume) == 0
    # As if a kill had come after the second epoch's events and before its state.
    (out / "state.pt").write_bytes(state)
    assert run(resume) == 0
    check_events(out)
    # As if it had come before the events reached the disk.
    shutil.rmtree(out / "tensorboard")
    assert run(resume) == 0
    check_events(out)


def check_events(out: Path) -> None:
    """Every point of the curves is there once."""
    log, curves = pd.read_csv(out / "log.csv"), pd.read_csv(out / "curves.csv")
    for name in ("loss", "top1", "learning_rate"):
        steps, values = scalars(out / "tensorboard", f"train/{name}")
        assert steps == [1, 2, 3, 4, 5, 6]
        own = curves[(curves["measure"] == name) & (curves["split"] == "train")]
        assert values == pytest.approx(own["value"].tolist(), rel=1e-6)
    for name in ("loss", "top1", "top5"):
        steps, values = scalars(out / "tensorboard", f"val/{name}")
        assert steps == [3, 6]
        assert values == pytest.approx(log[f"val_{name}"].tolist(), rel=1e-6)


def test_without_tensorboard_the_flag_names_what_to_install(
    arguments: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run([*arguments, "--tensorboard"]) == 4
    err = capsys.readouterr().err
    assert "pip install" in err
    assert "tensorboard" in err
    assert not (tmp_path / "run").exists()
