"""How alike two networks' mean maps are on the same images: cosines, beside those of shuffled and uniform maps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64

from nlprobe.errors import ConfigError
from nlprobe.stats.grids import valid_cells
from nlprobe.stats.intervals import Estimate, bootstrap_mean, paired_difference

Grid = tuple[int, int]
Map = Float[np.ndarray, "_ _"]
View = tuple[str, int]
"""An image, and which crop of it."""


class MeanMap(NamedTuple):
    """The mean map of an image.

    Attributes:
        values: On the grid of the keys, those in the padding among them.
        size: Height and width of the picture within its padded tensor, in pixels; None where nothing is padded.
        canvas: Height and width of that tensor.
    """

    values: Map
    size: Grid | None = None
    canvas: Grid | None = None


@dataclass(frozen=True)
class Agreement:
    """Cosines of maps, one for each pair, in the order of the images; all on the coarser grid of the two.

    Attributes:
        agreement: cos(a_i, b_i): both networks' maps of image i.
        shuffled: cos(a_i, b_j): the second network's map of another image; NaN where there is only one.
        uniform_first: cos(a_i, 1): the first network's map and the uniform one.
        uniform_second: cos(b_i, 1).
        grids: The grid of each pair.
    """

    agreement: Float64[np.ndarray, " n"]
    shuffled: Float64[np.ndarray, " n"]
    uniform_first: Float64[np.ndarray, " n"]
    uniform_second: Float64[np.ndarray, " n"]
    grids: Sequence[Grid]


def agreement(first: Sequence[MeanMap], second: Sequence[MeanMap]) -> Agreement:
    """Compare the maps of two networks, image by image (the claim of the paper's Figure 5).

    agreement_i = ⟨a_i, b_i⟩ / (‖a_i‖ ‖b_i‖) over the cells in the picture. Where the two networks' keys lie on grids of
    different coarseness, as with keys pooled 2×2, the finer map's masses are summed over the cells of the coarser grid
    (`summed`); then cells in the padding are left out (`valid_cells`). For `shuffled` the second map is that of another
    image (`partners`), resized bilinearly where its grid differs (`resized`). A uniform map of M cells has the cosine
    √(n_eff/M) with a map that sums to one.

    Args:
        first: The first network's map of each image.
        second: The second network's, in the same order.

    Raises:
        ConfigError: two maps of an image have grids of which none is a coarser form of the other.

    Cost: O(Σ M) and a product of each map with a matrix for either axis.
    """
    pairs = [_on_one_grid(a, b) for a, b in zip(first, second, strict=True)]
    others = partners([b.shape for _, b in pairs])
    shuffled = [
        math.nan if at is None else _cosine(a, resized(pairs[at][1], _grid(a)))
        for (a, _), at in zip(pairs, others, strict=True)
    ]
    return Agreement(
        agreement=np.array([_cosine(a, b) for a, b in pairs]),
        shuffled=np.array(shuffled),
        uniform_first=np.array([_cosine(a, np.ones_like(a)) for a, _ in pairs]),
        uniform_second=np.array([_cosine(b, np.ones_like(b)) for _, b in pairs]),
        grids=[_grid(a) for a, _ in pairs],
    )


@dataclass(frozen=True)
class SiteAgreement:
    """How far two networks agree at two sites, over the images that both have seen.

    Attributes:
        first: Label of the first network.
        second: Label of the second.
        sites: A site of the first, and the one of the second that it is compared with.
        matched: Why these two, in words.
        grids: The smallest and the largest grid on which maps were compared, by their cells.
        estimates: Means over images with their intervals, by name: `agreement`, `shuffled`, their paired `difference`,
            `uniform_first`, `uniform_second` (`Agreement`).
        by_image: `agreement` and `shuffled` of each image; of several views their mean.
    """

    first: str
    second: str
    sites: tuple[str, str]
    matched: str
    grids: tuple[Grid, Grid]
    estimates: Mapping[str, Estimate]
    by_image: pd.DataFrame

    def as_dict(self) -> dict[str, object]:
        """The numbers for JSON; NaN is null."""
        numbers = {
            name: {
                "mean": _number(one.mean),
                "low": _number(one.low),
                "high": _number(one.high),
                "n": one.n,
            }
            for name, one in self.estimates.items()
        }
        return {
            "first": self.first,
            "second": self.second,
            "first_site": self.sites[0],
            "second_site": self.sites[1],
            "matched": self.matched,
            "grids": [list(grid) for grid in self.grids],
            **numbers,
        }


def site_agreement(
    labels: tuple[str, str],
    sites: tuple[str, str],
    matched: str,
    maps: tuple[Mapping[View, MeanMap], Mapping[View, MeanMap]],
    seed: int = 0,
) -> SiteAgreement:
    """The agreement of two networks at two sites with its 95 % bootstrap intervals over images.

    Args:
        labels: What the networks are called.
        sites: A site of each.
        matched: Why these two.
        maps: The mean maps of each, by image and view.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: no image in common, or the grids do not fit.
    """
    common = [view for view in maps[0] if view in maps[1]]
    if not common:
        raise ConfigError(
            f"`{labels[0]}` and `{labels[1]}` have no image in common", "give both networks the same data"
        )
    found = agreement([maps[0][view] for view in common], [maps[1][view] for view in common])
    columns = {name: getattr(found, name) for name in ("agreement", "shuffled", "uniform_first", "uniform_second")}
    frame = pd.DataFrame(columns, index=pd.Index([image for image, _ in common], name="image"))
    means = frame.groupby("image", sort=False).mean()
    estimates = {name: bootstrap_mean(means[name].to_numpy(), seed=seed) for name in columns}
    values = (means["agreement"].to_numpy(), means["shuffled"].to_numpy())
    estimates["difference"] = paired_difference(*values, seed=seed)
    grids = sorted(set(found.grids), key=lambda grid: (grid[0] * grid[1], grid))
    return SiteAgreement(*labels, sites, matched, (grids[0], grids[-1]), estimates, means[["agreement", "shuffled"]])


def partners(grids: Sequence[tuple[int, ...]]) -> list[int | None]:
    """For each image another one: the next in order whose map has the same grid, the last of them taking the first.

    An image whose grid no other has takes the next image of all; None where there is no other.

    Args:
        grids: The grid of each image's map.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for at, grid in enumerate(grids):
        places.setdefault(grid, []).append(at)
    found: list[int | None] = [None] * len(grids)
    for group in places.values():
        for at, other in zip(group, group[1:] + group[:1], strict=True):
            found[at] = other if len(group) > 1 else (at + 1) % len(grids) if len(grids) > 1 else None
    return found


def summed(values: Map, grid: Grid) -> Float64[np.ndarray, "rows columns"]:
    """A map's masses summed over the cells of a coarser grid; the sum over the map stays.

    Both grids cover the same picture evenly: a cell that two coarse ones share is divided between them by area, which
    happens only where the coarser grid's sizes do not divide the finer's.

    Args:
        values: The map.
        grid: Height and width of the coarser grid.
    """
    down, across = (_overlaps(fine, coarse) for fine, coarse in zip(values.shape, grid, strict=True))
    return down @ values.astype(np.float64) @ across.T


def resized(values: Map, grid: Grid) -> Float64[np.ndarray, "rows columns"]:
    """A map on another grid over the whole picture, bilinearly between the centres of its cells; not renormalised.

    Args:
        values: The map.
        grid: Height and width of the result.
    """
    if values.shape == grid:
        return values.astype(np.float64)
    down, across = (_between(old, new) for old, new in zip(values.shape, grid, strict=True))
    return down @ values.astype(np.float64) @ across.T


def _on_one_grid(first: MeanMap, second: MeanMap) -> tuple[np.ndarray, np.ndarray]:
    """Both maps on the coarser grid of the two, without what lies in the padding."""
    shapes = first.values.shape, second.values.shape
    grid = (min(shapes[0][0], shapes[1][0]), min(shapes[0][1], shapes[1][1]))
    for shape in shapes:
        factors = {size // part for size, part in zip(shape, grid, strict=True)}
        # pooling by k leaves ⌊size/k⌋ cells; along an axis with few of them other factors come out as well
        if not any(tuple(size // factor for size in shape) == grid for factor in factors):
            raise ConfigError(
                f"the maps of one image have {' and '.join('x'.join(map(str, each)) for each in shapes)} keys, and "
                "neither grid is the other one pooled",
                "compare sites whose inputs have the same size, with --match SITE=SITE",
            )
    inside = np.ones(grid, dtype=np.bool_)
    for one in (first, second):
        if one.size is not None and one.canvas is not None:
            inside &= valid_cells([one.size], one.canvas, grid)[0].view(grid).numpy()
    rows, columns = np.ix_(inside.any(1), inside.any(0))
    return summed(first.values, grid)[rows, columns], summed(second.values, grid)[rows, columns]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _grid(values: np.ndarray) -> Grid:
    return values.shape[0], values.shape[1]


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms else math.nan


def _overlaps(fine: int, coarse: int) -> Float64[np.ndarray, "coarse fine"]:
    """Which part of each of `fine` equal intervals lies in each of `coarse` ones."""
    edges, cells = np.arange(coarse + 1) * (fine / coarse), np.arange(fine)
    low = np.maximum(edges[:-1, None], cells)
    high = np.minimum(edges[1:, None], cells + 1)
    return np.clip(high - low, 0, None)


def _between(old: int, new: int) -> Float64[np.ndarray, "new old"]:
    """The weights with which `old` samples at the centres of equal intervals give `new` ones, constant at the ends."""
    places = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    return np.clip(1 - np.abs(places[:, None] - np.arange(old)), 0, None)
