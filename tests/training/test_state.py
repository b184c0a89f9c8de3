"""A run's state: whole or not at all, and never unpickled unsafely."""

import pickle
import resource
from pathlib import Path

import pytest
import torch

from nlprobe.errors import CheckpointError, DataError
from nlprobe.training.state import STATE, differences, load_state, save_state, write_log


def test_a_state_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path, {"model": {"w": torch.arange(3)}, "progress": {"epoch": 2, "best": None}})
    state = load_state(tmp_path)
    assert state["model"]["w"].tolist() == [0, 1, 2]
    assert state["progress"] == {"epoch": 2, "best": None}


def test_without_a_state_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run to go on with"):
        load_state(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 half a zip"])
def test_a_damaged_state_is_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged or no training state"):
        load_state(tmp_path)


def test_code_in_a_state_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"format": Bomb()}, tmp_path / STATE)
    with pytest.raises(CheckpointError):
        load_state(tmp_path)
    (tmp_path / STATE).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        load_state(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_files_of_others_and_of_later_versions_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / STATE)
    with pytest.raises(CheckpointError, match="not a training state of nlprobe"):
        load_state(tmp_path)
    torch.save({"format": "nlprobe training state", "format_version": 99}, tmp_path / STATE)
    with pytest.raises(CheckpointError, match="newer nlprobe"):
        load_state(tmp_path)


def test_a_full_disk_leaves_the_state_before(tmp_path: Path) -> None:
    save_state(tmp_path, {"progress": {"epoch": 1}})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(DataError, match=f"`{tmp_path / STATE}` cannot be written"):
            save_state(tmp_path, {"model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_state(tmp_path)["progress"] == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_the_log_keeps_all_digits(tmp_path: Path) -> None:
    write_log(tmp_path, [{"epoch": 1, "train_loss": 1 / 3}, {"epoch": 2, "train_loss": 0.1}])
    assert (tmp_path / "log.csv").read_text() == "epoch,train_loss\n1,0.3333333333333333\n2,0.1\n"


def test_differences_name_changed_added_and_removed_settings() -> None:
    then, now = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}
    assert differences(then, now) == {"b": (2, 5), "c": (3, None), "d": (None, 4)}
