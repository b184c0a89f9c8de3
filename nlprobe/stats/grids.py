"""Where queries and keys lie on their grids, and how far apart."""

import functools

import torch
from jaxtyping import Float
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
