"""How much of the attention on a picture falls on each of the objects in it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from nlprobe.probe.adapters import PairwiseCapture, SingleMapCapture
from nlprobe.probe.key_mass import key_masses
from nlprobe.probe.naming import Objects, Size
from nlprobe.probe.reader import Seen
from nlprobe.probe.selections import of_sets
from nlprobe.stats import cross_key_mass, single_map_mass
from nlprobe.stats.records import AVERAGED_HEAD

COLUMNS = ("image", "view", "site", "object", "class", "size", "area", "mass", "within")
"""A line is an object at a site: its number in the picture, class and size; `area`, `mass` and `within` as
`ObjectMasses` has them."""


def coverage(
    masks: Bool[Tensor, "k h w"], picture: Size, canvas: Size, grid: tuple[int, ...]
) -> Float64[Tensor, "k n"]:
    """Which part of each cell of a grid over the padded tensor lies in each mask, by area.

    A cell that is half in an object counts by half, so that objects smaller than a cell are not lost. Multiplied by a
    cell's area, the parts of a mask add up to its area exactly.

    Args:
        masks: In pixels of the picture at any resolution.
        picture: Height and width of the picture within the padded tensor, which it fills from the top left.
        canvas: Height and width of the padded tensor.
        grid: Height and width of the grid.
    """
    sides = [
        _overlaps(cells, length * pixels / extent, pixels)
        for cells, length, extent, pixels in zip(grid, canvas, picture, masks.shape[1:], strict=True)
    ]
    down, across = (side.to(masks.device) for side in sides)
    # one by one: as numbers, all masks together would take eight times the memory
    return torch.stack([(down @ mask.double() @ across.mT).flatten() for mask in masks])


class ObjectMasses:
    """Notes for each object in a picture what it gets of the attention on that picture, at every site with a map.

    With c_j(o) the part of key cell j that object o covers (`coverage`), P the picture, and m_i(o) = Σ_j |ω_ij| c_j(o):

    - `area` = Σ_j c_j(o) / Σ_j c_j(P), the object's part of the picture;
    - `mass` = Σ_i m_i(o) / Σ_i m_i(P) over the queries i in the picture: the mean map's mass on the object, as a part
      of its mass on the picture;
    - `within` = Σ_i c_i(o) m_i(o) / Σ_i c_i(o) m_i(P): the same for the queries in the object, by the part of their
      cell that is in it; NaN where there are none.

    Attention that is uniform over the picture has `mass` = `within` = `area`. Of several heads the map is their mean,
    of criss-cross attention that of all steps; a module that runs several times in a forward call keeps its last
    numbers.
    A further O(N·M·(d + k)) for each picture and site.
    """

    def __init__(self) -> None:
        self.unmapped: dict[str, str] = {}
        self._lines: dict[tuple[str, str, int], dict[str, Any]] = {}

    def read(self, seen: Seen) -> None:
        """Note the masses of a capture's images."""
        if reason := seen.unmapped():
            self.unmapped[seen.site] = reason
            return
        for at, name in enumerate(seen.images.ids):
            objects = (seen.images.objects or [])[at : at + 1]
            if objects:
                view = seen.images.views[at]
                self._lines[seen.site, name, view] = _masses(seen, at, objects[0]) | {
                    "class": list(objects[0].classes),
                    "size": list(objects[0].sizes),
                }

    def frame(self) -> pd.DataFrame:
        """A line for each object of each image at each site, with `COLUMNS`."""
        parts = [
            pd.DataFrame({"image": name, "view": view, "site": site, "object": range(len(one["class"])), **one})
            for (site, name, view), one in self._lines.items()
        ]
        return pd.concat([pd.DataFrame(columns=list(COLUMNS)), *parts], ignore_index=True)[list(COLUMNS)]

    def state(self) -> dict[str, Any]:
        """Everything read so far."""
        return {"unmapped": dict(self.unmapped), "lines": list(self._lines.items())}

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Take in what another has read."""
        self.unmapped |= state["unmapped"]
        self._lines |= {(site, name, view): one for (site, name, view), one in state["lines"]}

    def clear(self) -> None:
        """Forget everything."""
        self.unmapped, self._lines = {}, {}


def _masses(seen: Seen, at: int, objects: Objects) -> dict[str, list[float]]:
    """`area`, `mass` and `within` of the objects of one image."""
    canvas = seen.images.canvas or (1, 1)
    picture = seen.images.sizes[at] if seen.images.sizes is not None else canvas
    everything = objects.masks.new_ones(1, *objects.masks.shape[1:])
    masks = torch.cat((everything, objects.masks)).to(seen.capture.device)
    keys, queries = (coverage(masks, picture, canvas, grid) for grid in (seen.key_grid, seen.capture.query_grid))
    masses = _by_query(seen, at, torch.nn.functional.pad(keys, (seen.prefix, 0)))[seen.prefix :]  # (n, 1 + k)
    valid = seen.valid[at, seen.prefix :]
    masses = masses.masked_fill(~valid.unsqueeze(1) | masses.isnan(), 0.0)  # a query that sees no key has no mass
    total = masses.sum(0)
    inside = queries[1:]  # (k, n)
    within = (inside * masses[:, 1:].mT).sum(1) / (inside * masses[:, 0]).sum(1)
    numbers = {"area": keys[1:].sum(1) / keys[0].sum(), "mass": total[1:] / total[0], "within": within}
    return {name: values.tolist() for name, values in numbers.items()}


def _by_query(seen: Seen, at: int, keys: Float64[Tensor, "k m"]) -> Float64[Tensor, "n k"]:
    """The part of |ω_i| on each set of keys, for every query of one image."""
    capture, steps = seen.capture, seen.steps()
    if steps is not None:
        query, key = (one[:, at : at + 1] for one in steps)
        return cross_key_mass(query, key, keys.unsqueeze(0))[0]
    if isinstance(capture, SingleMapCapture):
        n = capture.x.shape[1]
        logits = capture.logits[at] if capture.logits is not None else capture.x.new_zeros(n)
        return torch.stack([single_map_mass(logits, one) for one in keys]).expand(n, -1)
    assert isinstance(capture, PairwiseCapture)
    masses = key_masses(of_sets(capture, slice(at, at + 1)), keys.unsqueeze(0))
    return masses[(AVERAGED_HEAD,) if (AVERAGED_HEAD,) in masses else ("0",)][0, 0]


def _overlaps(cells: int, length: float, pixels: int) -> Float64[Tensor, "cells pixels"]:
    """Which part of each of `cells` equal intervals of 0 to `length` lies in each pixel from 0 on."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * (length / cells)
    starts = torch.arange(pixels, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], starts)
    high = torch.minimum(edges[1:, None], starts + 1)
    return (high - low).clamp_min(0) * (cells / length)
