"""Loading weights that must fit: nothing missing, nothing left over, every shape equal."""

import pickle
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nlprobe.errors import CheckpointError
from nlprobe.models.deformable import OffsetConvolution
from nlprobe.models.inflation import inflate
from nlprobe.models.layouts import our_names, stem_of
from nlprobe.models.resnet import ResNet
from nlprobe.models.video import VideoResNet


def load_strictly(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    may_be_missing: Callable[[str], bool] = lambda name: False,
) -> None:
    """Copy `weights` into `model`, all of them or none.

    Args:
        model: What is filled.
        weights: Tensors by parameter or buffer name.
        source: Where they come from, for the message.
        may_be_missing: Tells of a name of the model whether `weights` may lack it; it then keeps its value.

    Raises:
        CheckpointError: names that are missing or left over, with the nearest names, or shapes that differ.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in weights and not may_be_missing(name)]
    unexpected = [name for name in weights if name not in wanted]
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f"lacks {_some(missing)} of the model")
        if unexpected:
            parts.append(f"holds {_some(unexpected)} that the model does not have")
        raise CheckpointError(f"{source} {' and '.join(parts)}", _nearest(missing, unexpected))
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"`{name}` has the shape {tuple(tensor.shape)} in {source}, {tuple(wanted[name].shape)} in the model",
                "the file belongs to a network of another width, reduction or number of classes",
            )
    model.load_state_dict(dict(weights), strict=False)


def load_backbone(
    model: ResNet | VideoResNet,
    weights: Path | str | Mapping[str, Tensor],
    *,
    classifier: bool = True,
    inflation: str = "mean",
) -> None:
    """Copy published ImageNet weights into a network that may hold inserted blocks, which keep their initialisation.

    Only the names of inserted blocks and of the offsets of deformable convolutions may be missing; the layouts that are
    known stand in `layouts.py`. Weights from before torch 0.4.1 lack the batch counters of the norms, which then start
    at zero. Output stride and dilation are not in the weights.

    Args:
        model: What is filled.
        weights: A state dict, or the file of one: `.pth` (read with `weights_only=True`) or `.safetensors`.
        classifier: Copy the last layer too, where the network has one; without it, it keeps its initialisation and may
            have other classes.
        inflation: How kernels of pictures become those of a network for clips, `mean` or `centre` (`inflation.py`); of
            no use to a network for pictures.

    Raises:
        ConfigError: another way to inflate.
        CheckpointError: the file is missing or not a state dict, its layout is not known, or the weights do not fit
            the network.
    """
    source = "the state dict" if isinstance(weights, Mapping) else f"`{weights}`"
    tensors = our_names(weights if isinstance(weights, Mapping) else _read_state_dict(Path(weights)), source)
    video = isinstance(model, VideoResNet)
    wanted = model.config.backbone.stem if isinstance(model, VideoResNet) else model.config.stem
    if (stem := stem_of(tensors)) != wanted:
        other = "" if video else f"set `stem` of the network's configuration to `{stem}`, or "
        raise CheckpointError(
            f"{source} has a {stem} stem, the network a {wanted} one", f"{other}take weights with a {wanted} stem"
        )
    inserted = tuple(site.replace(":", ".") + "." for site in model.sites())
    offsets = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, OffsetConvolution))
    kept = (*inserted, *offsets) if classifier else (*inserted, *offsets, "fc.")
    if not classifier or model.fc is None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    if video:
        tensors = inflate(tensors, model.state_dict(), inflation)
    load_strictly(model, tensors, source, lambda name: name.startswith(kept) or name.endswith(".num_batches_tracked"))


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"`{path}` is not there", "give the file of the backbone's weights")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"`{path}` cannot be read as a state dict: {reason}", "it may be truncated: get the file again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        held = f"a dictionary with {sorted(map(str, state))[:5]}" if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"`{path}` holds no plain state dict but {held}", "save the model's state_dict() alone")
    return state


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"`{names[0]}`{more}"


def _nearest(missing: list[str], unexpected: list[str]) -> str:
    for name in missing:
        if close := get_close_matches(name, unexpected, n=1):
            return f"nearest to `{name}` in the file: `{close[0]}`"
    if missing:
        return "the file belongs to another network: compare its configuration"
    return "the file holds more blocks or layers than the network: build the network with them"
