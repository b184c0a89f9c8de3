"""A run's folder: checkpoints that read by themselves, a log, and a state from which it goes on."""

import csv
import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from training_reference import CONFIG

from nlprobe.checkpoints import fingerprint, initial_model, read_checkpoint
from nlprobe.errors import CheckpointError, ConfigError, DataError
from nlprobe.models import VideoConfig, build
from nlprobe.training import Engine, Observer, keeping
from nlprobe.training.keeping import Keeper
from nlprobe.training.run import Run, refuse_incompatible
from nlprobe.training.state import clear, differences, load_state, remove_partial, save_state

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


def pretrained_file(folder: Path, classes: int, suffix: str) -> Path:
    """Weights of the trunk alone, as torchvision would have saved them."""
    trunk = build(replace(CONFIG, classes=classes, insertions=()), seed=99)
    if suffix == ".pth":
        torch.save(trunk.state_dict(), folder / "trunk.pth")
    else:
        save_file(trunk.state_dict(), folder / "trunk.safetensors")
    return folder / f"trunk{suffix}"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_run_begins_with_pretrained_weights_and_says_so(make_run, tmp_path: Path, suffix: str) -> None:
    own, path = make_run(), pretrained_file(tmp_path, 1000, suffix)
    run = replace(own, pretrained=path)
    begun, drawn = run.build().state_dict(), own.build().state_dict()
    trunk = build(replace(CONFIG, classes=1000, insertions=()), seed=99).state_dict()
    for name, value in begun.items():
        expected = drawn if name.startswith(("fc.", "layer2.0.after_add.")) else trunk
        assert torch.equal(value, expected[name])
    metadata = run.metadata(VERSIONS)
    assert metadata["pretrained"]["file"] == path.name
    assert metadata["pretrained"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert metadata["initial_fingerprint"] == fingerprint(run.build()) != fingerprint(own.build())
    with pytest.raises(ConfigError, match=r"started with `pretrained\.sha256`"):
        refuse_incompatible(differences(own.settings(), run.settings()), 0)


def test_the_classifier_comes_along_on_request_and_has_to_fit(make_run, tmp_path: Path) -> None:
    two = replace(make_run(), pretrained=pretrained_file(tmp_path, 2, ".pth"), classifier=True)
    assert torch.equal(two.build().fc.weight, build(replace(CONFIG, insertions=()), seed=99).fc.weight)
    thousand = replace(two, pretrained=pretrained_file(tmp_path, 1000, ".pth"))
    with pytest.raises(CheckpointError, match=r"`fc\.weight` has the shape"):
        thousand.build()


def test_a_network_for_clips_begins_with_inflated_weights_and_keeps_to_the_way(make_run, tmp_path: Path) -> None:
    clips = VideoConfig(backbone=replace(CONFIG, classes=0), classes=2)
    path = pretrained_file(tmp_path, 1000, ".safetensors")
    mean = replace(make_run(), config=clips, pretrained=path)
    centre = replace(mean, inflation="centre")
    kernel = build(replace(CONFIG, classes=1000, insertions=()), seed=99).layer4[0].conv1.weight
    torch.testing.assert_close(mean.build().layer4[0].conv1.weight, (kernel / 3).unsqueeze(2).repeat(1, 1, 3, 1, 1))
    assert torch.equal(centre.build().layer4[0].conv1.weight[:, :, 1], kernel)
    assert centre.metadata(VERSIONS)["pretrained"]["inflation"] == "centre"
    assert "inflation" not in replace(make_run(), pretrained=path).origin
    with pytest.raises(ConfigError, match=r"started with `pretrained\.inflation` mean, not centre"):
        refuse_incompatible(differences(mean.settings(), centre.settings()), 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimiser__kind": "adamw"},
        {"optimiser__rules": ["fc.* lr=2"]},
        {"optimiser__decay_norms": False},
        {"frozen": ["c1"]},
        {"batch_norm": "frozen"},
    ],
)
def test_what_the_optimisers_memory_hangs_on_may_not_change(make_run, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the run was started with `recipe"):
        refuse_incompatible(differences(make_run().settings(), make_run(**settings).settings()), 0)


def test_the_state_is_kept_within_epochs_on_request(make_run, tmp_path: Path) -> None:
    run, seen = make_run(epochs=2), []

    class Look(Observer):
        def step_done(self, engine: Engine) -> None:
            if (tmp_path / "state.pt").exists():
                at = load_state(tmp_path)["progress"]
                seen.append((engine.progress.epoch, engine.progress.step, at["epoch"], at["step"]))

    kept = Keeper(tmp_path, run.metadata(VERSIONS), {}, save_every=2)
    run.engine(CPU, observers=[kept, Look()]).train()
    # Steps are counted through: 2, 4, the epoch's end after 5, then 6 and 8.
    within = [(0, 2, 0, 2), (0, 3, 0, 2), (0, 4, 0, 4), (0, 5, 0, 4)]
    assert seen == [*within, (1, 1, 1, 1), (1, 2, 1, 1), (1, 3, 1, 3), (1, 4, 1, 3), (1, 5, 1, 3)]


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    for name in (".state.pt.x1.partial", ".best.safetensors.y2.partial", ".mine.partial", "notes.txt", "log.csv"):
        (tmp_path / name).write_text("")
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".mine.partial", "notes.txt", "log.csv"}
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".mine.partial", "notes.txt"}
