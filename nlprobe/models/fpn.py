"""The feature pyramid, and the pooling of boxes from its levels."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from nlprobe.models.detection_config import DetectionConfig
from nlprobe.models.insertion import STAGES

STRIDES = (4, 8, 16, 32, 64)
"""Pixels of the image for a position of each level, P2 to P6."""

POOLED_LEVELS = 4
SAMPLES = {"mmdet1": 2, "torchvision": 2, "mmdet2": -1}
"""Samples along a side of each bin of a pooled box; -1 takes one for each position in it."""


def feature_pyramid(config: DetectionConfig) -> FeaturePyramidNetwork:
    """Torchvision's, from the maps of c2 to c5 by name to P2 to P6; P6 is every second position of P5."""
    channels = [config.backbone.channels(stage) for stage in STAGES]
    norm = nn.BatchNorm2d if config.norm else None
    return FeaturePyramidNetwork(channels, config.channels, LastLevelMaxPool(), norm)


class BoxPool(nn.Module):
    """Maps of equal size for boxes of any size, each by RoIAlign from the level that fits it, P2 to P5.

    The level is floor(log2(√area / finest)), at least 0 and at most 3 (eq. 1 of "Feature Pyramid Networks"). In
    torchvision's geometry its `MultiScaleRoIAlign` gives the same where its guess of the strides, which it takes once
    from the first images that it sees, is right.

    Args:
        size: Height and width of a pooled map.
        config: For `finest_box` and `geometry`.
    """

    def __init__(self, size: int, config: DetectionConfig) -> None:
        super().__init__()
        self.size = size
        self.geometry = config.geometry
        self.level_of = LevelMapper(0, POOLED_LEVELS - 1, canonical_scale=config.finest_box, canonical_level=0)

    def forward(
        self, levels: Sequence[Float[Tensor, "b c _ _"]], boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "n c size size"]:
        """The pooled maps of the boxes of all images, one image after the other.

        Args:
            levels: P2 to P5.
            boxes: Corners in pixels, a tensor an image.
        """
        image = torch.cat([each.new_full((len(each), 1), index) for index, each in enumerate(boxes)])
        regions = torch.cat([image, torch.cat(list(boxes))], 1)
        wanted = self.level_of(list(boxes))
        first = wide(levels[0])
        pooled = first.new_zeros(len(regions), first.shape[1], self.size, self.size)
        for index, level in enumerate(levels):
            here = torch.where(wanted == index)[0]
            level = wide(level)
            pooled[here] = roi_align(
                level,
                regions[here].to(level.dtype),
                self.size,
                1 / STRIDES[index],
                sampling_ratio=SAMPLES[self.geometry],
                aligned=self.geometry == "mmdet2",
            ).to(pooled.dtype)
        return pooled


def wide(x: Tensor) -> Tensor:
    """In float32 if it is in half precision: too coarse for the coordinates of a large image."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
