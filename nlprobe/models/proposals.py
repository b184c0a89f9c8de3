"""The proposal head on the feature pyramid, with its anchors: torchvision's, but for where anchors stand."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from nlprobe.models.detection_config import DetectionConfig
from nlprobe.models.fpn import STRIDES, wide

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors."""

OBJECT_FROM, BACKGROUND_BELOW = 0.7, 0.3
"""Overlap from which on an anchor is an object's, and below which it is background; the best of an object always is."""

SUPPRESSED_FROM = 0.7


class PyramidAnchors(AnchorGenerator):
    """Three anchors of one area for each position of each level, in float32 at least."""

    def __init__(self, config: DetectionConfig) -> None:
        sides = tuple(config.anchor_scale * stride for stride in STRIDES)
        super().__init__(tuple((side,) for side in sides), (RATIOS,) * len(STRIDES))
        self.geometry = config.geometry
        if self.geometry == "mmdet2":
            self.cell_anchors = [_around_the_origin(side) for side in sides]
        elif self.geometry == "mmdet1":
            self.cell_anchors = [cell + stride / 2 for cell, stride in zip(self.cell_anchors, STRIDES, strict=True)]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The corners of all anchors, a tensor an image: level by level, row by row, position by position."""
        maps = [wide(each) for each in feature_maps]
        if self.geometry == "torchvision":
            found: list[Tensor] = super().forward(image_list, maps)
            return found
        self.set_cell_anchors(maps[0].dtype, maps[0].device)
        grids = [list(each.shape[-2:]) for each in maps]
        device = maps[0].device
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in STRIDES]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors for _ in image_list.image_sizes]


def _around_the_origin(side: int) -> Tensor:
    """Anchors of the area side², exact."""
    roots = torch.tensor(RATIOS, dtype=torch.float64).sqrt()
    halves = torch.stack([side / roots, side * roots], 1) / 2
    return torch.cat([-halves, halves], 1)


class ProposalHead(RPNHead):
    """3x3 and ReLU, once or more, then 1x1 to a logit and four numbers for each anchor, in float32 at least.

    The ReLU is a function as in the paper's code base, whose counter of operations sees modules only.
    """

    def __init__(self, config: DetectionConfig) -> None:
        super().__init__(config.channels, len(RATIOS), config.proposal_layers)
        convolutions = [layer for layer in self.get_submodule("conv").modules() if isinstance(layer, nn.Conv2d)]
        self.conv = nn.Sequential(*map(nn.Sequential, convolutions))

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and deltas of each level."""
        logits, deltas = [], []
        for level in x:
            for layer in self.conv:
                level = F.relu(layer(level))
            logits.append(wide(self.cls_logits(level)))
            deltas.append(wide(self.bbox_pred(level)))
        return logits, deltas


def proposal_network(config: DetectionConfig) -> RegionProposalNetwork:
    """The region proposal network.

    Its losses are the cross-entropy of the sampled anchors, and SmoothL1 (β 1/9) of those that are objects', both over
    the number of sampled anchors.
    """
    passed = {"training": config.training_proposals, "testing": config.proposals}
    return RegionProposalNetwork(
        PyramidAnchors(config),
        ProposalHead(config),
        OBJECT_FROM,
        BACKGROUND_BELOW,
        config.sampled_anchors,
        0.5,
        passed,
        dict(passed),
        SUPPRESSED_FROM,
    )


def image_list(images: Tensor, sizes: Sequence[tuple[int, int]]) -> ImageList:
    """Images with the height and width of the picture in each, as torchvision takes them."""
    return ImageList(images, list(sizes))
