"""Where queries and keys lie on their grids: how far apart, and which of them in a padded picture."""

import functools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class PlacedGrids:
    """The distances between the cells of the queries' grid and those of the keys'.

    A cell of axis a of the keys' grid lies at (j + ½)·Q_a/K_a − ½, in units of the queries' grid: at j where both have
    the same size, in the middle of what it pools where the keys' grid is coarser.

    Args:
        query_grid: Sizes of the grid of the queries, last index fastest.
        key_grid: Sizes of the grid of the keys, of as many dimensions.
    """

    def __init__(self, query_grid: tuple[int, ...], key_grid: tuple[int, ...]) -> None:
        self._query_grid = query_grid
        self._key_grid = key_grid
        # maps shorter than a block ask for the same queries again and again
        self._last = functools.lru_cache(maxsize=1)(self._distances)

    def distances(self, queries: slice, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "r m"]:
        """‖p_i − p_j‖ of some queries and all keys, in cells of the queries' grid. O(r·m·dimensions).

        Args:
            queries: Which queries, both ends given, counted without the prefix.
            dtype: Of the result.
            device: Of the result.
        """
        return self._last(queries.start, queries.stop, dtype, device)

    def _distances(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        cells = torch.arange(start, stop, device=device)
        squares = torch.zeros(len(cells), 1, dtype=dtype, device=device)
        # from the fastest axis back, each one taken off the index; the squares grow an axis at the front
        for n, m in zip(reversed(self._query_grid), reversed(self._key_grid), strict=True):
            keys = (torch.arange(m, dtype=dtype, device=device) + 0.5) * (n / max(m, 1)) - 0.5
            along = ((cells % n).to(dtype).unsqueeze(-1) - keys).square_()
            cells = cells // n
            squares = (along.unsqueeze(-1) + squares.unsqueeze(-2)).flatten(-2)
        return squares.sqrt_()


def valid_cells(
    sizes: Sequence[tuple[int, int]], canvas: tuple[int, int], grid: tuple[int, ...]
) -> Bool[Tensor, "b n"]:
    """Which cells of a grid over the padded tensor lie in the picture, cell by cell in row-major order.

    The grid's h'×w' cells cover the tensor's H×W pixels evenly, whether or not h' divides H; so do those of pooled
    keys. A cell (y, x) belongs to a picture of h×w pixels where its centre does: (y + ½)·H/h' < h and (x + ½)·W/w' < w.
    The first row and the first column always do, so that no picture is without positions. Of a grid with more than two
    axes the last two are meant.

    Args:
        sizes: Heights and widths of the pictures.
        canvas: Height and width of the padded tensor, H and W.
        grid: Sizes of the grid.
    """
    sides = []
    for pixels, length, count in zip(zip(*sizes, strict=True), canvas, grid[-2:], strict=True):
        # twice the centre, times h', in whole numbers: no rounding at the edge
        centres = (2 * torch.arange(count) + 1) * length
        inside = centres < 2 * count * torch.tensor(pixels).unsqueeze(-1)
        inside[:, 0] = True
        sides.append(inside)
    cells = sides[0].unsqueeze(-1) & sides[1].unsqueeze(-2)  # (b, h', w')
    return cells.flatten(1).repeat(1, math.prod(grid[:-2]))
