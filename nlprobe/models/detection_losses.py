"""The losses of box and mask heads."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import maskrcnn_loss

from nlprobe.models.sampling import Objects, Sampled

BETA = 1.0
"""Where SmoothL1 of box heads turns from square to absolute; 1/9 in the proposal head."""


def box_losses(
    logits: Float[Tensor, "n k"],
    deltas: Float[Tensor, "n r 4"],
    sampled: Sequence[Sampled],
    objects: Sequence[Objects],
    coder: BoxCoder,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of all proposals, and SmoothL1 of those that are objects', both over the number of proposals.

    Args:
        logits: Class 0 is the background.
        deltas: For each class, or for all together (r = 1).
        sampled: The proposals, an entry an image.
        objects: The objects of each image.
        coder: Turns a proposal and an object's box into the numbers that `deltas` should be.
    """
    labels = torch.cat([each.labels for each in sampled])
    if not len(labels):
        return logits.sum() * 0, deltas.sum() * 0
    positive = torch.where(labels > 0)[0]
    column = labels[positive] if deltas.shape[1] > 1 else torch.zeros_like(positive)
    wanted = [
        coder.encode_single(own.boxes[each.matched[chosen]], each.boxes[chosen])
        for each, own in zip(sampled, objects, strict=True)
        for chosen in [each.positive()]
    ]
    moved = F.smooth_l1_loss(deltas[positive, column], torch.cat(wanted), beta=BETA, reduction="sum")
    return F.cross_entropy(logits, labels), moved / len(labels)


def mask_loss(
    logits: Float[Tensor, "p k s s"], sampled: Sequence[Sampled], objects: Sequence[Objects]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each positive proposal's mask of its own class, the mean over pixels and proposals.

    The object's mask is cut out at the proposal and resized to the logits' size. Without positive proposals it is 0.
    """
    chosen = [each.positive() for each in sampled]
    loss: Tensor = maskrcnn_loss(
        logits,
        [each.boxes[indices] for each, indices in zip(sampled, chosen, strict=True)],
        [own.masks for own in objects],
        [own.labels for own in objects],
        [each.matched[indices] for each, indices in zip(sampled, chosen, strict=True)],
    )
    return loss
