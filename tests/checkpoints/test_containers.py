"""Files of weights are opened without running anything, and hostile ones are refused in words."""

import argparse
import collections
import io
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from nlprobe.checkpoints.containers import Container, read_container
from nlprobe.checkpoints.stand_ins import StandIn
from nlprobe.errors import CheckpointError

WEIGHTS = {"conv.weight": torch.arange(12.0).view(3, 4), "bn.num_batches_tracked": torch.tensor(7)}

SAVERS = {
    "zip": lambda held, path: torch.save(held, path),
    "legacy": lambda held, path: torch.save(held, path, _use_new_zipfile_serialization=False),
}


def assert_weights(found: Container) -> None:
    assert list(found.weights) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found.weights[name], tensor)


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model_state", "model"])
def test_torch_files_of_either_kind_are_read_from_any_wrapper(kind: str, wrapper: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    SAVERS[kind]({wrapper: WEIGHTS, "epoch": 3, "cfg": "text"} if wrapper else WEIGHTS, path)
    found = read_container(path)
    assert (found.kind, found.wrapper) == (kind, wrapper)
    assert_weights(found)
    assert dict(found.beside) == ({"epoch": 3, "cfg": "text"} if wrapper else {})


def test_the_prefix_of_data_parallel_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}}, path)
    assert_weights(read_container(path))


def test_safetensors_are_read_with_their_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(WEIGHTS, path, metadata={"format": "pt"})
    found = read_container(path)
    assert (found.kind, dict(found.header)) == ("safetensors", {"format": "pt"})
    assert torch.equal(found.weights["conv.weight"], WEIGHTS["conv.weight"])


