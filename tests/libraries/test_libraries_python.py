"""One's own code as network and as data."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nlprobe.data import Preprocessing
from nlprobe.errors import ConfigError, DataError
from nlprobe.libraries import Given, Loaded, PythonItems
from nlprobe.libraries.python import imported, python_network

HERE = "test_libraries_python"


def small() -> nn.Module:
    return nn.Linear(2, 2)


def as_tensor(picture: object) -> Tensor:
    return torch.zeros(3, 8, 8)


def with_transform() -> tuple[nn.Module, object]:
    return nn.Linear(2, 2), as_tensor


def nothing() -> None:
    """Returns no network."""


def failing() -> nn.Module:
    raise ValueError("no such file")


def yields() -> object:
    yield torch.ones(2, 3)
    yield {"input_ids": torch.ones(1, 4, dtype=torch.int64)}
    yield (torch.ones(3, 2, dtype=torch.bfloat16), torch.ones(1))


def breaks() -> object:
    yield torch.ones(2, 3)
    raise RuntimeError("the disk is gone")


def scalars() -> object:
    yield {"scale": torch.tensor(1.0)}


drawn = itertools.count()


def changing() -> object:
    yield torch.full((1, 2), float(next(drawn)))


def test_a_module_is_taken_with_the_weights_that_it_has() -> None:
    network = python_network(f"{HERE}:small", seed=4)
    torch.manual_seed(4)
    assert torch.equal(network.model.weight, small().weight)  # type: ignore[arg-type]
    assert network.weights == Given()
    assert (network.pictures, network.redrawn) == (None, None)


def test_a_module_may_bring_its_transform() -> None:
    network = python_network(f"{HERE}:with_transform")
    assert network.pictures is not None
    assert network.pictures.size == (8, 8)
    assert "as_tensor" in str(network.pictures.settings["transform"])
    with pytest.raises(ConfigError, match="returns a transform, and --size, --mean or --std is given too"):
        python_network(f"{HERE}:with_transform", preprocessing=Preprocessing(32, 32))


def test_a_module_alone_is_given_its_preprocessing() -> None:
    network = python_network(f"{HERE}:small", preprocessing=Preprocessing(32, 32))
    assert network.pictures is not None
    assert network.pictures.size == (32, 32)


def test_weights_from_a_file_can_be_drawn_anew(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pth")
    network = python_network(f"{HERE}:small", tmp_path / "weights.pth", seed=4)
    assert isinstance(network.weights, Loaded)
    assert network.redrawn is not None
    torch.manual_seed(4)
    assert torch.equal(network.redrawn().weight, small().weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nomodule:make", "there is no module `nomodule`\nrun nlprobe in the folder"),
        (f"{HERE}:smal", f"`{HERE}` has no `smal`\ndid you mean `small`"),
        (HERE, "names no callable\nwrite `python:package.module:callable`"),
        (f"{HERE}:HERE", "is no callable but str"),
        (f"{HERE}:nothing", "returns NoneType\nit has to return an nn.Module"),
        (f"{HERE}:failing", "raised ValueError: no such file"),
    ],
)
def test_what_is_no_network_is_refused_in_words(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        python_network(reference)


def test_a_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lying_here.py").write_text("import no_such_package_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    with pytest.raises(ConfigError, match="`lying_here` imports `no_such_package_anywhere`"):
        imported("lying_here:make")
    (tmp_path / "lies_here_too.py").write_text("class Networks:\n    @staticmethod\n    def make(): return 3\n")
    assert imported("lies_here_too:Networks.make")() == 3


def test_items_are_named_by_the_number_of_their_images() -> None:
    items = PythonItems(f"{HERE}:yields")
    assert [names for _, names in items.items()] == [["0", "1"], ["2"], ["3", "4", "5"]]
    assert items.images == 6
    first = items.sha256
    assert [names for _, names in items.items(start=1)] == [["2"], ["3", "4", "5"]]
    assert items.sha256 == first
    assert torch.equal(items.first(), torch.ones(2, 3))


def test_a_pass_that_gives_other_inputs_is_refused() -> None:
    items = PythonItems(f"{HERE}:changing")
    list(items.items())
    with pytest.raises(DataError, match="gave other inputs in this pass than in the one before"):
        list(items.items())


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("breaks", ConfigError, "raised RuntimeError: the disk is gone"),
        ("scalars", DataError, "item 0 of .* is dict without a batch of anything"),
        ("nothing", ConfigError, "returns NoneType, which cannot be iterated over"),
    ],
)
def test_items_that_are_none_are_refused_in_words(name: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        list(PythonItems(f"{HERE}:{name}").items())
