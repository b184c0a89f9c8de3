"""Parts of a pretrained network that stay as they are: whole stages, and the norms of the trunk (`fixBN`)."""

from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nlprobe.errors import ConfigError
from nlprobe.models import ResNet, VideoResNet
from nlprobe.models.config import LAYERS
from nlprobe.suggestions import did_you_mean

_STEM = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")  # the last four in a deep stem only
PARTS: dict[str, tuple[str, ...]] = {"c1": _STEM, **{stage: (layer,) for stage, layer in LAYERS.items()}}
"""Stages of a residual network, and the modules that each is made of."""


def freeze(model: nn.Module, stages: Sequence[str], *, norms: bool) -> list[nn.Module]:
    """Take stages, or all norms, of every residual network in `model` out of the training.

    Weights and biases of what is frozen, those of its norms too, get no gradient. Inserted attention blocks are always
    trained: they were not pretrained, and a norm that begins with a zero scale, as the one behind W_z does, would
    otherwise keep its block switched off for ever.

    Args:
        model: A residual network, or a network with one inside.
        stages: Any of c1 (the stem) to c5.
        norms: Freeze the norms of the other stages as well.

    Returns:
        The norms that are frozen: they have to be put into evaluation mode whenever `model` is put into training mode,
        so that they go on with the statistics that they have.

    Raises:
        ConfigError: an unknown stage, or no residual network.
    """
    for stage in stages:
        if stage not in PARTS:
            raise ConfigError(f"there is no stage `{stage}` to freeze", did_you_mean(stage, list(PARTS)))
    if not stages and not norms:
        return []
    trunks = [module for module in model.modules() if isinstance(module, ResNet | VideoResNet)]
    if not trunks:
        raise ConfigError(
            "the network has no residual network inside whose stages or norms could be frozen",
            "leave `frozen` empty and `batch_norm` at `plain`",
        )
    still: list[nn.Module] = []
    for trunk in trunks:
        frozen = tuple(name + "." for stage in stages for name in PARTS[stage])
        inserted = tuple(site.replace(":", ".") + "." for site in trunk.sites())
        for name, module in trunk.named_modules():
            path = name + "."
            norm = isinstance(module, _BatchNorm)
            if path.startswith(inserted) or not (path.startswith(frozen) or (norms and norm)):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            still += [module] if norm else []
    return still


def hold(modules: Iterable[nn.Module]) -> None:
    """Put the norms that `freeze` returned into evaluation mode."""
    for module in modules:
        module.eval()