@pytest.mark.parametrize("kind", SAVERS)
def test_the_meta_of_openmmlab_is_read_with_inert_stand_ins(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "epoch_12.pth"
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    meta = {
        "CLASSES": ("road", "sky"),
        "config": "model = dict(type='X')",
        "hook_msgs": {"best": np.float64(0.5)},
        "PALETTE": np.zeros((2, 3), np.uint8),
        "cfg": ConfigDict(a=1),
        "args": argparse.Namespace(x=1),
        "queue": collections.deque([1], 3),
        "counts": collections.defaultdict(list, a=[1]),
    }
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    held = {"meta": meta, "state_dict": collections.OrderedDict(WEIGHTS), "optimizer": optimizer, "hub": [history]}
    SAVERS[kind](held, path)
    found = read_container(path)
    assert_weights(found)
    assert found.meta["CLASSES"] == ("road", "sky")
    assert found.meta["config"] == "model = dict(type='X')"
    assert isinstance(found.meta["PALETTE"], StandIn)
    assert found.meta["queue"] == [1]
    assert "mmengine.logging.history_buffer.HistoryBuffer" in found.stood_in
    assert type(found.beside["hub"][0]) is StandIn


class Hostile:
    """A pickle that makes a file, if it is run."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call, self.arguments


HOSTILE = {
    "posix.system": (os.system, "touch {}"),
    "builtins.exec": (exec, "open('{}', 'w').close()"),
    "builtins.eval": (eval, "open('{}', 'w').close()"),
    "io.open": (io.open, "{}", "w"),
    "torch.serialization.load": (torch.load, "{}"),
    "builtins.bytearray": (bytearray, 1 << 42),
    "numpy.load": (np.load, "{}"),
}


@pytest.mark.parametrize("kind", [*SAVERS, "pickle"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_by_the_name_of_what_it_calls(name: str, kind: str, tmp_path: Path) -> None:
    path, victim = tmp_path / "weights.pth", tmp_path / "made"
    call, *arguments = HOSTILE[name]
    bait = Hostile(call, *(str(one).format(victim) if isinstance(one, str) else one for one in arguments))
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.ones(3), "x": bait}}, protocol=2))
    else:
        SAVERS[kind]({"state_dict": WEIGHTS, "meta": bait}, path)
    with pytest.raises(CheckpointError, match=f"would call `{name}`.*nothing of it was run"):
        read_container(path)
    assert not victim.exists()


def zipped(path: Path, program: bytes, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for name, content in records.items():
            archive.writestr(f"archive/data/{name}", content)
    return path


def tensor_program(shape: tuple[int, ...], stride: tuple[int, ...], elements: int) -> bytes:
    """The pickle of a state dict with one tensor, written by hand."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, held: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", elements) if isinstance(held, Storage) else None

    class Tensor:
        def __reduce__(self) -> Any:
            arguments = (Storage(), 0, shape, stride, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    file = io.BytesIO()
    Pickler(file, 2).dump({"weight": Tensor()})
    return file.getvalue()


def test_a_tensor_written_by_hand_is_read(tmp_path: Path) -> None:
    content = struct.pack("<4f", 1, 2, 3, 4)
    path = zipped(tmp_path / "x.pth", tensor_program((2, 2), (2, 1), 4), {"0": content})
    assert read_container(path).weights["weight"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "shape, stride, elements",
    [((1 << 40,), (1,), 1 << 40), ((1 << 20, 1 << 20), (0, 0), 4), ((100,), (1,), 4), ((4,), (1,), 300)],
    ids=["storage", "view", "past-the-end", "storage-past-the-record"],
)
def test_tensors_of_absurd_size_are_refused(
    shape: tuple[int, ...], stride: tuple[int, ...], elements: int, tmp_path: Path
) -> None:
    path = zipped(tmp_path / "x.pth", tensor_program(shape, stride, elements), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    with pytest.raises(CheckpointError):
        read_container(path)


def test_zip_bombs_are_refused_before_they_unpack(tmp_path: Path) -> None:
    program = tensor_program((1 << 22,), (1,), 1 << 22)
    path = zipped(tmp_path / "x.pth", program, {"0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(CheckpointError, match="unpacks to more than it holds"):
        read_container(path)


def test_records_that_lie_over_one_another_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.pth", tensor_program((4,), (1,), 4), {str(index): bytes(4000) for index in range(9)})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("archive/data/0").header_offset
        places = [archive.getinfo(f"archive/data/{index}").header_offset for index in range(9)]
    # all nine entries of the directory point at the first record, and the others are cut out
    directory = content[start:]
    for place in places:
        directory = directory.replace(
            struct.pack("<I", place) + b"archive/data/", struct.pack("<I", offset) + b"archive/data/"
        )
    head = content[: places[1]]
    end = directory.index(b"PK\x05\x06")
    path.write_bytes(head + directory[: end + 16] + struct.pack("<I", len(head)) + directory[end + 20 :])
    with pytest.raises(CheckpointError, match="lie over one another"):
        read_container(path)


@pytest.mark.parametrize("kind", [*SAVERS, "safetensors", "pickle"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_truncated_files_are_refused_in_words(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.ones(300)}}, protocol=2))
    else:
        SAVERS[kind](WEIGHTS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError):
        read_container(path)


def test_cyclic_structures_are_refused_in_words(tmp_path: Path) -> None:
    held: dict[str, Any] = {}
    held["state_dict"] = held
    torch.save(held, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no state dict but a dictionary with `state_dict`"):
        read_container(tmp_path / "x.pth")


def test_structures_nested_beyond_reason_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.pth", b"\x80\x02)" + b"\x85" * 1_000_000 + b".", {})
    with pytest.raises(CheckpointError, match="nested beyond reason"):
        read_container(path)


@pytest.mark.parametrize(
    "program, words",
    [
        (b"\x80\x02\x8c\x05posix\x8c\x06system\x93.", "would call `posix.system`"),
        (b"\x80\x04)\x94h\x00h\x00\x93.", "makes up names"),
        (b"\x80\x02\x82\x01.", "`EXT1`"),
        (b"\x80\x02(iposix\nsystem\n.", "`INST`"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "more objects than it can hold"),
        (b"\x80\x02\xff.", "cannot be read"),
        (b"\x80\x02K\x01.", "no state dict but int"),
        (b"\x80\x02}.", "an empty dictionary"),
    ],
)
def test_pickles_that_no_checkpoint_has_are_refused(program: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_container(zipped(tmp_path / "x.pth", program, {}))


def test_torchscript_is_refused_as_code(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.pt", b"\x80\x02}.", {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    with pytest.raises(CheckpointError, match="TorchScript archive, which holds code"):
        read_container(path)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs did not fetch"),
        (b"\x1f\x8b\x08 gzip", "no file of weights"),
        (b"PK\x05\x06" + bytes(18), "is a zip file, but not one of torch.save"),
    ],
)
def test_files_of_other_kinds_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_container(tmp_path / "x.pth")


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_container(tmp_path / "x.pth")


def python2_pickle(blobs: dict[str, np.ndarray]) -> bytes:
    """As Python 2's cPickle writes arrays by protocol 2: module names and bytes of that time."""
    program = b"\x80\x02}U\x05blobs}("
    for name, blob in blobs.items():
        data = blob.astype("<f4").tobytes()
        shape = b"".join(b"J" + struct.pack("<i", size) for size in blob.shape)
        program += b"U" + bytes([len(name)]) + name.encode()
        program += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01(" + shape + b"t"
        program += b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        program += b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    return program + b"us."


def test_python_2_pickles_of_arrays_are_read(tmp_path: Path) -> None:
    blobs = {"conv1_w": np.random.default_rng(0).normal(size=(4, 3, 1, 2)).astype("f4"), "lr": np.float32([0.1])}
    path = tmp_path / "x.pkl"
    path.write_bytes(python2_pickle(blobs))
    found = read_container(path)
    assert (found.kind, found.wrapper, list(found.weights)) == ("pickle", "blobs", ["conv1_w", "lr"])
    for name, blob in blobs.items():
        assert np.array_equal(found.weights[name].numpy(), blob)


def test_pickles_of_anything_but_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    for held, words in [
        ({"weights": 1}, "without `blobs`"),
        ({"blobs": {"a": "text"}}, "no array of numbers"),
        ({"blobs": {"a": np.array([object], dtype=object)}}, r"would call|no array of numbers"),
    ]:
        path.write_bytes(pickle.dumps(held, protocol=2))
        with pytest.raises(CheckpointError, match=words):
            read_container(path)
    absurd = pickletools.optimize(pickle.dumps({"blobs": {"a": Hostile(np.ndarray, (1 << 33,))}}, protocol=2))
    path.write_bytes(absurd)
    with pytest.raises(CheckpointError, match=r"claims|cannot be read"):
        read_container(path)
