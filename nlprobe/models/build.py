"""Networks from a name or a configuration."""

from collections.abc import Mapping
from typing import Any

import torch

from nlprobe.blocks.settings import unknown
from nlprobe.models.config import ResNetConfig
from nlprobe.models.detection import DetectionNetwork
from nlprobe.models.detection_config import DetectionConfig
from nlprobe.models.resnet import ResNet
from nlprobe.models.segmentation import SegmentationNetwork
from nlprobe.models.segmentation_config import SegmentationConfig
from nlprobe.models.video import VideoResNet
from nlprobe.models.video_config import VideoConfig
from nlprobe.models.zoo import entry

Config = ResNetConfig | SegmentationConfig | VideoConfig | DetectionConfig
Network = ResNet | SegmentationNetwork | VideoResNet | DetectionNetwork

ARCHITECTURE_CLASSES: dict[str, tuple[Any, Any]] = {
    "resnet": (ResNetConfig, ResNet),
    "segmentation": (SegmentationConfig, SegmentationNetwork),
    "video": (VideoConfig, VideoResNet),
    "detection": (DetectionConfig, DetectionNetwork),
}


def config_from_dict(settings: Mapping[str, Any]) -> Config:
    """The configuration that its `as_dict` described; `architecture` chooses the class.

    Raises:
        ConfigError: an unknown architecture, key or value.
    """
    architecture = settings.get("architecture")
    if architecture not in ARCHITECTURE_CLASSES:
        raise unknown("architecture", architecture, ARCHITECTURE_CLASSES)
    config: Config = ARCHITECTURE_CLASSES[architecture][0].from_dict(settings)
    return config


def build(model: str | Config, *, seed: int | None = None) -> Network:
    """A network with freshly drawn weights, in training mode.

    Args:
        model: A name of the zoo, such as `imagenet/resnet50-nl`, or a configuration.
        seed: The weights are a function of it alone, and the global random state is left as it was. Without a seed
            they are drawn from the global random state, as torch's own classes do.

    Raises:
        ConfigError: an unknown name, with close matches.
    """
    config = entry(model).config if isinstance(model, str) else model
    make = next(cls for configuration, cls in ARCHITECTURE_CLASSES.values() if isinstance(config, configuration))
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        network: Network = make(config)
        return network


def trunk_of(network: Network) -> ResNet | VideoResNet:
    """The residual network inside, which is what pretrained weights are of."""
    return network.backbone if isinstance(network, SegmentationNetwork | DetectionNetwork) else network
