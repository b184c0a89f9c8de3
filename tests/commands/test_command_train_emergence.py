"""`nlprobe train --probe-every`: it measures on the way, leaves the training as it is, and survives what that does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from nlprobe.cli import run
from nlprobe.commands.training_progress import TrainingProgress
from nlprobe.data import write_miniature_imagenet
from nlprobe.emergence import read_emergence
from nlprobe.training import Engine
from nlprobe.training.state import load_state

MODEL = "miniature-imagenet/resnet-nl"
SMALL = ["--batch-size", "8", "--epochs", "2", "--device", "cpu"]
SMALL += ["--set", "preprocessing.crop=32", "--set", "preprocessing.resize=32"]
PROBED = ["--probe-every", "2", "--probe-images", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_imagenet(tmp_path_factory.mktemp("data"), train=30, val=10)


def train(data: Path, out: Path, *more: str, model: str = MODEL) -> int:
    return run(["train", model, "--data", str(data), "--out", str(out), *SMALL, *more])


def results(folder: Path) -> dict[str, object]:
    """All that a run leaves of its training, but for what depends on the clock."""
    found: dict[str, object] = {
        name: (folder / name).read_bytes() for name in ("best.safetensors", "last.safetensors", "curves.csv")
    }
    found["log"] = [line.split(",")[:7] for line in (folder / "log.csv").read_text().splitlines()]
    return found


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probed run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train(data, out, *PROBED) == 0
    return out


def test_a_run_is_measured_at_its_beginning_every_so_many_steps_and_at_its_end(
    data: Path, tmp_path: Path, capsys
) -> None:
    assert train(data, tmp_path / "run", "--probe-every", "4", "--probe-images", "4") == 0
    assert "probed after step 0, in " in capsys.readouterr().err
    frame = read_emergence(tmp_path / "run" / "emergence.csv")
    assert list(frame["step"].unique()) == [0, 4, 6]
    assert frame.groupby("step")["epoch"].first().tolist() == [0, 4 / 3, 2]
    assert frame.groupby("step")["images_seen"].first().tolist() == [0, 32, 48]
    assert not frame.duplicated(["step", "site", "quantity", "measure"]).any()
    assert frame["n"].max() == 4


@pytest.mark.parametrize("more", [(), ("--amp", "bf16", "--accumulate", "2", "--set", "batch_norm=frozen")])
def test_the_training_is_the_same_to_the_bit_with_and_without(
    data: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    assert train(data, tmp_path / "with", *PROBED, *more) == 0
    assert train(data, tmp_path / "without", *more) == 0
    assert results(tmp_path / "with") == results(tmp_path / "without")
    assert not (tmp_path / "without" / "emergence.csv").exists()


def test_the_last_lines_are_what_stats_measures_of_the_last_checkpoint(data: Path, whole: Path, capsys) -> None:
    arguments = ["--ckpt", str(whole / "last.safetensors"), "--data", str(data), "--limit", "4", "--device", "cpu"]
    assert run(["stats", *arguments, "--format", "json"]) == 0
    (site,) = json.loads(capsys.readouterr().out)["sites"]
    frame = read_emergence(whole / "emergence.csv")
    last = frame[frame["step"] == 6].set_index(["quantity", "measure"])
    for quantity, estimate in site["quantities"].items():
        line = last.loc[(quantity, "avg_dist")]
        # Up to rounding: training has its weights in another memory order.
        for name in ("mean", "low", "high"):
            assert line[name] == pytest.approx(estimate[name], rel=1e-5)
        assert line["n"] == estimate["n"]
    for name, estimate in site["columns"].items():
        (line,) = [row for (_, measure), row in last.iterrows() if measure == name]
        assert line["mean"] == pytest.approx(estimate["mean"], rel=1e-5)
    shares = last.loc["output"].loc[list(site["energy"]), "mean"].to_dict()
    assert shares == pytest.approx(site["energy"], rel=1e-5)


@pytest.mark.parametrize("steps", [2, 5])
def test_a_stopped_run_goes_on_to_the_same_records(
    data: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    done = TrainingProgress.step_done

    def step_done(self: TrainingProgress, engine: Engine) -> None:
        done(self, engine)
        if engine.progress.epoch * engine.steps_per_epoch + engine.progress.step == steps:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingProgress, "step_done", step_done)
        assert train(data, tmp_path / "run", *PROBED) == 130
    assert run(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "emergence.csv").read_bytes() == (whole / "emergence.csv").read_bytes()
    assert results(tmp_path / "run") == results(whole)


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_records(data: Path, tmp_path: Path) -> None:
    arguments = ["train", MODEL, "--data", str(data), *SMALL, "--epochs", "30", *PROBED, "--save-every", "5"]
    assert run([*arguments, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    records = out / "emergence.csv"
    command = [*arguments, "--out", str(out)]
    beyond = 0
    for steps in (9, 31, 52):
        process = subprocess.Popen(
            [sys.executable, "-m", "nlprobe", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not (records.exists() and pd.read_csv(records)["step"].max() >= steps):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.communicate()
        at = load_state(out)["progress"]
        beyond += int(read_emergence(records)["step"].max() > 3 * at["epoch"] + at["step"])
        command = ["train", "--resume", "--out", str(out)]
    assert beyond, "no kill left records of steps that the state does not know"
    assert run(command) == 0
    assert records.read_bytes() == (tmp_path / "whole" / "emergence.csv").read_bytes()
    assert results(out) == results(tmp_path / "whole")
    assert not list(out.glob(".*partial"))


def test_a_network_without_a_site_is_refused_before_anything_is_written(data: Path, tmp_path: Path, capsys) -> None:
    assert train(data, tmp_path / "run", *PROBED, model="miniature-imagenet/resnet") == 2
    assert "has no attention site, so `--probe-every` has nothing to measure" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_probe_set_or_is_refused(data: Path, tmp_path: Path, whole: Path, capsys) -> None:
    arguments = ["train", "--resume", "--out", str(whole)]
    assert run([*arguments, "--probe-images", "5"]) == 2
    assert "the run was probed on other images: `probe.images` was 4, is now 5" in capsys.readouterr().err
    assert train(data, tmp_path / "run", "--probe-images", "5") == 2
    assert "`--probe-images` without `--probe-every`" in capsys.readouterr().err


def test_probing_can_begin_late_and_says_so(data: Path, tmp_path: Path, capsys) -> None:
    assert train(data, tmp_path / "run") == 0
    assert run(["train", "--resume", "--out", str(tmp_path / "run"), "--epochs", "3", *PROBED]) == 0
    assert "emergence.csv begins after step 6: nothing was measured before" in capsys.readouterr().err
    assert list(read_emergence(tmp_path / "run" / "emergence.csv")["step"].unique()) == [8, 9]


def test_force_removes_the_records_of_the_run_before(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "emergence.csv").write_text("old")
    assert train(data, tmp_path / "run") == 2
    assert train(data, tmp_path / "run", "--force", "--epochs", "1") == 0
    assert not (tmp_path / "run" / "emergence.csv").exists()


def test_what_cannot_be_measured_names_the_step_and_the_way_on(data: Path, tmp_path: Path, capsys) -> None:
    more = ["--learning-rate", "1e30", "--set", "schedule.warmup_epochs=0", "--probe-every", "1"]
    assert train(data, tmp_path / "run", *more) == 1
    err = capsys.readouterr().err
    assert "error: measuring after step 1: " in err
    assert "holds NaN or infinity" in err
    assert "--resume --probe-every 0" in err
    assert list(read_emergence(tmp_path / "run" / "emergence.csv")["step"].unique()) == [0]


def test_the_plan_says_what_is_measured_when(data: Path, tmp_path: Path, capsys) -> None:
    assert train(data, tmp_path / "run", *PROBED, "--dry-run") == 0
    assert "probe: every 2 steps, on 4 of 10 validation images, into emergence.csv" in capsys.readouterr().out
