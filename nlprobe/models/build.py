"""Networks from a name or a configuration."""

from collections.abc import Mapping
from typing import Any

import torch

from nlprobe.blocks.settings import unknown
from nlprobe.models.config import ResNetConfig
from nlprobe.models.resnet import ResNet
from nlprobe.models.zoo import entry

ARCHITECTURE_CLASSES = {"resnet": (ResNetConfig, ResNet)}


def config_from_dict(settings: Mapping[str, Any]) -> ResNetConfig:
    """The configuration that its `as_dict` described; `architecture` chooses the class.

    Raises:
        ConfigError: an unknown architecture, key or value.
    """
    architecture = settings.get("architecture")
    if architecture not in ARCHITECTURE_CLASSES:
        raise unknown("architecture", architecture, ARCHITECTURE_CLASSES)
    return ARCHITECTURE_CLASSES[architecture][0].from_dict(settings)


def build(model: str | ResNetConfig, *, seed: int | None = None) -> ResNet:
    """A network with freshly drawn weights, in training mode.

    Args:
        model: A name of the zoo, such as `imagenet/resnet50-nl`, or a configuration.
        seed: The weights are a function of it alone, and the global random state is left as it was. Without a seed
            they are drawn from the global random state, as torch's own classes do.

    Raises:
        ConfigError: an unknown name, with close matches.
    """
    config = entry(model).config if isinstance(model, str) else model
    network = next(cls for configuration, cls in ARCHITECTURE_CLASSES.values() if isinstance(config, configuration))
    if seed is None:
        return network(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return network(config)
