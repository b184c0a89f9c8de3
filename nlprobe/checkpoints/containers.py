"""Files that hold weights, opened without running anything that is in them.

| kind | how it is read |
| --- | --- |
| `safetensors` | by safetensors |
| `zip`: `torch.save` since torch 1.6 | its pickle is looked through, then `torch.load(weights_only=True)` with stand-ins |
| `legacy`: `torch.save` before | the same |
| `pickle`: a Python 2 pickle of numpy arrays, as Caffe2's tools wrote | looked through, then by an unpickler that knows numpy arrays only (`caffe2.py`) |

Refused in words: what would call anything else, compressed records (a few bytes that unpack to gigabytes), records that
lie over one another, storages that claim more numbers than the file has bytes, tensors larger than their storage,
TorchScript archives, and whatever is truncated.
"""  # noqa: E501

import io
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nlprobe.checkpoints.caffe2 import read_blobs
from nlprobe.checkpoints.pickles import Survey, refuse_unknown_names, survey
from nlprobe.checkpoints.stand_ins import stand_ins
from nlprobe.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state", "model", "model_state_dict", "net", "network")
"""Under which keys projects put the state dict; `blobs` is Caffe2's."""

LARGEST_PICKLE = 1 << 28
"""Bytes of the pickle in a zip file, which holds names and shapes and no weights."""

_LEGACY_PICKLES = 5
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_AGAIN = "it is truncated, damaged or of another kind: get the file again"


@dataclass(frozen=True)
class Container:
    """A file of weights.

    Attributes:
        path: The file.
        kind: `safetensors`, `zip`, `legacy` or `pickle`.
        wrapper: The key that the state dict stood under; empty where the file is the state dict.
        weights: The tensors by name, as the project names them, without `module.` before all of them.
        beside: What else the file holds, by key: numbers, texts and dictionaries of them, and stand-ins.
        header: The text metadata of a safetensors file.
        stood_in: Names of classes in whose place stand-ins were put.
    """

    path: Path
    kind: str
    wrapper: str
    weights: Mapping[str, Tensor]
    beside: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, str] = field(default_factory=dict)
    stood_in: tuple[str, ...] = ()

    @property
    def meta(self) -> Mapping[str, Any]:
        """What OpenMMLab's files say of themselves under `meta`; empty for all others."""
        meta = self.beside.get("meta")
        return meta if isinstance(meta, Mapping) else {}


def read_container(path: Path | str) -> Container:
    """Open a file of weights; nothing that is in it is run.

    Raises:
        CheckpointError: it is missing, damaged, of no known kind, holds no weights, or would run something.
    """
    path = Path(path)
    with _reading(path), path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise CheckpointError(f"`{path}` is empty", "get the file again")
    for magic, kind in (
        (b"version https://git", "a pointer to a file that git-lfs did not fetch"),
        (b"<", "a web page"),
    ):
        if start.startswith(magic) and start[8:9] != b"{":
            raise CheckpointError(f"`{path}` is {kind}, not a checkpoint", "get the file itself")
    if start.startswith(b"PK"):
        return _zip(path)
    if start[8:9] == b"{":
        return _safetensors(path)
    if start.startswith(b"\x80") and _LEGACY_MAGIC in start[:16]:
        return _legacy(path)
    if start[:1] in (b"\x80", b"(", b"}"):
        return _pickle(path)
    raise CheckpointError(
        f"`{path}` is no file of weights that nlprobe knows", "give a .safetensors, .pth, .pt, .pyth, .tar or .pkl file"
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what readers raise on damaged files into words."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror or error}", "check the path") from error
    except (
        SafetensorError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        AssertionError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"`{path}` cannot be read: {reason[:200]}", _AGAIN) from error


def _safetensors(path: Path) -> Container:
    with _reading(path), safe_open(path, framework="pt", device="cpu") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = dict(file.metadata() or {})
    return Container(path, "safetensors", "", _checked(weights, path), header=header)


