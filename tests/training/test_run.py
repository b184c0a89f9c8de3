"""A run's folder: checkpoints that read by themselves, a log, and a state from which it goes on."""

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from nlprobe.checkpoints import fingerprint, initial_model, read_checkpoint
from nlprobe.errors import ConfigError, DataError
from nlprobe.training import Engine, Observer, keeping
from nlprobe.training.keeping import Keeper
from nlprobe.training.run import Run, refuse_incompatible
from nlprobe.training.state import load_state, save_state

CPU = torch.device("cpu")
VERSIONS = {"torch": "0"}


def keeper(run: Run, folder: Path) -> Keeper:
    return Keeper(folder, run.metadata(VERSIONS), {"resolved": run.settings()})


def test_checkpoints_say_all_about_themselves(make_run, tmp_path: Path) -> None:
    run = make_run()
    run.engine(CPU, observers=[keeper(run, tmp_path)]).train()
    last = read_checkpoint(tmp_path / "last.safetensors")
    metadata = last.metadata
    assert metadata["epoch"] == 3
    assert metadata["classes"] == ["level", "upright"]
    assert metadata["recipe"] == run.recipe.as_dict()
    assert metadata["preprocessing"]["crop"] == 32
    assert set(metadata["metrics"]) == {"loss", "top1"}
    assert metadata["data"] == {"root": "stripes", "images": 40, "sha256": run.data["sha256"]}
    assert metadata["seed"] == 0
    assert metadata["versions"] == VERSIONS
    assert fingerprint(initial_model(last)) == metadata["initial_fingerprint"] == fingerprint(run.build())
    best = read_checkpoint(tmp_path / "best.safetensors").metadata
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert (
        float(rows[best["epoch"] - 1]["val_top1"])
        == best["metrics"]["top1"]
        == max(float(row["val_top1"]) for row in rows)
    )


def test_a_run_goes_on_from_its_folder_to_the_same_files(make_run, tmp_path: Path) -> None:
    class Stop(Observer):
        def step_done(self, engine: Engine) -> None:
            if (engine.progress.epoch, engine.progress.step) == (1, 3):
                os.kill(os.getpid(), signal.SIGINT)

    run = make_run()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run.engine(CPU, observers=[keeper(run, whole)]).train()
    with pytest.raises(KeyboardInterrupt):
        run.engine(CPU, observers=[Stop(), keeper(run, parts)]).train()
    state = load_state(parts)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 3)
    engine = run.engine(CPU, observers=[keeper(run, parts)])
    engine.load_state(state)
    engine.train()
    for name in ("last.safetensors", "best.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_a_crash_between_checkpoint_and_state_repeats_the_epoch(make_run, tmp_path: Path, monkeypatch) -> None:
    run = make_run()
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    run.engine(CPU, observers=[keeper(run, whole)]).train()

    def crash(folder: Path, state: dict[str, Any]) -> None:
        if state["progress"]["epoch"] == 2:
            raise DataError("the disk is full")
        save_state(folder, state)

    with monkeypatch.context() as patched:
        patched.setattr(keeping, "save_state", crash)
        with pytest.raises(DataError):
            run.engine(CPU, observers=[keeper(run, crashed)]).train()
    state = load_state(crashed)
    assert state["progress"]["epoch"] == 1
    engine = run.engine(CPU, observers=[keeper(run, crashed)])
    engine.load_state(state)
    engine.train()
    assert (whole / "best.safetensors").read_bytes() == (crashed / "best.safetensors").read_bytes()


def test_settings_that_may_not_change_are_named() -> None:
    with pytest.raises(ConfigError, match="started with `seed` 0, not 1"):
        refuse_incompatible({"seed": (0, 1)}, 0)
    with pytest.raises(ConfigError, match=r"`config\.width`"):
        refuse_incompatible({"config.width": (4, 8)}, 0)
    with pytest.raises(ConfigError, match=r"within an epoch.*`recipe\.batch_size`"):
        refuse_incompatible({"recipe.batch_size": (8, 16)}, 3)
    refuse_incompatible({"recipe.batch_size": (8, 16), "recipe.epochs": (3, 5)}, 0)
    refuse_incompatible({"recipe.epochs": (3, 5)}, 3)


def test_settings_are_flat_and_complete(make_run) -> None:
    settings = make_run(optimiser__momentum=0.5).settings()
    assert settings["recipe.optimiser.momentum"] == 0.5
    assert settings["config.width"] == 4
    assert settings["data.images"] == 40
    assert settings["seed"] == 0
