"""Our checkpoints: the round trip, and the words for everything that is not one."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import nlprobe.checkpoints.native as native
from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.checkpoints import (
    checkpoint_file,
    fingerprint,
    initial_model,
    load,
    read_checkpoint,
    save_checkpoint,
)
from nlprobe.errors import CheckpointError, DataError
from nlprobe.models import Insertion, ResNet, ResNetConfig, build

CONFIG = ResNetConfig(
    layers=(1, 1, 2, 1),
    width=8,
    classes=3,
    insertions=(
        Insertion(NonLocalConfig(zero_init=False), "c4", (-2,), "after_add"),
        Insertion(ContextConfig.gc(4), "c5"),
    ),
)


def trained(seed: int = 7) -> ResNet:
    """A network whose weights and running statistics are no longer those of its seed."""
    network = build(CONFIG, seed=seed)
    with torch.no_grad():
        network(torch.randn(2, 3, 64, 64))
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return network


def described(seed: int = 7) -> dict[str, Any]:
    return {
        "model": None,
        "config": CONFIG.as_dict(),
        "recipe": {"name": "miniature-imagenet", "epochs": 8},
        "preprocessing": {"resize": 146, "crop": 128, "mean": [0.5, 0.5, 0.5]},
        "classes": ["zero", "eins", "二"],
        "metrics": {"top1": 0.875},
        "data": {"root": "miniature", "images": 4000},
        "versions": {"nlprobe": "0.1.0", "torch": "2.14.1"},
        "seed": seed,
        "epoch": 8,
        "initial_fingerprint": fingerprint(build(CONFIG, seed=seed)),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, trained(), described())
    return path


def rewrite(path: Path, change: Any) -> None:
    """Write the file again with what `change` makes of its tensors and metadata."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()["nlprobe"])
    change(tensors, metadata)
    save_file(tensors, path, {"nlprobe": json.dumps(metadata)})


def test_weights_statistics_and_metadata_make_the_round_trip(tmp_path: Path) -> None:
    network = trained()
    save_checkpoint(tmp_path / "last.safetensors", network, described())
    read = read_checkpoint(tmp_path / "last.safetensors")
    assert fingerprint(read.model) == fingerprint(network)
    assert read.metadata == {**described(), "format": "nlprobe", "format_version": 1}
    assert read.path == tmp_path / "last.safetensors"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(read.model(images), network.eval()(images))


def test_the_network_comes_in_evaluation_mode_and_on_the_device(path: Path, device: torch.device) -> None:
    read = read_checkpoint(path, device)
    assert not any(module.training for module in read.model.modules())
    assert next(read.model.parameters()).device.type == device.type
    assert not load(path).training


def test_reading_leaves_the_global_random_state(path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    read_checkpoint(path)
    assert torch.equal(torch.rand(2), expected)


def test_equal_content_gives_equal_bytes(path: Path, tmp_path: Path) -> None:
    shuffled = dict(reversed(list(described().items())))
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "a.safetensors", trained(), described())
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "b.safetensors", trained(), shuffled)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_network_in_another_memory_layout_is_the_same_file(tmp_path: Path) -> None:
    network = trained()
    save_checkpoint(tmp_path / "a.safetensors", network, described())
    save_checkpoint(tmp_path / "b.safetensors", network.to(memory_format=torch.channels_last), described())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_folder_means_its_best_else_its_last_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.safetensors", trained(), {**described(), "epoch": 9})
    assert read_checkpoint(tmp_path).metadata["epoch"] == 9
    save_checkpoint(tmp_path / "best.safetensors", trained(), described())
    assert checkpoint_file(tmp_path) == tmp_path / "best.safetensors"
    assert read_checkpoint(str(tmp_path)).metadata["epoch"] == 8


def test_the_network_before_training_is_rebuilt_from_the_seed(path: Path) -> None:
    network = initial_model(read_checkpoint(path))
    assert fingerprint(network) == fingerprint(build(CONFIG, seed=7))
    assert not network.training


def test_a_training_that_began_elsewhere_has_no_network_before_it(path: Path) -> None:
    rewrite(path, lambda tensors, metadata: metadata.update(seed=8))
    with pytest.raises(CheckpointError, match=r"seed 8 does not give the weights(.|\n)*nlprobe 0.1.0, torch 2.14.1"):
        initial_model(read_checkpoint(path))
    rewrite(path, lambda tensors, metadata: metadata.pop("seed"))
    with pytest.raises(CheckpointError, match=r"does not say from which seed"):
        initial_model(read_checkpoint(path))


