"""Sums over the data set: mean rows and the energy shares of the output."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nlprobe.probe.measurement import Moments


@dataclass
class DataSetMoments:
    """Running sums over images of one quantity at one site, in float64, on the device of what comes in.

    With ȳ an image's mean row and E the mean over images, the shares of E mean_i ‖y_i‖² are `constant` = ‖E ȳ‖²,
    `context` = E‖ȳ − E ȳ‖² and `pairwise_part` = E mean_i ‖y_i − ȳ‖². `context` is merged batch by batch around the
    batches' own means and does not cancel. Rows of another width than those before (channels of images of several
    sizes) have no mean: everything is NaN from then on. Memory: O(C).
    """

    images: int = 0
    mean: Tensor | None = None
    between: Tensor | None = None
    within: Tensor | None = None

    def add(self, moments: Moments) -> None:
        """Take in a batch."""
        count = moments.mean.shape[0]
        mean = moments.mean.mean(0)
        between = (moments.mean - mean).square().sum()
        within = moments.spread.sum()
        if self.mean is None or self.between is None or self.within is None:
            self.images, self.mean, self.between, self.within = count, mean, between, within
            return
        total = self.images + count
        if mean.shape != self.mean.shape:
            self.images, self.mean = total, torch.full_like(mean, math.nan)
            self.between, self.within = torch.full_like(between, math.nan), torch.full_like(within, math.nan)
            return
        difference = mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self.between = self.between + between + difference.square().sum() * (self.images * count / total)
        self.within = self.within + within
        self.images = total

    def shares(self) -> dict[str, float]:
        """`constant`, `context` and `pairwise_part`; they sum to 1, and are NaN where the output is all zero."""
        if self.mean is None or self.between is None or self.within is None:
            return {}
        parts = torch.stack([self.mean.square().sum(), self.between / self.images, self.within / self.images])
        constant, context, pairwise = parts.tolist()
        total = constant + context + pairwise
        if total == 0:
            return dict.fromkeys(("constant", "context", "pairwise_part"), math.nan)
        return {"constant": constant / total, "context": context / total, "pairwise_part": pairwise / total}

    def state(self) -> dict[str, object]:
        """The sums as plain values, for a file."""
        sums = {"mean": self.mean, "between": self.between, "within": self.within}
        return {"images": self.images} | {name: None if sum is None else sum.cpu() for name, sum in sums.items()}

    @classmethod
    def restored(cls, state: dict, device: torch.device) -> "DataSetMoments":
        """The sums that `state` gave, on a device."""
        sums = {name: None if state[name] is None else state[name].to(device) for name in ("mean", "between", "within")}
        return cls(state["images"], **sums)
