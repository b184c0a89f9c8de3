"""Where activations are read: outputs of residual blocks, transforms of context blocks, modules by their path."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlprobe.blocks import ContextBlock, SqueezeExcitation
from nlprobe.errors import ConfigError
from nlprobe.models.config import LAYERS
from nlprobe.probe.sites import compiled, matches, refuse_wrapped, site_name
from nlprobe.suggestions import did_you_mean

BLOCK_OUTPUT, TRANSFORM, GATE, OUTPUT = "block output", "transform", "gate", "output"

_GATED = {
    "timm.layers.squeeze_excite.SEModule": "gate",
    "timm.layers.squeeze_excite.EffectiveSEModule": "gate",
    "timm.models._efficientnet_blocks.SqueezeExcite": "gate",
    "torchvision.ops.misc.SqueezeExcitation": "scale_activation",
}
"""Squeeze-and-excitation blocks of other libraries, and their module that ends in the gate."""

_GLOBAL_CONTEXT = "timm.layers.global_context.GlobalContext"


@dataclass(frozen=True)
class Reading:
    """A module whose output is read.

    Attributes:
        name: What it is called in tables: its site, or its module path.
        module: The module.
        what: What its output is: "block output" (of a residual block, with all that stands in it), "transform" (t =
            δ(context) of a context block with additive fusion), "gate" (σ(t), with scale fusion), or "output".
        read: From the module's output to the activation.
    """

    name: str
    module: nn.Module
    what: str = OUTPUT
    read: Callable[[Tensor], Tensor] = lambda output: output


def residual_blocks(model: nn.Module, stages: Sequence[str] = ("c4",)) -> list[Reading]:
    """The output of every residual block of some stages, in the order of the forward pass.

    The block's own output and not that of its ReLU: one ReLU module may serve several places of a block. The blocks of
    c2 to c5 are the members of `layer1` to `layer4`, as ResNets of torchvision, timm and nlprobe call them, alone or as
    the backbone of another network.

    Args:
        model: The network.
        stages: Of c2, c3, c4, c5.

    Raises:
        ConfigError: there are none, or a stage is not known.
    """
    for stage in stages:
        if stage not in LAYERS:
            raise ConfigError(f"`{stage}` is no stage of a residual network", did_you_mean(stage, LAYERS))
    refuse_unhookable(model)
    layers = {LAYERS[stage] for stage in stages}
    found = [
        Reading(site_name(path), module, BLOCK_OUTPUT)
        for path, module in model.named_modules()
        if (member := re.fullmatch(r"(?:.+\.)?(layer[1-4])\.\d+", path)) and member[1] in layers
    ]
    if not found:
        raise ConfigError(
            f"`{type(model).__name__}` has no residual blocks in {', '.join(f'`{LAYERS[stage]}`' for stage in stages)}",
            "name the modules whose output is meant by --at, such as --at 'blocks.*.mlp'",
        )
    return found


def transforms(model: nn.Module, patterns: Sequence[str] = ()) -> list[Reading]:
    """The transform of every context block, in the order of the modules: one vector an image.

    For additive fusion (GC, SNL) the vector t that is added; for scale fusion (squeeze-and-excitation in its forms) the
    gate σ(t) that scales.

    Args:
        model: The network.
        patterns: Sites by name or glob; all where there is none.

    Raises:
        ConfigError: there are none, or a pattern matches none.
    """
    refuse_unhookable(model)
    found = [reading for path, module in model.named_modules() for reading in _transforms_of(path, module)]
    if not found:
        raise ConfigError(
            f"`{type(model).__name__}` has no block with one context for all positions (GC, SNL, "
            "squeeze-and-excitation), so there is no transform to read",
            "choose such a network (`nlprobe zoo '*gc*' '*-se'`), or name modules by --at",
        )
    return _chosen(found, patterns, "block with one context for all positions")


def modules_at(model: nn.Module, patterns: Sequence[str]) -> list[Reading]:
    """The outputs of the modules whose path is, or matches, a pattern, in the order of the modules.

    Args:
        model: The network.
        patterns: Module paths or globs, such as `layer3.*.conv1`; `*` also matches dots.

    Raises:
        ConfigError: a pattern matches none.
    """
    refuse_unhookable(model)
    return _chosen(
        [Reading(site_name(path), module) for path, module in model.named_modules() if path], patterns, "module"
    )


def refuse_unhookable(model: nn.Module) -> None:
    """Raise a ConfigError where hooks would not be called, or not on what the network computes."""
    refuse_wrapped(model)
    if compiled(model):
        raise ConfigError(
            f"`{type(model).__name__}` is compiled, and its modules are not called one by one",
            "give the network as it was before `torch.compile`",
        )


def _transforms_of(path: str, module: nn.Module) -> Iterator[Reading]:
    name = site_name(path)
    if isinstance(module, ContextBlock):
        additive = module.config.fusion == "add"
        yield (
            Reading(name, module.transform, TRANSFORM) if additive else Reading(name, module.transform, GATE, _sigmoid)
        )
    elif isinstance(module, SqueezeExcitation):
        yield Reading(name, module.excite, GATE, _sigmoid)
    elif part := _GATED.get(kind := f"{type(module).__module__}.{type(module).__qualname__}"):
        yield Reading(name, module.get_submodule(part), GATE)
    elif kind == _GLOBAL_CONTEXT:
        both = module.mlp_add is not None and module.mlp_scale is not None
        if isinstance(module.mlp_scale, nn.Module):
            yield Reading(f"{name}.gate" if both else name, module.get_submodule("gate"), GATE)
        if isinstance(module.mlp_add, nn.Module):
            yield Reading(f"{name}.mlp_add" if both else name, module.mlp_add, TRANSFORM)


def _sigmoid(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits)


def _chosen(readings: list[Reading], patterns: Sequence[str], kind: str) -> list[Reading]:
    names = [reading.name for reading in readings]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            shown = ", ".join(f"`{name}`" for name in names[:12]) + (", …" if len(names) > 12 else "")
            raise ConfigError(
                f"no {kind} is called or matches `{pattern}`",
                did_you_mean(pattern, names, otherwise=f"there are {shown}"),
            )
    return [
        reading for reading in readings if not patterns or any(matches(reading.name, pattern) for pattern in patterns)
    ]
