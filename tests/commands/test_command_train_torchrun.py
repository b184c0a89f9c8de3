"""`torchrun -m nlprobe train` with two real processes: the same weights as one, and what happens when one dies."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nlprobe.cli import run
from nlprobe.data import write_miniature_cityscapes, write_miniature_imagenet
from nlprobe.emergence import read_emergence
from nlprobe.training.state import load_state

pytestmark = pytest.mark.slow

# Without batch norm statistics over a batch, which gloo processes cannot share.
MODEL = "miniature-imagenet/resnet-gc"
SMALL = ["--device", "cpu", "--batch-size", "8", "--set", "batch_norm=frozen", "--workers", "1"]
SMALL += ["--set", "preprocessing.crop=32", "--set", "preprocessing.resize=32"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Five batches to validate on, so that the two processes have different numbers of them.
    return write_miniature_imagenet(tmp_path_factory.mktemp("data"), train=40, val=40)


def start(*arguments: str, processes: int = 2) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = torchrun if processes > 1 else [sys.executable]
    return subprocess.Popen(
        [*command, "-m", "nlprobe", "train", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def new(data: Path, out: Path, epochs: int = 2) -> list[str]:
    return [MODEL, "--data", str(data), "--out", str(out), "--epochs", str(epochs), *SMALL]


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("best.safetensors", "last.safetensors")}


def measured(folder: Path) -> list[list[float]]:
    return [[float(x) for x in line.split(",")[:7]] for line in (folder / "log.csv").read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing happened to, six epochs long."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, stdout, err = finish(start(*new(data, out, 6), "--accumulate", "2"))
    assert code == 0, err
    assert stdout.count("The best epoch") == 1
    assert err.count("effective batch: 8 images = 2 processes × 2 parts × 2") == 1
    assert err.count("epoch 2/6: loss") == 1
    return out


def test_two_processes_learn_what_one_learns(data: Path, tmp_path: Path, whole: Path) -> None:
    code, _, err = finish(start(*new(data, tmp_path / "one", 6), processes=1))
    assert code == 0, err
    # Loss and scores of every epoch, in training and validation.
    for one, two in zip(measured(tmp_path / "one"), measured(whole), strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    one, two = load_file(tmp_path / "one" / "last.safetensors"), load_file(whole / "last.safetensors")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6, msg=name)


def test_two_processes_score_streets_as_one_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The head's norms and dropout see a process's own images, so the weights are not those of one process.
    streets, out = write_miniature_cityscapes(tmp_path / "data", train=16, val=5), tmp_path / "run"
    small = ["--device", "cpu", "--batch-size", "4", "--epochs", "1", "--set", "augmentation.crop=64"]
    code, _, err = finish(start("miniature-cityscapes/resnet-gc", "--data", str(streets), "--out", str(out), *small))
    assert code == 0, err
    (logged,) = csv.DictReader((out / "log.csv").read_text().splitlines())
    last = out / "last.safetensors"
    assert run(["eval", "--ckpt", str(last), "--data", str(streets), "--device", "cpu", "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["images"] == 5
    # A pixel whose two best classes are equal but for rounding may fall either way.
    for name in ("miou", "pixel_accuracy", "loss"):
        assert row[name] == pytest.approx(float(logged[f"val_{name}"]), rel=1e-4), name


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank_of(pid: int) -> str:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(pair for pair in pairs if pair.startswith(b"RANK=")).decode().removeprefix("RANK=")


def test_a_killed_process_ends_the_others_in_words_and_the_run_goes_on_to_the_same_bits(
    data: Path, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    process = start(*new(data, out, 6), "--accumulate", "2", "--save-every", "2")
    wait_for(out / "state.pt", process)
    (victim,) = [pid for pid in children(process.pid) if rank_of(pid) == "1"]
    os.kill(victim, signal.SIGKILL)
    code, stdout, err = finish(process)
    assert code != 0
    assert stdout == ""
    assert "error: process 0 of 2 lost another one in epoch" in err
    assert "--resume" in err
    assert load_state(out)["progress"]["epoch"] < 6
    code, _, err = finish(start("--resume", "--out", str(out)))
    assert code == 0, err
    assert "going on in epoch" in err
    assert files(out) == files(whole)
    assert measured(out) == measured(whole)


def test_two_processes_measure_on_the_way_and_a_killed_run_goes_on_to_the_same_records(
    data: Path, tmp_path: Path, whole: Path
) -> None:
    probed = ["--accumulate", "2", "--probe-every", "4", "--probe-images", "6"]
    code, _, err = finish(start(*new(data, tmp_path / "probed", 6), *probed))
    assert code == 0, err
    assert err.count("probed after step 0") == 1
    assert files(tmp_path / "probed") == files(whole)
    records = read_emergence(tmp_path / "probed" / "emergence.csv")
    assert list(records["step"].unique()) == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    out = tmp_path / "killed"
    process = start(*new(data, out, 6), *probed, "--save-every", "2")
    wait_for(out / "state.pt", process)
    (victim,) = [pid for pid in children(process.pid) if rank_of(pid) == "0"]
    os.kill(victim, signal.SIGKILL)
    assert finish(process)[0] != 0
    code, _, err = finish(start("--resume", "--out", str(out)))
    assert code == 0, err
    assert (out / "emergence.csv").read_bytes() == (tmp_path / "probed" / "emergence.csv").read_bytes()
    assert files(out) == files(whole)


def test_ctrl_c_stops_all_processes_at_one_step_and_the_run_goes_on_to_the_same_bits(
    data: Path, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    process = start(*new(data, out, 6), "--accumulate", "2")
    wait_for(out / "state.pt", process)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code != 0
    assert err.count("stopped in epoch") == 1
    assert "lost another one" not in err
    code, _, err = finish(start("--resume", "--out", str(out)))
    assert code == 0, err
    assert files(out) == files(whole)
    assert measured(out) == measured(whole)


def test_synchronised_batch_norm_on_cpus_is_refused_in_words_once(data: Path, tmp_path: Path) -> None:
    code, _, err = finish(start(*new(data, tmp_path / "run"), "--set", "batch_norm=sync"))
    assert code != 0
    assert err.count("error: batch norm cannot be synchronised between processes on the device `cpu`") == 1
    assert "exitcode  : 2 " in err
    assert not (tmp_path / "run").exists()
