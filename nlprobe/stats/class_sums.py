"""Sums over the images of each class, in one pass: what class selectivity and class shares are computed from."""

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats.streaming import kernel, require_finite, wide, widened


@kernel
def channel_means(x: Shaped[Tensor, "b *axes"], channels_last: bool = False) -> Float64[Tensor, "b c"]:
    """The mean over positions of every channel of every image, in float64.

    Half precision is widened to float32 first; a mean in float32 is off by about 1e-7 of the channel's largest values.

    Args:
        x: (B, C), (B, C, *positions), or with `channels_last` (B, *positions, C).
        channels_last: Where the channels are.

    Raises:
        NlprobeError: no axis of channels, or a value that is not finite.
    """
    if x.ndim < 2:
        raise NlprobeError(
            f"an activation of shape {tuple(x.shape)} has no channels", "choose a module that gives (B, C, …)"
        )
    values = widened(x)
    if x.ndim > 2:
        values = values.mean(dim=tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim)))
    require_finite(activation=values)
    return wide(values)


class ClassSums:
    """Number, sum and sum of squares of the images of each class, for every channel, in float64.

    16 K·C bytes, whatever the number of images.

    Args:
        classes: K; labels are 0 to K - 1.

    Attributes:
        counts: Images of each class so far, (K,).
    """

    def __init__(self, classes: int) -> None:
        self.counts: Int64[np.ndarray, " k"] = np.zeros(classes, dtype=np.int64)
        self._sums = torch.zeros(classes, 0, dtype=torch.float64)
        self._squares = torch.zeros(classes, 0, dtype=torch.float64)

    @property
    def images(self) -> int:
        """Images so far."""
        return int(self.counts.sum())

    @property
    def channels(self) -> int:
        """C; 0 before the first image."""
        return self._sums.shape[1]

    @property
    def squares(self) -> Float64[np.ndarray, "k c"]:
        """Sum of the squares over the images of each class."""
        return self._squares.numpy()

    @property
    def means(self) -> Float64[np.ndarray, "k c"]:
        """Mean over the images of each class; NaN for a class without images."""
        with np.errstate(invalid="ignore"):
            means: np.ndarray = self._sums.numpy() / self.counts[:, None]
        return means

    def add(self, values: Float64[Tensor, "b c"], labels: Int64[Tensor, " b"]) -> None:
        """Take in some images.

        Raises:
            NlprobeError: another number of channels than before, or a label of no class.
        """
        values, labels = values.cpu(), labels.cpu()
        classes = len(self.counts)
        if not self.images:
            self._sums, self._squares = (torch.zeros(classes, values.shape[1], dtype=torch.float64) for _ in range(2))
        if values.shape[1] != self.channels:
            raise NlprobeError(
                f"an activation has {values.shape[1]} channels, and had {self.channels} before",
                "choose a module whose channels do not depend on the image",
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise NlprobeError(f"a label is not among the {classes} classes", "number classes from 0")
        self._sums.index_add_(0, labels, values)
        self._squares.index_add_(0, labels, values.square())
        self.counts += np.bincount(labels.numpy(), minlength=classes)
