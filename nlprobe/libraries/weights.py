"""Weights from a file, which must fit: nothing missing, nothing left over, every shape equal."""

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nlprobe.errors import CheckpointError
from nlprobe.libraries.network import Loaded

CONTAINERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "teacher", "student")
"""Under which keys training scripts put a state dict into their files."""

WRAPPER = "module."
"""What `DataParallel` and `DistributedDataParallel` put before every name."""


def load_weights(model: nn.Module, path: Path) -> Loaded:
    """Copy the weights of a file into a model, all of them or none.

    Buffers that the model computes by itself may be in the file and are not read, and the counters of its norms may be
    missing from it, as they are from files older than torch 0.4.1.

    Args:
        model: What is filled.
        path: A `.safetensors` file, or a state dict saved by `torch.save`, which is read with `weights_only=True`.

    Raises:
        CheckpointError: the file is missing, unreadable or holds no state dict, or it does not fit the model; then the
            nearest names are told.
    """
    weights = read_weights(path)
    wanted = model.state_dict()
    computed = {name for name, _ in model.named_buffers()} - set(wanted)
    weights = {name: tensor for name, tensor in weights.items() if name not in computed}
    missing = [name for name in wanted if name not in weights and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in weights if name not in wanted]
    if missing or unexpected:
        parts = [f"lacks {_some(missing)} of the network"] if missing else []
        parts += [f"holds {_some(unexpected)} that the network does not have"] if unexpected else []
        raise CheckpointError(f"`{path}` {' and '.join(parts)}", _nearest(missing, unexpected))
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"`{name}` has the shape {tuple(tensor.shape)} in `{path}` and {tuple(wanted[name].shape)} in the "
                f"network (`{type(model).__name__}`)",
                "the file belongs to a network of another width, input size or number of classes",
            )
    model.load_state_dict(weights, strict=False)
    with path.open("rb") as file:
        return Loaded(path, hashlib.file_digest(file, "sha256").hexdigest())


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, out of the container that a training script may have put it into.

    Raises:
        CheckpointError: the file is missing or unreadable, or holds no state dict, or several.
    """
    if not path.is_file():
        there = "is a folder" if path.is_dir() else "is not there"
        raise CheckpointError(f"`{path}` {there}", "--weights takes a file: .safetensors, .pth or .pt")
    try:
        held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"`{path}` holds more than tensors, or is no file of torch's, and is not unpickled",
            "save the model's state_dict() alone, best as .safetensors",
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"`{path}` cannot be read: {reason}", "it may be truncated, or be of another kind: get the file again"
        ) from error
    weights = _unwrapped(held, path)
    if weights and all(name.startswith(WRAPPER) for name in weights):
        weights = {name.removeprefix(WRAPPER): tensor for name, tensor in weights.items()}
    return weights


def _unwrapped(held: Any, path: Path) -> dict[str, Tensor]:
    if _is_state_dict(held):
        return dict(held)
    inside = {key: held[key] for key in CONTAINERS if _is_state_dict(held.get(key))} if _is_mapping(held) else {}
    if len(inside) == 1:
        return dict(next(iter(inside.values())))
    if inside:
        raise CheckpointError(
            f"`{path}` holds several state dicts: {', '.join(f'`{key}`' for key in inside)}",
            "save the one that is meant alone",
        )
    kind = type(held).__name__
    if _is_mapping(held):
        kind = f"a dictionary with {', '.join(f'`{key}`' for key in list(held)[:5])}"
    raise CheckpointError(f"`{path}` holds no state dict but {kind}", "save the model's state_dict() alone")


def _is_mapping(held: Any) -> bool:
    return isinstance(held, Mapping)


def _is_state_dict(held: Any) -> bool:
    return isinstance(held, Mapping) and bool(held) and all(isinstance(value, Tensor) for value in held.values())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"`{names[0]}`{more}"


def _nearest(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    for name in missing:
        if close := get_close_matches(name, unexpected, n=1, cutoff=0.8):
            return f"nearest to `{name}` in the file: `{close[0]}`"
    if missing and not unexpected:
        return "the file holds a part of the network only, such as a backbone without its head: get the whole"
    return "the file belongs to another network, or names its weights as another library does"
