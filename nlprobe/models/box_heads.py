"""What is computed of a pooled box: its class, its regression, its mask."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from nlprobe.models.detection_config import DetectionConfig
from nlprobe.models.fpn import wide

BOX_SIDE = 7
MASK_SIDE = 14
"""Positions along a side of the maps that the heads get; the mask has twice as many."""

LAYERS = {"2fc": (0, 2), "4conv1fc": (4, 1)}
"""Convolutions and linear layers of the box heads."""


class BoxHead(nn.Module):
    """Convolutions and linear layers, then two linear ones: logits of the classes, and four numbers that move a box.

    Class 0 is the background.

    Shapes: (n, C, 7, 7) -> logits (n, classes + 1) and deltas (n, classes + 1, 4); class-agnostic: (n, 1, 4).
    """

    def __init__(self, config: DetectionConfig) -> None:
        super().__init__()
        convolutions, layers = LAYERS[config.box_head]
        self.body = FastRCNNConvFCHead(
            (config.channels, BOX_SIDE, BOX_SIDE),
            [config.channels] * convolutions,
            [config.box_width] * layers,
            nn.BatchNorm2d if config.norm else None,
        )
        self.classes = nn.Linear(config.box_width, config.classes + 1)
        self.boxes = nn.Linear(config.box_width, 4 if config.class_agnostic else 4 * (config.classes + 1))
        for module in self.body.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer, deviation in ((self.classes, 0.01), (self.boxes, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Float[Tensor, "n c 7 7"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n r 4"]]:
        """Logits and deltas, in float32 at least."""
        x = self.body(pooled)
        deltas = wide(self.boxes(x))
        return wide(self.classes(x)), deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)


class MaskHead(nn.Sequential):
    """3x3 convolutions, an upsampling one, and 1x1 to a mask for each class; class 0 is the background, and unused.

    Shapes: (n, C, 14, 14) -> logits (n, classes + 1, 28, 28).
    """

    def __init__(self, config: DetectionConfig) -> None:
        norm = nn.BatchNorm2d if config.norm else None
        super().__init__(
            OrderedDict(
                body=MaskRCNNHeads(config.channels, [config.channels] * config.mask_layers, 1, norm),
                masks=MaskRCNNPredictor(config.channels, config.channels, config.classes + 1),
            )
        )

    def of_labels(self, pooled: Float[Tensor, "n c 14 14"], labels: Tensor) -> Float[Tensor, "n 28 28"]:
        """The logits of each box's own class."""
        logits = wide(self(pooled))
        return logits[torch.arange(len(labels), device=labels.device), labels]
