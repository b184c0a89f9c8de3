"""Sums over the data set: mean rows and the energy shares of the output."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

    @classmethod
    def of(cls, moments: Moments) -> "DataSetMoments":
        """The sums over one batch."""
        mean = moments.mean.mean(0)
        return cls(moments.mean.shape[0], mean, (moments.mean - mean).square().sum(), moments.spread.sum())

    def merge(self, other: "DataSetMoments") -> None:
        """Take in the sums over further images; the same merges in the same order give the same bits."""
        if other.mean is None or other.between is None or other.within is None:
            return
        if self.mean is None or self.between is None or self.within is None:
            self.images, self.mean, self.between, self.within = other.images, other.mean, other.between, other.within
            return
        total = self.images + other.images
        if other.mean.shape != self.mean.shape:
            self.images, self.mean = total, torch.full_like(other.mean, math.nan)
            self.between, self.within = (torch.full_like(sum, math.nan) for sum in (other.between, other.within))
            return
        difference = other.mean - self.mean
        self.mean = self.mean + difference * (other.images / total)
        distance = difference.square().sum() * (self.images * other.images / total)
        self.between = self.between + other.between + distance
        self.within = self.within + other.within
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


class MomentTable:
    """The sums over the data set of all sites and quantities."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, DataSetMoments]] = defaultdict(lambda: defaultdict(DataSetMoments))

    def add(self, site: str, calls: Sequence[Mapping[str, Moments]]) -> None:
        """Add a forward call, in which the site ran as often; put together first, as several processes exchange it."""
        together: dict[str, DataSetMoments] = defaultdict(DataSetMoments)
        for moments in calls:
            for quantity, moment in moments.items():
                together[quantity].merge(DataSetMoments.of(moment))
        for quantity, sums in together.items():
            self._sums[site][quantity].merge(sums)

    def shares(self) -> dict[str, dict[str, float]]:
        """By site, the shares of the output's energy."""
        return {site: sums["output"].shares() for site, sums in self._sums.items() if "output" in sums}

    def means(self) -> dict[str, dict[str, Tensor]]:
        """By site and quantity, the mean row."""
        return {
            site: {
                quantity: one.mean
                for quantity, one in sums.items()
                if one.mean is not None and not bool(one.mean.isnan().any())
            }
            for site, sums in self._sums.items()
        }

    def state(self) -> dict[str, Any]:
        """The sums as plain values, for a file."""
        return {site: {quantity: one.state() for quantity, one in sums.items()} for site, sums in self._sums.items()}

    def absorb(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Merge the sums that another table gave as its `state`, on a device."""
        for site, sums in state.items():
            for quantity, one in sums.items():
                self._sums[site][quantity].merge(DataSetMoments.restored(one, device))
