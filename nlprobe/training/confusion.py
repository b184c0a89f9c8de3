"""Which classes are taken for which: confusion matrices of single images, and what is computed from their sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nlprobe.data import IGNORED


def confusion_matrices(
    predicted: Int64[Tensor, "b h w"], labels: Int64[Tensor, "b h w"], classes: int
) -> Int64[Tensor, "b classes classes"]:
    """For each image, how many pixels of each class (rows) got each class (columns); ignored pixels count nowhere."""
    counted = labels != IGNORED
    image = torch.arange(len(labels), device=labels.device)[:, None, None]
    cells = ((image * classes + labels) * classes + predicted)[counted]
    return torch.bincount(cells, minlength=len(labels) * classes**2).view(-1, classes, classes)


def intersection_over_union(confusion: Int64[np.ndarray, "*n classes classes"]) -> Float[np.ndarray, "*n classes"]:
    """IoU of each class: TP / (TP + FP + FN); NaN for a class that is neither there nor predicted."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(-1) + confusion.sum(-2) - hits
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits / union


def mean_iou(confusion: Int64[np.ndarray, "*n classes classes"]) -> Float[np.ndarray, "*n"]:
    """Mean of the classes' IoU, those that are neither there nor predicted left out; NaN where none is."""
    iou = intersection_over_union(confusion)
    defined = ~np.isnan(iou)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(defined, iou, 0).sum(-1) / defined.sum(-1))


def pixel_accuracy(confusion: Int64[np.ndarray, "*n classes classes"]) -> Float[np.ndarray, "*n"]:
    """Share of the labelled pixels that got their class; NaN where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1)))


@dataclass(frozen=True)
class SegmentationScores:
    """How a network did on each image: confusion matrices (n, classes, classes), and cross-entropies (n,).

    The sum of the matrices is the data set's; integers, so that it is exact in any order and for any number of
    processes.
    """

    ids: list[str]
    confusion: Int64[np.ndarray, "n classes classes"]
    losses: Float[np.ndarray, " n"]

    def means(self) -> dict[str, float]:
        """Mean loss of the images that have labelled pixels, mIoU and pixel accuracy of all images together."""
        total = self.confusion.sum(0)
        return {
            "loss": float(np.nanmean(self.losses)),
            "miou": float(mean_iou(total)),
            "pixel_accuracy": float(pixel_accuracy(total)),
        }

    @classmethod
    def joined(cls, parts: Sequence["SegmentationScores"], order: Sequence[str]) -> "SegmentationScores":
        """The scores of several processes as one would have them, in the order of the names `order`."""
        place = {name: number for number, name in enumerate(order)}
        ids = [name for part in parts for name in part.ids]
        sorting = np.argsort([place[name] for name in ids], kind="stable")
        return cls(
            [ids[number] for number in sorting],
            np.concatenate([part.confusion for part in parts if part.ids])[sorting],
            np.concatenate([part.losses for part in parts if part.ids])[sorting],
        )
