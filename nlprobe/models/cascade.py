"""The stages of box and mask heads: one in Mask R-CNN, three in the cascade, each for boxes that overlap more."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image

from nlprobe.models.box_heads import BoxHead, MaskHead
from nlprobe.models.detection_config import DetectionConfig
from nlprobe.models.sampling import Sampled


@dataclass(frozen=True)
class StageNumbers:
    """What stages differ in.

    Attributes:
        overlap: IoU from which on a proposal is an object's.
        deviations: By which the regression of x, y, width and height is divided.
        weight: Of the stage's losses.
    """

    overlap: float
    deviations: tuple[float, float, float, float]
    weight: float


SINGLE = (StageNumbers(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),)
CASCADE = (
    StageNumbers(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    StageNumbers(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    StageNumbers(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)
"""The cascade of the paper's code base, whose last deviations are rounded thirds."""


class Stage(nn.Module):
    """Box and mask head of one stage."""

    def __init__(self, config: DetectionConfig, numbers: StageNumbers) -> None:
        super().__init__()
        self.numbers = numbers
        x, y, width, height = numbers.deviations
        self.coder = BoxCoder((1 / x, 1 / y, 1 / width, 1 / height))
        self.box = BoxHead(config)
        self.mask = MaskHead(config) if config.masks else None

    def moved(
        self, boxes: Float[Tensor, "n 4"], deltas: Float[Tensor, "n r 4"], labels: Tensor, size: tuple[int, int]
    ) -> Float[Tensor, "n 4"]:
        """The boxes of one image after the regression of their class, cut to the picture; they carry no gradient.

        Args:
            boxes: Corners.
            deltas: What the box head gave.
            labels: Whose regression each box takes, where every class has its own.
            size: Height and width of the picture.
        """
        rows = torch.arange(len(boxes), device=boxes.device)
        chosen = deltas.detach()[rows, labels if deltas.shape[1] > 1 else torch.zeros_like(rows)]
        return clip_boxes_to_image(self.coder.decode_single(chosen, boxes), size)


class Stages(nn.ModuleList):
    """The heads that a configuration asks for, one after the other."""

    def __init__(self, config: DetectionConfig) -> None:
        super().__init__(Stage(config, numbers) for numbers in (CASCADE if config.cascade else SINGLE))

    def in_order(self) -> list[Stage]:
        """The stages."""
        return [stage for stage in self if isinstance(stage, Stage)]


def likeliest(logits: Float[Tensor, "n k"]) -> Tensor:
    """Each box's likeliest class other than the background, from 1 on."""
    return logits[:, 1:].argmax(1) + 1


def next_proposals(
    stage: Stage, sampled: Sequence[Sampled], logits: Tensor, deltas: Tensor, sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """In training: the sampled proposals as the stage moved them, without the objects' own boxes.

    A proposal takes the regression of its object's class, and of its likeliest one if it is background.
    """
    counts = [len(each.boxes) for each in sampled]
    found = []
    for each, scored, delta, size in zip(sampled, logits.split(counts), deltas.split(counts), sizes, strict=True):
        labels = each.labels.where(each.labels > 0, likeliest(scored))
        found.append(stage.moved(each.boxes, delta, labels, size)[~each.given])
    return found