def _zip(path: Path) -> Container:
    with _reading(path), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _refuse_bombs(entries, path)
        names = {entry.filename.partition("/")[2] for entry in entries}
        if "constants.pkl" in names or any(name.startswith("code/") for name in names):
            raise CheckpointError(
                f"`{path}` is a TorchScript archive, which holds code", "save the model's state_dict() with torch.save"
            )
        pickles = [entry for entry in entries if entry.filename.partition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise CheckpointError(f"`{path}` is a zip file, but not one of torch.save", "give the checkpoint itself")
        if pickles[0].file_size > LARGEST_PICKLE:
            raise CheckpointError(f"`{path}` has a pickle of {pickles[0].file_size} bytes beside its tensors", _AGAIN)
        found = survey(io.BytesIO(archive.read(pickles[0])), path)
    return _loaded(path, "zip", found)


def _refuse_bombs(entries: list[zipfile.ZipInfo], path: Path) -> None:
    size = path.stat().st_size
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > size:
        what = f"`{packed[0].filename}` is compressed" if packed else "its records lie over one another"
        raise CheckpointError(
            f"`{path}` is a zip file that unpacks to more than it holds: {what}",
            "torch.save does not compress; save the state_dict() with it",
        )


def _legacy(path: Path) -> Container:
    names: frozenset[str] = frozenset()
    elements = 0
    with _reading(path), path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            found = survey(file, path)
            names, elements = names | found.names, elements + found.elements
    return _loaded(path, "legacy", Survey(names, elements))


def _loaded(path: Path, kind: str, found: Survey) -> Container:
    foreign = refuse_unknown_names(found.names, path)
    if found.elements > path.stat().st_size:
        raise CheckpointError(
            f"`{path}` claims to hold {found.elements:.3g} numbers in {path.stat().st_size} bytes", _AGAIN
        )
    with _reading(path), torch.serialization.safe_globals(stand_ins(foreign)):  # type: ignore[arg-type]
        held = torch.load(path, "cpu", weights_only=True)
    wrapper, weights, beside = _unwrapped(held, path)
    return Container(path, kind, wrapper, _checked(weights, path), beside, stood_in=tuple(sorted(foreign)))


def _pickle(path: Path) -> Container:
    with _reading(path):
        return Container(path, "pickle", "blobs", read_blobs(path))


def _unwrapped(held: Any, path: Path) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The state dict, the key that it stood under, and what stood beside it."""
    if not isinstance(held, Mapping):
        raise CheckpointError(
            f"`{path}` holds no state dict but {type(held).__name__}", "save the model's state_dict()"
        )
    if _is_state_dict(held):
        return "", _bare(held), {}
    inside = [key for key in WRAPPERS if _is_state_dict(held.get(key))]
    if len(inside) == 1:
        beside = {str(key): value for key, value in held.items() if key != inside[0]}
        return inside[0], _bare(held[inside[0]]), beside
    what = f"several state dicts: {', '.join(inside)}" if inside else f"no state dict but {_listed(held)}"
    raise CheckpointError(f"`{path}` holds {what}", "save the one that is meant alone")


def _is_state_dict(held: Any) -> bool:
    return (
        isinstance(held, Mapping)
        and bool(held)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in held.items())
    )


def _bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): tensor.detach() for name, tensor in weights.items()}
    return {name: tensor.detach() for name, tensor in weights.items()}


def _checked(weights: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(f"`{name}` in `{path}` is no plain tensor", "save plain tensors on the CPU")
        held = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() > held:
            raise CheckpointError(
                f"`{name}` in `{path}` claims the shape {json.dumps(list(tensor.shape))} over {held} bytes", _AGAIN
            )
    return weights


def _listed(held: Mapping[Any, Any]) -> str:
    shown = ", ".join(f"`{str(key)[:40]}`" for key in list(held)[:5])
    return f"a dictionary with {shown}" if shown else "an empty dictionary"
