"""`nlprobe train`: runs, resumes, refuses; in process, and the real kills in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nlprobe.checkpoints import read_checkpoint
from nlprobe.cli import run
from nlprobe.commands import train as train_command
from nlprobe.commands.training_progress import TrainingProgress
from nlprobe.data import write_miniature_imagenet
from nlprobe.models import build, entry
from nlprobe.training import Engine, recipe

MODEL = "miniature-imagenet/resnet-nl"
SMALL = ["--batch-size", "8", "--epochs", "2", "--device", "cpu"]
SMALL += ["--set", "preprocessing.crop=32", "--set", "preprocessing.resize=32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_imagenet(tmp_path_factory.mktemp("data"), train=30, val=10)


def train(data: Path, out: Path, *more: str) -> int:
    return run(["train", MODEL, "--data", str(data), "--out", str(out), *SMALL, *more])


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("best.safetensors", "last.safetensors")}


def losses(folder: Path) -> list[list[str]]:
    return [line.split(",")[:7] for line in (folder / "log.csv").read_text().splitlines()]


@pytest.fixture
def interrupted_after(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C after so many steps, by a real signal."""

    def arrange(steps: int) -> None:
        done = TrainingProgress.step_done

        def step_done(self: TrainingProgress, engine: Engine) -> None:
            done(self, engine)
            if engine.progress.epoch * engine.steps_per_epoch + engine.progress.step == steps:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(TrainingProgress, "step_done", step_done)

    return arrange


def test_a_run_leaves_checkpoints_log_and_settings_and_prints_the_best_epoch(
    data: Path, tmp_path: Path, capsys
) -> None:
    assert train(data, tmp_path / "run", "--format", "json") == 0
    out, err = capsys.readouterr()
    (best,) = json.loads(out)
    assert set(best) == {"run", "epoch", "loss", "top1", "top5"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "best.safetensors",
        "curves.csv",
        "curves.pdf",
        "curves.png",
        "curves.svg",
        "last.safetensors",
        "log.csv",
        "run.toml",
        "state.pt",
    }
    assert "epoch 2/2: loss" in err
    assert "images/s" in err
    metadata = read_checkpoint(tmp_path / "run").metadata
    assert metadata["model"] == MODEL
    assert metadata["recipe"]["batch_size"] == 8
    assert metadata["metrics"]["top1"] == best["top1"]
    assert metadata["data"]["root"] == "imagenet"


