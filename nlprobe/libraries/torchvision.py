"""Classification networks of torchvision, with the transforms that belong to their weights."""

from functools import partial
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from nlprobe.errors import ConfigError
from nlprobe.libraries.network import Drawn, Network, Pictures, drawn
from nlprobe.libraries.weights import load_weights
from nlprobe.suggestions import did_you_mean

SETTINGS = ("crop_size", "resize_size", "mean", "std", "interpolation", "antialias")


def torchvision_network(name: str, weights: Path | None = None, seed: int = 0) -> Network:
    """A classification network of torchvision, never downloaded.

    The images are transformed as for the weights that torchvision takes by default, or for those that are named behind
    a point: `vit_b_16.IMAGENET1K_SWAG_E2E_V1`.

    Args:
        name: As `torchvision.models.get_model` takes it.
        weights: Their file; random weights without.
        seed: Seed of random weights.

    Raises:
        ConfigError: torchvision has no such network, or it is no classification network.
        CheckpointError: the weights do not fit.
    """
    plain, _, tag = name.partition(".")
    described = described_weights(plain, tag)
    build = partial(_build, plain, described if tag else None)
    model = drawn(build, seed)
    loaded = load_weights(model, weights) if weights else None
    transform = described.transforms()
    settings = {key: _plain(getattr(transform, key)) for key in SETTINGS if hasattr(transform, key)}
    written = ", ".join(f"{key} {value}" for key, value in settings.items())
    return Network(
        source=f"torchvision:{name}",
        model=model.eval(),
        weights=loaded or Drawn(seed),
        pictures=Pictures(transform, f"transforms of torchvision's `{described}`, {written}", settings),
        redrawn=partial(drawn, build, seed) if loaded else None,
        package="torchvision",
    )


def described_weights(name: str, tag: str) -> WeightsEnum:
    """The member of torchvision's enumeration of weights that tells the transforms; it fetches nothing."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        if name in torchvision.models.list_models():
            raise ConfigError(
                f"torchvision's `{name}` is no classification network",
                "give `python:package.module:callable` with a function that returns it",
            )
        raise ConfigError(
            f"torchvision has no network `{name}`",
            did_you_mean(name, known, otherwise="`torchvision.models.list_models()` lists them"),
        )
    weights = torchvision.models.get_model_weights(name)
    names = [member.name for member in weights]
    if tag and tag not in names:
        raise ConfigError(f"torchvision has no weights `{tag}` of `{name}`", did_you_mean(tag, names))
    return weights[tag] if tag else weights.DEFAULT


def _build(name: str, described: WeightsEnum | None) -> nn.Module:
    # The weights of a transformer fix the number of its positions; other networks take any size.
    sides = described.meta["min_size"] if described is not None and name.startswith("vit_") else None
    settings: dict[str, Any] = {"image_size": sides[0]} if sides else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return model


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