def test_a_fingerprint_sees_names_types_shapes_and_every_bit() -> None:
    network = trained()
    first = fingerprint(network)
    assert first == fingerprint(network.to(memory_format=torch.channels_last))
    with torch.no_grad():
        network.fc.bias[0] = torch.nextafter(network.fc.bias[0], torch.tensor(9.0))
    assert fingerprint(network) != first
    assert len({fingerprint(torch.nn.Linear(2, 3).to(kind)) for kind in (torch.float32, torch.bfloat16)}) == 2


def test_a_missing_file_names_what_is_there(path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path.parent / "bset.safetensors")
    assert "bset.safetensors` is not there" in error.value.cause
    assert "`best.safetensors`" in error.value.remedy
    with pytest.raises(CheckpointError, match=r"is not there"):
        read_checkpoint(path.parent / "nowhere" / "best.safetensors")


def test_a_folder_without_a_checkpoint_names_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither `best.safetensors` nor `last.safetensors`"):
        read_checkpoint(tmp_path)
    save_checkpoint(tmp_path / "epoch-3.safetensors", trained(), described())
    with pytest.raises(CheckpointError, match=r"it has `epoch-3.safetensors`: name the file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 200, -1])
def test_a_truncated_file_is_refused(path: Path, left: int) -> None:
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"is empty" if left == 0 else "is truncated or not a safetensors file"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content, words",
    [
        (pickle.dumps({"a": 1}), "is a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs did not fetch"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"epoch,loss\n0,2.3\n", "is truncated or not a safetensors file"),
    ],
)
def test_files_that_are_given_by_mistake_are_called_by_their_kind(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(path)


def test_a_file_of_torch_save_is_refused_unread(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"a file of `torch.save`, not a checkpoint of nlprobe"):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"nlprobe": "no JSON"}, {"nlprobe": "[1]"}])
def test_safetensors_of_another_project_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file(trained().state_dict(), tmp_path / "model.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"of another project"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_another_format_version_names_the_version_that_wrote_it(path: Path) -> None:
    rewrite(path, lambda tensors, metadata: metadata.update(format_version=2))
    with pytest.raises(CheckpointError, match=r"format version 2; this nlprobe reads version 1(.|\n)*nlprobe 0.1.0"):
        read_checkpoint(path)


def test_a_missing_weight_is_named_with_the_nearest_that_is_there(path: Path) -> None:
    def rename(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        tensors["layer3.0.after_add.theta.weight"] = tensors.pop("layer3.0.after_add.query.weight")

    rewrite(path, rename)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert "lacks `layer3.0.after_add.query.weight` of the model" in error.value.cause
    assert "holds `layer3.0.after_add.theta.weight`" in error.value.cause
    assert error.value.remedy.endswith("`layer3.0.after_add.theta.weight`")


def test_a_left_over_weight_is_named(path: Path) -> None:
    rewrite(path, lambda tensors, metadata: tensors.update(extra=torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"holds `extra` that the model does not have"):
        read_checkpoint(path)


def test_weights_of_another_width_are_refused(path: Path) -> None:
    rewrite(path, lambda tensors, metadata: metadata["config"].update(classes=4))
    with pytest.raises(CheckpointError, match=r"`fc.(weight|bias)` has the shape \(3,.*\(4,"):
        read_checkpoint(path)


def test_a_network_that_this_version_does_not_know_is_named(path: Path) -> None:
    rewrite(path, lambda tensors, metadata: metadata["config"].update(dilations=[1, 1, 2, 4]))
    with pytest.raises(CheckpointError, match=r"does not know: .*`dilations`(.|\n)*written by nlprobe 0.1.0"):
        read_checkpoint(path)


def test_a_file_without_a_configuration_is_refused(path: Path) -> None:
    rewrite(path, lambda tensors, metadata: metadata.pop("config"))
    with pytest.raises(CheckpointError, match=r"does not say of which network it is"):
        read_checkpoint(path)


def test_metadata_that_json_cannot_hold_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be written as JSON"):
        save_checkpoint(tmp_path / "x.safetensors", trained(), {**described(), "metrics": {"top1": torch.ones(1)}})
    with pytest.raises(CheckpointError, match=r"no `config`"):
        save_checkpoint(tmp_path / "x.safetensors", trained(), {"seed": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full_disk(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(DataError, match=r"No space left on device"):
        save_checkpoint(path, trained(1), described(1))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_may_not_be_read_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read: Permission denied"):
        read_checkpoint(path)


def test_nothing_is_ever_unpickled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    assert native.read_checkpoint(path).metadata["epoch"] == 8
