"""Attention on objects, over their share of the area: by size and by class, with intervals over images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nlprobe.stats.intervals import Estimate, bootstrap_mean

SIZES = ("small", "medium", "large")
"""COCO's: under 32², under 96², and from there on, in pixels of the original picture."""

MEDIUM_FROM, LARGE_FROM = 32**2, 96**2


def size_of(area: int | float) -> str:
    """COCO's name for the size of an object of so many pixels of the original picture."""
    return SIZES[(area >= MEDIUM_FROM) + (area >= LARGE_FROM)]


@dataclass(frozen=True)
class ObjectSummary:
    """What the objects of a group get of a site's attention, as a multiple of their share of the picture's area.

    Attributes:
        model: Label of the network.
        site: The site.
        group: "all", "size" or "class".
        name: Which size or class; "" for all.
        mass: By the mean map.
        within: By the queries in the object itself.
        area: The share of the picture that the group's objects cover, the mean over images that show one.
        objects: How many objects.
    """

    model: str
    site: str
    group: str
    name: str
    mass: Estimate
    within: Estimate
    area: float
    objects: int

    def as_dict(self) -> dict[str, object]:
        """The numbers for JSON; NaN is null."""
        numbers = {
            name: {"mean": _number(one.mean), "low": _number(one.low), "high": _number(one.high), "n": one.n}
            for name, one in (("mass", self.mass), ("within", self.within))
        }
        place = {"model": self.model, "site": self.site, "group": self.group, "name": self.name}
        return place | numbers | {"area": _number(self.area), "objects": self.objects}


def summarise_objects(frame: pd.DataFrame, model: str, classes: Sequence[str], seed: int = 0) -> list[ObjectSummary]:
    """The groups of objects at every site: all, each size, each class that is there.

    An image's value is Σ_o mass_o / Σ_o area_o over its objects o of the group, 1 for attention that is uniform over
    the picture; `within` likewise, over those that any query lies in. The estimate is the mean over the images that
    show such an object, with its 95 % bootstrap interval. Objects that no pixel belongs to are left out.

    Args:
        frame: Lines as `nlprobe.probe.objects.ObjectMasses.frame` gives them.
        model: Label of the network.
        classes: Names of the classes, in their order.
        seed: Seed of the bootstrap.
    """
    frame = frame[frame["area"] > 0]
    found = []
    for site in dict.fromkeys(frame["site"]):
        lines = frame[frame["site"] == site]
        groups = [("all", "", lines)]
        groups += [("size", name, lines[lines["size"] == name]) for name in SIZES]
        groups += [("class", name, lines[lines["class"] == name]) for name in classes]
        found += [_summary(model, site, group, name, rows, seed) for group, name, rows in groups if len(rows)]
    return found


def _summary(model: str, site: str, group: str, name: str, lines: pd.DataFrame, seed: int) -> ObjectSummary:
    sums = _by_image(lines)
    with_queries = _by_image(lines[lines["within"].notna()])
    ratios = {"mass": sums["mass"] / sums["area"], "within": with_queries["within"] / with_queries["area"]}
    estimates = {key: bootstrap_mean(values.to_numpy(), seed=seed) for key, values in ratios.items()}
    return ObjectSummary(model, site, group, name, **estimates, area=float(np.mean(sums["area"])), objects=len(lines))


def _by_image(lines: pd.DataFrame) -> pd.DataFrame:
    """Sums over the objects of each view, and means over the views of an image."""
    numbers = lines.astype(dict.fromkeys(("area", "mass", "within"), "float64"))
    by_view = numbers.groupby(["image", "view"], sort=False)[["area", "mass", "within"]].sum()
    return by_view.groupby("image", sort=False).mean()


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