def test_the_saved_settings_replay_the_run(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "run") == 0
    settings = str(tmp_path / "run" / "run.toml")
    assert run(["train", "--config", settings, "--out", str(tmp_path / "again")]) == 0
    assert files(tmp_path / "run") == files(tmp_path / "again")


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_bits(
    data: Path, tmp_path: Path, interrupted_after, monkeypatch: pytest.MonkeyPatch, capsys, steps: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(data, whole) == 0
    with monkeypatch.context():
        interrupted_after(steps)
        assert train(data, parts) == 130
    assert f"go on with: nlprobe train --resume --out {parts}" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--resume", "--out", "parts"]) == 0
    assert files(whole) == files(parts)
    assert losses(whole) == losses(parts)


def test_resume_says_which_settings_differ(data: Path, tmp_path: Path, capsys) -> None:
    assert train(data, tmp_path / "run") == 0
    arguments = ["train", "--resume", "--out", str(tmp_path / "run")]
    assert run(arguments) == 0
    assert "the run is complete, with 2 epochs" in capsys.readouterr().err
    assert run([*arguments, "--epochs", "3", "--learning-rate", "0.02"]) == 0
    err = capsys.readouterr().err
    assert "`recipe.epochs` was 2, is now 3" in err
    assert "`recipe.optimiser.learning_rate` was 0.05, is now 0.02" in err
    assert len(losses(tmp_path / "run")) == 4


def test_resume_refuses_another_model_seed_or_order_within_an_epoch(
    data: Path, tmp_path: Path, interrupted_after, capsys
) -> None:
    interrupted_after(4)
    assert train(data, tmp_path / "run") == 130
    arguments = ["train", "--resume", "--out", str(tmp_path / "run")]
    assert run([*arguments, "--seed", "1"]) == 2
    assert run(["train", "miniature-imagenet/resnet-gc", *arguments[1:]]) == 2
    assert run([*arguments, "--batch-size", "4"]) == 2
    assert run([*arguments, "--force"]) == 2
    err = capsys.readouterr().err
    assert "started with `seed` 0, not 1" in err
    assert "order of images hangs on `recipe.batch_size`" in err


def test_a_run_is_not_overwritten_without_force(data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert train(data, out) == 0
    before = files(out)
    (out / "notes.txt").write_text("mine")
    assert train(data, out, "--seed", "1") == 2
    assert "--resume" in capsys.readouterr().err
    assert files(out) == before
    assert train(data, out, "--seed", "1", "--force") == 0
    assert files(out) != before
    assert (out / "notes.txt").read_text() == "mine"


def test_dry_run_prints_the_plan_and_writes_nothing(data: Path, tmp_path: Path, capsys) -> None:
    assert train(data, tmp_path / "run", "--dry-run") == 0
    plan = capsys.readouterr().out
    for part in ("layer3.0:after_add", "30 images to train on and 10", "2 epochs of 3 steps of 8", "crop 32", "seed 0"):
        assert part in plan
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_named_and_counted(tmp_path: Path, capsys) -> None:
    root = write_miniature_imagenet(tmp_path, train=30, val=10)
    bad = next(root.glob("train/4_four/*"))
    bad.write_bytes(b"gone")
    assert train(root, tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert err.count(bad.name) == 1
    assert "images that could not be read and were left out: 1" in err


def test_another_folder_may_hold_the_validation_images(data: Path, tmp_path: Path, capsys) -> None:
    assert train(data / "train", tmp_path / "run") == 2
    assert "--val-data" in capsys.readouterr().err
    assert train(data / "train", tmp_path / "run", "--val-data", str(data / "val")) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no model is named"),
        ([MODEL], 2, "no data are given"),
        (["miniature-imagenet/resnet-n", "--data", "DATA"], 2, "did you mean `miniature-imagenet/resnet-nl`"),
        ([MODEL, "--data", "DATA", "--recipe", "imagnet"], 2, "did you mean `imagenet`"),
        ([MODEL, "--data", "DATA", "--set", "optimizer.momentum=0.8"], 2, "did you mean `optimiser`"),
        ([MODEL, "--data", "DATA", "--set", "name=mine"], 2, "choose another recipe"),
        ([MODEL, "--data", "nowhere"], 4, "`nowhere` is not there"),
        ([MODEL, "--data", "DATA", "--batch-size", "64"], 4, "30 training images, fewer than one batch of 64"),
        (["--resume"], 4, "holds no run to go on with"),
    ],
)
def test_mistakes_are_explained(
    data: Path, tmp_path: Path, capsys, arguments: list[str], code: int, message: str
) -> None:
    given = [str(data) if argument == "DATA" else argument for argument in arguments]
    assert run(["train", *given, "--out", str(tmp_path / "run")]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_loss_that_explodes_ends_with_1_and_keeps_the_last_epoch(data: Path, tmp_path: Path, capsys) -> None:
    assert train(data, tmp_path / "run", "--learning-rate", "1e30") == 1
    assert "the loss is" in capsys.readouterr().err


def plan(data: Path, capsys, *more: str) -> str:
    assert train(data, Path("nowhere"), "--dry-run", *more) == 0
    return capsys.readouterr().out


def test_the_learning_rate_is_scaled_to_the_batch_on_request(data: Path, capsys, monkeypatch) -> None:
    """The miniature recipe has 0.05 for 32 images."""
    assert "learning rate: 0.05 (cosine" in plan(data, capsys)
    assert "learning rate: 0.0125 = 0.05 × 0.25 (cosine" in plan(data, capsys, "--scale-lr")
    assert "learning rate: 0.1 = 0.4 × 0.25" in plan(data, capsys, "--scale-lr", "--learning-rate", "0.4")
    chosen = recipe("miniature-imagenet")
    monkeypatch.setattr(train_command, "recipe", lambda name: chosen.override({"batch_size": 4}))
    assert "learning rate: 0.1 = 0.05 × 2" in plan(data, capsys, "--scale-lr")


def test_the_batch_of_a_process_may_be_given_instead(data: Path, tmp_path: Path, capsys) -> None:
    one = ["train", MODEL, "--data", str(data), "--out", str(tmp_path / "run"), "--device", "cpu", "--dry-run"]
    assert run([*one, "--batch-per-process", "4"]) == 0
    assert "effective batch: 4 images\n" in capsys.readouterr().out
    assert run([*one, "--batch-per-process", "4", "--batch-size", "4"]) == 2
    assert "give one of the two" in capsys.readouterr().err


def test_the_plan_says_what_is_special(data: Path, capsys) -> None:
    text = plan(
        data,
        capsys,
        *("--accumulate", "2", "--amp", "bf16", "--set", "frozen=['c1','c2']", "--set", "batch_norm=frozen"),
        *("--set", "optimiser.kind=adamw", "--set", "optimiser.clip_norm=2", "--set", "optimiser.rules=['fc.* lr=10']"),
    )
    for part in (
        "effective batch: 8 images = 2 parts × 4",
        "adamw, betas 0.9, 0.999, weight decay 0.0005 (not for norms and biases); fc.* lr=10, gradients clipped at 2",
        "frozen: c1, c2, all norms of the trunk",
        "device: cpu, mixed precision bf16, channels last",
    ):
        assert part in text


def test_a_run_from_pretrained_weights_goes_on_and_replays(data: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    weights = tmp_path / "trunk.pth"
    config = replace(entry(MODEL).config, insertions=(), classes=1000)
    torch.save(build(config, seed=5).state_dict(), weights)
    monkeypatch.chdir(tmp_path)
    assert train(data, tmp_path / "run", "--pretrained", "trunk.pth") == 0
    assert "pretrained: trunk.pth, without its classifier" in capsys.readouterr().err
    assert read_checkpoint(tmp_path / "run").metadata["pretrained"]["file"] == "trunk.pth"
    monkeypatch.chdir(data)
    assert run(["train", "--resume", "--out", str(tmp_path / "run"), "--epochs", "3"]) == 0
    assert train(data, tmp_path / "other", "--pretrained", str(weights), "--pretrained-classifier") == 4
    assert train(data, tmp_path / "other", "--pretrained-classifier") == 2
    assert "give --pretrained" in capsys.readouterr().err


def test_weights_are_inflated_for_networks_for_clips_alone(data: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "trunk.pth").touch()
    assert train(data, tmp_path / "run", "--pretrained", str(tmp_path / "trunk.pth"), "--inflation", "centre") == 2
    assert "`--inflation` is for networks for clips" in capsys.readouterr().err
    assert train(data, tmp_path / "run", "--inflation", "centre") == 2
    assert "give --pretrained, or leave it out" in capsys.readouterr().err


def test_published_weights_come_from_the_cache_by_name(data: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    named = ("--pretrained", "torchvision:resnet50")
    text = plan(data, capsys, *named)
    address = "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    whole = "torchvision:ResNet50_Weights.IMAGENET1K_V2"
    assert f"pretrained: {whole}, not looked into: to be fetched from {address}" in text
    assert train(data, tmp_path / "run", *named) == 4
    words = capsys.readouterr().err
    assert f"fetching {address}" in words
    assert f"cannot be fetched: no network\nhint: fetch {address} by hand and give the file" in words
    assert not (tmp_path / "run").exists()

    config = replace(entry(MODEL).config, insertions=(), classes=1000)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    torch.save(build(config, seed=5).state_dict(), tmp_path / "checkpoints" / "resnet50-11ad3fa6.pth")
    assert train(data, tmp_path / "run", *named) == 0
    assert f"pretrained: {whole} in {tmp_path}" in capsys.readouterr().err
    origin = read_checkpoint(tmp_path / "run").metadata["pretrained"]
    assert (origin["source"], origin["file"]) == (whole, "resnet50-11ad3fa6.pth")
    assert run(["train", "--resume", "--out", str(tmp_path / "run"), "--epochs", "3"]) == 0
    assert run(["train", "--config", str(tmp_path / "run" / "run.toml"), "--out", str(tmp_path / "again")]) == 0


def test_weights_for_pictures_of_other_colours_are_refused(data: Path, tmp_path: Path, capsys) -> None:
    mean = [0.48145466, 0.4578275, 0.40821073]
    assert train(data, tmp_path / "run", "--pretrained", "timm:resnet50_clip.openai") == 2
    assert f'give --set "preprocessing.mean={mean}"' in capsys.readouterr().err


def test_resume_says_that_the_number_of_processes_differs(data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert train(data, out) == 0
    state = torch.load(out / "state.pt", weights_only=True)
    state["settings"]["resolved"]["processes"] = 2
    torch.save(state, out / "state.pt")
    assert run(["train", "--resume", "--out", str(out), "--epochs", "3"]) == 0
    assert "`processes` was 2, is now 1" in capsys.readouterr().err


NLPROBE = [sys.executable, "-c", "from nlprobe.cli import main; main()"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def started(data: Path, out: Path, *more: str) -> subprocess.Popen:
    arguments = ["train", MODEL, "--data", str(data), "--out", str(out), *SMALL, "--epochs", "40", *more]
    return subprocess.Popen([*NLPROBE, *arguments], env=ONE_THREAD, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_real_ctrl_c_ends_the_step_and_says_how_to_go_on(data: Path, tmp_path: Path, workers: str) -> None:
    process = started(data, tmp_path / "run", "--workers", workers)
    wait_for(tmp_path / "run" / "state.pt", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "go on with: nlprobe train --resume" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = started(data, whole, "--epochs", "6")
    process.communicate(timeout=300)
    assert process.returncode == 0
    process = started(data, killed, "--epochs", "6")
    wait_for(killed / "state.pt", process)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    read_checkpoint(killed / "last.safetensors")
    resume = [*NLPROBE, "train", "--resume", "--out", str(killed)]
    resumed = subprocess.run(resume, env=ONE_THREAD, timeout=300, check=False)
    assert resumed.returncode == 0
    assert files(whole) == files(killed)
    assert losses(whole) == losses(killed)
