"""Which proposals the heads learn from, and what of: the object that each one overlaps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from nlprobe.errors import ConfigError

OBJECT_SHARE = 0.25
"""At most so many of the sampled proposals are objects'."""


@runtime_checkable
class InstancesLike(Protocol):
    """The objects of an image: corners in its pixels, classes from 0 on, and masks of the whole picture or None."""

    @property
    def boxes(self) -> Tensor:
        """(n, 4)."""

    @property
    def labels(self) -> Tensor:
        """(n,)."""

    @property
    def masks(self) -> Tensor | None:
        """(n, h, w)."""


@dataclass(frozen=True)
class Objects:
    """The objects of an image as the losses take them: on the network's device, classes from 1 on.

    Attributes:
        boxes: Corners in pixels.
        labels: Class of each, from 1 on; 0 is the background.
        masks: Its pixels in the picture; None for a network without mask head.
    """

    boxes: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, " objects"]
    masks: Bool[Tensor, "objects h w"] | None


@dataclass(frozen=True)
class Sampled:
    """Proposals of an image that its heads learn from.

    Attributes:
        boxes: Their corners.
        labels: Class of each from 1 on, 0 for the background.
        matched: Index of the object that each overlaps most; 0 where there is none.
        given: Whether it is an object's own box, which stands among the proposals too.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    matched: Int64[Tensor, " n"]
    given: Bool[Tensor, " n"]

    def positive(self) -> Int64[Tensor, " p"]:
        """Indices of those that are an object's."""
        return torch.where(self.labels > 0)[0]


def objects_of(targets: Sequence[InstancesLike], like: Tensor, classes: int, *, masks: bool) -> list[Objects]:
    """Targets as the losses take them.

    Args:
        targets: One an image.
        like: Gives device and type of the boxes.
        classes: Number of classes.
        masks: Whether they are needed.

    Raises:
        ConfigError: a box without area, a class out of range, or no masks where they are needed.
    """
    return [_objects(target, like, classes, masks, index) for index, target in enumerate(targets)]


def _objects(target: InstancesLike, like: Tensor, classes: int, masks: bool, index: int) -> Objects:
    boxes = target.boxes.to(like).reshape(-1, 4)
    labels = target.labels.to(like.device, torch.int64)
    if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
        raise ConfigError(f"image {index} of the batch has a box without area", "leave it out of the targets")
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise ConfigError(
            f"image {index} of the batch has the classes {sorted(set(labels.tolist()))}, the network {classes}",
            "classes count from 0; set `classes` of the network to the data set's",
        )
    if masks and target.masks is None:
        raise ConfigError(
            f"image {index} of the batch has no masks, and the network learns them", "set `masks` to false"
        )
    found = target.masks.to(like.device) if masks and target.masks is not None else None
    return Objects(boxes, labels + 1, found)


def sample(proposals: Float[Tensor, "p 4"], objects: Objects, overlap: float, count: int) -> Sampled:
    """Draw proposals from torch's generator, up to a quarter of them objects'.

    The objects' own boxes join the proposals. A proposal is an object's when it overlaps one by `overlap` or more, else
    it is background.

    Args:
        proposals: Corners.
        objects: Those of the image, perhaps none.
        overlap: IoU.
        count: How many to draw; fewer where there are not as many.
    """
    boxes = torch.cat([proposals, objects.boxes])
    if len(objects.boxes):
        found = Matcher(overlap, overlap)(box_iou(objects.boxes, boxes))
        matched = found.clamp(min=0)
        labels = objects.labels[matched].where(found >= 0, 0)
    else:
        matched = labels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    positive, negative = BalancedPositiveNegativeSampler(count, OBJECT_SHARE)([labels])
    drawn = torch.where(positive[0] | negative[0])[0]
    given = torch.arange(len(boxes), device=boxes.device) >= len(proposals)
    return Sampled(boxes[drawn], labels[drawn], matched[drawn], given[drawn])
