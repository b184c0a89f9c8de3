"""MNIST, Fashion-MNIST and CIFAR as torchvision lays them out, written here with its own checksums replaced."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from nlprobe.data import open_dataset
from nlprobe.errors import DataError

PIXELS = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)


def write_mnist(root: Path, folder: str = "MNIST") -> Path:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 3, 28, 28) + PIXELS.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 3) + bytes([7, 0, 9]))
    return root


@pytest.mark.parametrize(("folder", "kind"), [("MNIST", "MNIST"), ("FashionMNIST", "Fashion-MNIST")])
def test_mnist_and_fashion_mnist(tmp_path: Path, folder: str, kind: str) -> None:
    found = open_dataset(write_mnist(tmp_path, folder))
    assert found.kind == kind
    assert found.classes is not None
    assert len(found.classes) == 10
    image, label, name = found[2]
    assert (image.mode, image.size, label, name) == ("RGB", (28, 28), 9, "test/00002")
    assert (np.asarray(image)[..., 1] == PIXELS[2]).all()
    assert open_dataset(tmp_path, "train").ids[0] == "train/00000"


def test_two_sets_side_by_side_have_to_be_told_apart(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_mnist(tmp_path, "FashionMNIST")
    with pytest.raises(DataError, match=f"holds MNIST and Fashion-MNIST\n.*`{tmp_path / 'FashionMNIST'}`"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path / "FashionMNIST").kind == "Fashion-MNIST"


def test_an_unpacked_set_is_asked_for(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    packed = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    packed.with_suffix(".gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    with pytest.raises(DataError, match=r"is not a whole MNIST.*\n.*unpack"):
        open_dataset(tmp_path)


def test_the_fingerprint_sees_the_pixels(tmp_path: Path) -> None:
    found = open_dataset(write_mnist(tmp_path))
    assert len({found.size(index) for index in range(3)}) == 3


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    sums = {}
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [3, 5]}))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    meta = pickle.dumps({"label_names": [f"class {number}" for number in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        datasets.CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()},
    )
    return tmp_path


def test_cifar(cifar: Path) -> None:
    found = open_dataset(cifar / "cifar-10-batches-py")
    assert (found.kind, len(found), found[1].label, found[1].image.size) == ("CIFAR-10", 2, 5, (32, 32))


def test_a_pickle_with_another_checksum_is_never_opened(cifar: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (cifar / "exploded",))

    (cifar / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="is not a whole CIFAR-10"):
        open_dataset(cifar)
    assert not (cifar / "exploded").exists()
