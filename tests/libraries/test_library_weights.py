"""Weights from files of all kinds, and what is said of those that do not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nlprobe.errors import CheckpointError
from nlprobe.libraries.weights import load_weights, read_weights


class Small(nn.Module):
    """A layer, a norm, and a buffer that it computes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("index", torch.arange(4), persistent=False)


def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return Small().state_dict()


def fits(path: Path) -> bool:
    model = Small()
    load_weights(model, path)
    return all(torch.equal(state()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "held",
    [
        lambda: state(),
        lambda: {"state_dict": state(), "epoch": 3},
        lambda: {"model": state()},
        lambda: {"model": {f"module.{name}": tensor for name, tensor in state().items()}},
        lambda: state() | {"index": torch.zeros(7)},
        lambda: {name: tensor for name, tensor in state().items() if name != "norm.num_batches_tracked"},
    ],
    ids=["plain", "state_dict", "model", "distributed", "computed buffer", "older than torch 0.4.1"],
)
def test_a_state_dict_is_found_in_what_training_scripts_write(held, tmp_path: Path) -> None:
    torch.save(held(), tmp_path / "weights.pth")
    assert fits(tmp_path / "weights.pth")


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "weights.safetensors")
    assert fits(tmp_path / "weights.safetensors")


def test_several_state_dicts_in_a_file_are_not_chosen_from(tmp_path: Path) -> None:
    torch.save({"model": state(), "model_ema": state()}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="holds several state dicts: `model`, `model_ema`"):
        read_weights(tmp_path / "weights.pth")


def test_a_mismatch_tells_the_nearest_names_and_changes_nothing(tmp_path: Path) -> None:
    renamed = {name.replace("first", "firzt"): tensor for name, tensor in state().items()}
    torch.save(renamed, tmp_path / "weights.pth")
    model = Small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "weights.pth")
    assert "lacks `first.weight` and 1 more of the network and holds `firzt.weight` and 1 more" in caught.value.cause
    assert caught.value.remedy == "nearest to `first.weight` in the file: `firzt.weight`"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_part_of_a_network_is_called_a_part(tmp_path: Path) -> None:
    torch.save({"first.weight": torch.zeros(2, 3), "first.bias": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="a part of the network only"):
        load_weights(Small(), tmp_path / "weights.pth")


def test_another_shape_is_refused(tmp_path: Path) -> None:
    torch.save(state() | {"first.bias": torch.zeros(5)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"`first.bias` has the shape \(5,\) in .* and \(2,\) in the network"):
        load_weights(Small(), tmp_path / "weights.pth")


class Payload:
    """Something that only unsafe unpickling would make."""


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "is not there"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b"PK nonsense"), "is not unpickled|cannot be read"),
        (lambda path: torch.save(Payload(), path), "holds more than tensors"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no state dict but a dictionary with `epoch`"),
        (lambda path: torch.save([1, 2], path), "holds no state dict but list"),
    ],
    ids=["missing", "folder", "damaged", "objects", "no tensors", "list"],
)
def test_what_is_no_file_of_weights_is_refused_in_words(write, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(CheckpointError, match=message):
        read_weights(path)


def test_a_truncated_file_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(path)
