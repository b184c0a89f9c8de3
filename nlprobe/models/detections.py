"""What a detection network finds in an image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

SUPPRESSED_FROM = 0.5
SMALLEST_SIDE = 1e-2


@dataclass(frozen=True)
class Detections:
    """Objects found in one image, the surest first.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels of the padded image.
        scores: Probability of the class.
        labels: Class, from 0 on.
        masks: Probability of belonging to the object, on a grid over its box; None without mask head.
    """

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    masks: Float[Tensor, "n s s"] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


def best_detections(
    boxes: Float[Tensor, "n r 4"],
    scores: Float[Tensor, "n k"],
    size: tuple[int, int],
    threshold: float,
    count: int,
) -> Detections:
    """The boxes of one image that remain: of each class those that no surer one of the class overlaps by half.

    Args:
        boxes: For each class, background included, or one for all (r = 1).
        scores: Probabilities; class 0 is the background.
        size: Height and width of the picture, to which boxes are cut.
        threshold: Lower scores are left out.
        count: How many to give at most.
    """
    boxes = clip_boxes_to_image(boxes, size)
    labels = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    boxes = boxes.expand(len(scores), scores.shape[1], 4)[:, 1:].reshape(-1, 4)
    scores, labels = scores[:, 1:].reshape(-1), labels[:, 1:].reshape(-1)
    kept = torch.where(scores > threshold)[0]
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    kept = remove_small_boxes(boxes, SMALLEST_SIDE)
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    kept = batched_nms(boxes, scores, labels, SUPPRESSED_FROM)[:count]
    return Detections(boxes[kept], scores[kept], labels[kept] - 1)
