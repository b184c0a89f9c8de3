"""Semantic segmentation: a dilated residual network with the FCN decoder and its operator, DANet, ANN or PSANet."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks import (
    AsymmetricFusion,
    AsymmetricFusionConfig,
    AsymmetricPyramid,
    ChannelAttention,
    PointWise,
    PointWiseConfig,
    PositionAttention,
    build_block,
)
from nlprobe.blocks.row_transform import SLOPE
from nlprobe.models.resnet import ResNet
from nlprobe.models.segmentation_config import SegmentationConfig

Features = dict[str, Tensor]
"""Feature maps by stage, c2 to c5."""


class FCNHead(nn.Module):
    """3x3, context operator, 3x3, [c5 beside it, 3x3], classifier (section 5.4).

    Shapes: c5 (B, C, H, W) -> coarse scores (B, classes, H, W).
    """

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        c5, width = config.backbone.channels("c5"), config.channels
        self.reduce = conv_norm_relu(c5, width, config.activation)
        self.smooth = conv_norm_relu(width, width, config.activation)
        self.fuse = conv_norm_relu(c5 + width, width, config.activation) if config.concatenate else None
        self.classifier = classifier(width, config)
        # last, so that heads which differ in it begin with the same convolutions
        self.context = None if config.context is None else build_block(config.context.block, width, 2, config.context)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Coarse scores."""
        x = self.reduce(features["c5"])
        if self.context is not None:
            x = self.context(x)
        x = self.smooth(x)
        if self.fuse is not None:
            x = self.fuse(torch.cat([features["c5"], x], 1))
        return {"scores": self.classifier(x)}


class DualAttentionHead(nn.Module):
    """DANet: 3x3, attention, 3x3 in two branches, one between positions and one between channels, and their sum.

    Shapes: c5 (B, C, H, W) -> coarse scores (B, classes, H, W) of the sum and of either branch, by which it is trained.
    """

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        c5, width = config.backbone.channels("c5"), config.channels
        self.position_reduce, self.channel_reduce = (conv_norm_relu(c5, width, config.activation) for _ in range(2))
        self.position_smooth, self.channel_smooth = (conv_norm_relu(width, width, config.activation) for _ in range(2))
        self.classifier, self.position_classifier, self.channel_classifier = (
            classifier(width, config) for _ in range(3)
        )
        self.position = PositionAttention(width)
        self.channel = ChannelAttention(width)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Coarse scores of the sum, and of the branches."""
        position = self.position_smooth(self.position(self.position_reduce(features["c5"])))
        channel = self.channel_smooth(self.channel(self.channel_reduce(features["c5"])))
        return {
            "scores": self.classifier(position + channel),
            "position": self.position_classifier(position),
            "channel": self.channel_classifier(channel),
        }


class AsymmetricHead(nn.Module):
    """ANN: c5 fused with c4 by asymmetric attention, 3x3, and asymmetric attention within the result.

    Shapes: c4 and c5 (B, C, H, W) -> coarse scores (B, classes, H, W).
    """

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        c4, c5, width = config.backbone.channels("c4"), config.backbone.channels("c5"), config.channels
        self.reduce = conv_norm_relu(c5, width, config.activation)
        self.classifier = classifier(width, config)
        self.fusion = AsymmetricFusion(c5, AsymmetricFusionConfig(low_channels=c4))
        self.context = AsymmetricPyramid(width)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Coarse scores."""
        fused = self.fusion(features["c4"], features["c5"])
        return {"scores": self.classifier(self.context(self.reduce(fused)))}


class PointWiseHead(nn.Module):
    """PSANet: point-wise attention on c5, c5 beside it, 3x3.

    Shapes: c5 (B, C, H, W) -> coarse scores (B, classes, H, W).
    """

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        assert isinstance(config.context, PointWiseConfig)
        c5 = config.backbone.channels("c5")
        self.fuse = conv_norm_relu(2 * c5, config.channels, config.activation)
        self.classifier = classifier(config.channels, config)
        self.context = PointWise(c5, config=config.context)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Coarse scores."""
        c5 = features["c5"]
        return {"scores": self.classifier(self.fuse(torch.cat([c5, self.context(c5)], 1)))}


class AuxiliaryHead(nn.Sequential):
    """3x3 and classifier on c4, for a second loss in training."""

    def __init__(self, config: SegmentationConfig) -> None:
        reduce = conv_norm_relu(config.backbone.channels("c4"), config.auxiliary, config.activation)
        parts = [reduce, classifier(config.auxiliary, config)]
        super().__init__(OrderedDict(zip(("reduce", "classifier"), parts, strict=True)))


class SegmentationNetwork(nn.Module):
    """Backbone, head and auxiliary head.

    The backbone is initialised first, so networks that differ only in what is inserted or in their head have the same
    trunk when built from the same seed.

    Args:
        config: All settings.
    """

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.backbone)
        self.head = HEAD_CLASSES[config.head](config)
        self.auxiliary = AuxiliaryHead(config) if config.auxiliary else None

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Tensor | dict[str, Tensor]:
        """Scores of every class at every pixel, (B, classes, H, W).

        In training mode a dictionary: `scores`, and by name those of the auxiliary head and whatever else the head is
        to be trained by.
        """
        features = self.backbone.features(images)
        found = self.head(features) if self.training else {"scores": self.head(features)["scores"]}
        if self.training and self.auxiliary is not None:
            found["auxiliary"] = self.auxiliary(features["c4"])
        size = images.shape[2:]
        found = {
            name: F.interpolate(scores, size, mode="bilinear", align_corners=self.config.align_corners)
            for name, scores in found.items()
        }
        return found if self.training else found["scores"]

    def sites(self) -> list[str]:
        """Every attention block by its site, in the order of the forward pass, such as `head.context`."""
        return self.config.sites()


def conv_norm_relu(channels_in: int, channels: int, activation: str = "relu") -> nn.Sequential:
    """A 3x3 convolution without bias, batch norm and ReLU, or leaky ReLU."""
    parts = {
        "conv": nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
        "norm": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(inplace=True) if activation == "relu" else nn.LeakyReLU(SLOPE, inplace=True),
    }
    nn.init.kaiming_normal_(parts["conv"].weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
    return nn.Sequential(OrderedDict(parts))


def classifier(channels: int, config: SegmentationConfig) -> nn.Sequential:
    """Dropout of whole channels, and a 1x1 convolution to the classes."""
    conv = nn.Conv2d(channels, config.classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(OrderedDict(dropout=nn.Dropout2d(config.dropout), conv=conv))


HEAD_CLASSES: dict[str, type[nn.Module]] = {
    "fcn": FCNHead,
    "dual_attention": DualAttentionHead,
    "asymmetric": AsymmetricHead,
    "point_wise": PointWiseHead,
}
