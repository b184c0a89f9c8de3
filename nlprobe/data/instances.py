"""What a picture shows, object by object: boxes, classes and masks."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Instances:
    """The objects of one picture, in pixels of the picture that they were read for or resized with.

    Attributes:
        boxes: Left, top, right and bottom edge of each object; pixel k reaches from k to k + 1.
        labels: Class of each object, from 0, in the order of the sorted category ids.
        masks: Pixels of each object; None where the data set has boxes only.
        crowd: Whether it is no single object, but an area full of such objects.
        image_id: The picture's number in COCO's JSON.
        size: Height and width of the original picture, whatever was done to it since.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    masks: Bool[Tensor, "n h w"] | None
    crowd: Bool[Tensor, " n"]
    image_id: int
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, chosen: Bool[Tensor, " n"]) -> "Instances":
        """Some of the objects."""
        return replace(
            self,
            boxes=self.boxes[chosen],
            labels=self.labels[chosen],
            masks=None if self.masks is None else self.masks[chosen],
            crowd=self.crowd[chosen],
        )

    def without_crowds(self) -> "Instances":
        """The single objects: what a network learns from."""
        return self.where(~self.crowd) if bool(self.crowd.any()) else self

    def resized(self, before: tuple[int, int], after: tuple[int, int]) -> "Instances":
        """The objects after their picture went from one height and width to another one.

        Masks take the nearest pixel, as they have no values in between.
        """
        if before == after:
            return self
        down, across = (new / old for old, new in zip(before, after, strict=True))
        masks = self.masks
        if masks is not None:
            rows, columns = (_nearest(old, new) for old, new in zip(before, after, strict=True))
            masks = masks[:, rows][:, :, columns]
        return replace(self, boxes=self.boxes * torch.tensor([across, down, across, down]), masks=masks)

    def mirrored(self, width: int) -> "Instances":
        """The objects of the mirrored picture, which is `width` pixels wide."""
        left, top, right, bottom = self.boxes.unbind(1)
        boxes = torch.stack([width - right, top, width - left, bottom], 1)
        return replace(self, boxes=boxes, masks=None if self.masks is None else self.masks.flip(2))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Instances":
        """The same on another device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking) for name in ("boxes", "labels", "crowd")
        }
        masks = None if self.masks is None else self.masks.to(device, non_blocking=non_blocking)
        return replace(self, **moved, masks=masks)


def _nearest(before: int, after: int) -> Int64[Tensor, " after"]:
    """For each of `after` pixels, the one of `before` that its centre lies in."""
    return ((torch.arange(after, dtype=torch.float64) + 0.5) * before / after).long().clamp(max=before - 1)
