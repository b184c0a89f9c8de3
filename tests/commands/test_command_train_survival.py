"""What may happen to a run of days: kills, a full disk, data that vanish. It goes on to the same bits."""

import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlprobe.checkpoints import read_checkpoint
from nlprobe.cli import run
from nlprobe.commands.training_progress import TrainingProgress
from nlprobe.data import write_miniature_imagenet
from nlprobe.training import Engine
from nlprobe.training.state import load_state

MODEL = "miniature-imagenet/resnet-nl"
SMALL = ["--batch-size", "8", "--device", "cpu", "--set", "preprocessing.crop=32", "--set", "preprocessing.resize=32"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_miniature_imagenet(tmp_path / "data", train=30, val=10)


def arguments(data: Path, out: Path, epochs: int) -> list[str]:
    return ["train", MODEL, "--data", str(data), "--out", str(out), "--epochs", str(epochs), *SMALL]


def results(folder: Path) -> dict[str, object]:
    """All that a run leaves, but for what depends on the clock."""
    found: dict[str, object] = {
        name: (folder / name).read_bytes() for name in ("best.safetensors", "last.safetensors", "curves.csv")
    }
    found["log"] = [line.split(",")[:7] for line in (folder / "log.csv").read_text().splitlines()]
    return found


@pytest.fixture(scope="module")
def processes() -> Iterator[multiprocessing.context.ForkServerContext]:
    """Processes that have imported torch already, so that ten of them start in a second and not in a minute."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nlprobe.commands.train", "nlprobe.plots.curves"])
    yield context
    if before is None:
        del os.environ["OMP_NUM_THREADS"]


def wait_for(path: Path, process: multiprocessing.Process) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_ten_kills_at_random_moments_end_in_the_same_bits(
    data: Path, tmp_path: Path, processes: multiprocessing.context.ForkServerContext
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    epochs = 100
    process = processes.Process(target=run, args=(arguments(data, whole, epochs),))
    started = time.monotonic()
    process.start()
    process.join()
    longest = (time.monotonic() - started) / 12  # the machine may be busier now than during the kills

    moments = random.Random(0)
    places = []
    fresh = [*arguments(data, killed, epochs), "--save-every", "2"]
    resume = ["train", "--resume", "--out", str(killed)]
    for number in range(10):
        process = processes.Process(target=run, args=(resume if number else fresh,))
        process.start()
        wait_for(killed / "run.toml", process)
        if not number:
            wait_for(killed / "state.pt", process)
        time.sleep(moments.uniform(0.0, longest))
        assert process.is_alive(), "the run is over before its last kill: make it longer"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        at = load_state(killed)["progress"]
        places.append((at["epoch"], at["step"]))
        if at["epoch"]:
            read_checkpoint(killed / "last.safetensors")
            read_checkpoint(killed / "best.safetensors")
    assert places == sorted(places)
    assert len(set(places)) > 3
    assert any(step for _, step in places)

    process = processes.Process(target=run, args=(resume,))
    process.start()
    process.join()
    assert results(killed) == results(whole)
    assert not list(killed.glob(".*partial"))


def on_tmpfs(*options: str) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True, text=True, check=False)
    if mounted.returncode:
        assert "CI" not in os.environ, f"CI has to be able to mount a tmpfs: {mounted.stderr}"
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_words_and_room_lets_it_go_on(data: Path, tmp_path: Path, capsys) -> None:
    whole, disk = tmp_path / "whole", tmp_path / "disk"
    assert run(arguments(data, whole, 3)) == 0
    disk.mkdir()
    # A run takes 11.5 MB, and 5.7 more while it writes its next state.
    on_tmpfs("-o", "size=16m", "tmpfs", str(disk))
    try:
        out = disk / "run"
        assert run(arguments(data, out, 3)) == 4
        err = capsys.readouterr().err
        assert f"error: `{out / 'state.pt'}` cannot be written: No space left on device" in err
        assert "hint: free some space" in err
        assert load_state(out)["progress"]["epoch"] == 1
        read_checkpoint(out / "last.safetensors")
        assert not list(out.glob(".*partial"))
        on_tmpfs("-o", "remount,size=64m", "tmpfs", str(disk))
        assert run(["train", "--resume", "--out", str(out)]) == 0
        assert results(out) == results(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_vanished_data_end_the_run_in_words_and_it_goes_on_once_they_are_back(
    data: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    whole, out, away = tmp_path / "whole", tmp_path / "run", tmp_path / "away"
    assert run(arguments(data, whole, 3)) == 0
    done = TrainingProgress.step_done

    def step_done(self: TrainingProgress, engine: Engine) -> None:
        done(self, engine)
        if engine.progress.epoch == 1 and data.exists():
            data.rename(away)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingProgress, "step_done", step_done)
        assert run([*arguments(data, out, 3), "--workers", workers]) == 4
    err = capsys.readouterr().err
    assert "of a batch can be read" in err or "no image of the data set can be read" in err
    assert "Traceback" not in err
    assert load_state(out)["progress"]["epoch"] == 1
    away.rename(data)
    assert run(["train", "--resume", "--out", str(out)]) == 0
    assert results(out) == results(whole)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert run(arguments(data, out, 1)) == 0
    assert run(["train", "--resume", "--out", str(out), "--epochs", "9", "--learning-rate", "1e30"]) == 1
    err = capsys.readouterr().err
    assert "error: the loss is" in err
    assert "step " in err
    assert "images that begins with `" in err
    assert load_state(out)["progress"]["epoch"] == 1
    assert read_checkpoint(out / "last.safetensors").metadata["epoch"] == 1
