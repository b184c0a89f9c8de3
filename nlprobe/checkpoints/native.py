"""Our own checkpoint: one safetensors file that holds the weights and everything needed to use them.

The header has one text, `nlprobe`, which is JSON: `format`, `format_version`, `model`, `config`, `recipe`,
`preprocessing`, `classes`, `metrics`, `data`, `versions`, `seed`, `epoch`, `initial_fingerprint`. It is one text
and not thirteen because safetensors writes several in any order, and the bytes of a file should follow from what is in
it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.files import atomic_path
from nlprobe.models import build, config_from_dict, load_strictly

FORMAT = "nlprobe"
FORMAT_VERSION = 1

_HEADER_KEY = "nlprobe"
_IN_A_RUN = ("best.safetensors", "last.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what is known of it.

    Args:
        model: The network, in evaluation mode.
        metadata: What the file's header says; see the module's docstring.
        path: The file.
    """

    model: nn.Module
    metadata: dict[str, Any]
    path: Path


def save_checkpoint(path: Path | str, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write weights and metadata, the whole file or nothing.

    Args:
        path: The `.safetensors` file.
        model: Its parameters and buffers are written, from whatever device they are on.
        metadata: What JSON can hold; `config` is required. `format` and `format_version` are added.

    Raises:
        CheckpointError: metadata that JSON cannot hold, or no `config`.
        DataError: the file cannot be written.
    """
    if "config" not in metadata:
        raise CheckpointError("the metadata have no `config`", "pass `config=model.config.as_dict()`")
    header = {**metadata, "format": FORMAT, "format_version": FORMAT_VERSION}
    try:
        text = json.dumps(header, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the metadata cannot be written as JSON: {error}", "use plain numbers and texts"
        ) from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # The bytes are written here and not by safetensors, so that a full disk is an OSError with its reason.
    content = save(tensors, metadata={_HEADER_KEY: text})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint and rebuild its network; nothing is unpickled.

    Args:
        path: The file, or a run's folder, whose `best.safetensors` is read, else its `last.safetensors`.
        device: Where the network goes.

    Raises:
        CheckpointError: the file is missing, truncated, not ours, of another format version, or its weights do not fit
            the network that its configuration describes.
    """
    path = checkpoint_file(path)
    metadata, tensors = _read(path)
    try:
        model = build(config_from_dict(metadata["config"]), seed=0)
    except ConfigError as error:
        raise CheckpointError(
            f"`{path}` describes a network that this version of nlprobe does not know: {error.cause}",
            f"{error.remedy}; the file was written by {_written_by(metadata)}",
        ) from error
    load_strictly(model, tensors, f"`{path}`")
    return Checkpoint(model.to(device).eval(), metadata, path)


def checkpoint_file(path: Path | str) -> Path:
    """The file that `path` means: itself, or the best, else the last, checkpoint of a run's folder.

    Raises:
        CheckpointError: it is not there, with what is there instead.
    """
    path = Path(path)
    if path.is_dir():
        for name in _IN_A_RUN:
            if (path / name).is_file():
                return path / name
        others = sorted(file.name for file in path.glob("*.safetensors"))
        raise CheckpointError(
            f"the folder `{path}` has neither `best.safetensors` nor `last.safetensors`",
            f"it has {_listed(others)}: name the file" if others else "give a run's folder or a checkpoint file",
        )
    if not path.is_file():
        near = sorted(file.name for file in path.parent.glob("*.safetensors")) if path.parent.is_dir() else []
        raise CheckpointError(
            f"`{path}` is not there",
            f"`{path.parent}` has {_listed(near)}" if near else "give a run's folder or a checkpoint file",
        )
    return path


def initial_model(checkpoint: Checkpoint) -> nn.Module:
    """The network as it was before training, in evaluation mode: rebuilt from the seed and compared by fingerprint.

    Raises:
        CheckpointError: the checkpoint does not say from which seed, or the network that comes of it is another one,
            as when training started from other weights or under another version of torch.
    """
    metadata, path = checkpoint.metadata, checkpoint.path
    seed, expected = metadata.get("seed"), metadata.get("initial_fingerprint")
    if not isinstance(seed, int) or not expected:
        raise CheckpointError(
            f"`{path}` does not say from which seed it was initialised",
            "there is no network before training to compare with: leave that baseline out",
        )
    model = build(config_from_dict(metadata["config"]), seed=seed)
    if fingerprint(model) != expected:
        raise CheckpointError(
            f"seed {seed} does not give the weights that the training of `{path}` began with",
            f"it began with other weights, or under other versions: written by {_written_by(metadata)}, "
            f"here torch {torch.__version__}",
        )
    device = next(checkpoint.model.parameters()).device
    return model.to(device).eval()


def fingerprint(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, over names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = _parse(path, file.metadata())
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"`{path}` is truncated or not a safetensors file: {error}",
            "copy it again, or give a `.safetensors` file that `nlprobe train` wrote",
        ) from error
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror or error}", "check its permissions") from error


def _refuse_foreign(path: Path) -> None:
    """Name the kinds of file that people give by mistake; safetensors itself would only say that a header is wrong."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror or error}", "check its permissions") from error
    kinds = {
        b"PK\x03\x04": "a file of `torch.save`",
        b"\x80": "a pickle",
        b"version https://git-lfs": "a pointer to a file that git-lfs did not fetch",
        b"<": "a web page",
    }
    if not start:
        raise CheckpointError(f"`{path}` is empty", "copy or train it again")
    for magic, kind in kinds.items():
        # The first eight bytes of a safetensors file are the header's length, and the ninth opens its JSON.
        if start.startswith(magic) and start[8:9] != b"{":
            raise CheckpointError(
                f"`{path}` is {kind}, not a checkpoint of nlprobe",
                "give a `.safetensors` file that `nlprobe train` wrote",
            )


def _parse(path: Path, header: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        metadata = json.loads((header or {})[_HEADER_KEY])
        version = metadata["format_version"] if metadata["format"] == FORMAT else None
    except (KeyError, TypeError, ValueError):
        version = None
    if version is None:
        raise CheckpointError(
            f"`{path}` is a safetensors file of another project: its header has no metadata of nlprobe",
            "give a file that `nlprobe train` wrote",
        )
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"`{path}` has the format version {version}; this nlprobe reads version {FORMAT_VERSION}",
            f"use the nlprobe that wrote it: {_written_by(metadata)}",
        )
    if not isinstance(metadata.get("config"), dict):
        raise CheckpointError(f"`{path}` does not say of which network it is: no `config`", "train it again")
    return metadata


def _written_by(metadata: Mapping[str, Any]) -> str:
    versions = metadata.get("versions") or {}
    return ", ".join(f"{package} {version}" for package, version in versions.items()) or "an unknown version"


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
