import itertools
import math

import pytest
import torch

from nlprobe.stats.grids import PlacedGrids

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "query_grid, key_grid", [((5,), (5,)), ((3, 4), (3, 4)), ((4, 6), (2, 2)), ((2, 3, 4), (2, 1, 8)), ((), ())]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_are_those_between_the_centres_of_cells(
    query_grid: tuple[int, ...], key_grid: tuple[int, ...], dtype: torch.dtype
) -> None:
    expected = [
        [
            math.dist(query, [(j + 0.5) * n / m - 0.5 for j, n, m in zip(key, query_grid, key_grid, strict=True)])
            for key in itertools.product(*map(range, key_grid))
        ]
        for query in itertools.product(*map(range, query_grid))
    ]
    grids = PlacedGrids(query_grid, key_grid)
    n = len(expected)
    torch.testing.assert_close(grids.distances(slice(0, n), dtype, CPU), torch.tensor(expected, dtype=dtype))
    part = slice(n // 3, n - n // 4)
    torch.testing.assert_close(grids.distances(part, dtype, CPU), torch.tensor(expected[part], dtype=dtype))


def test_keys_pooled_two_by_two_lie_in_the_middle_of_what_they_pool() -> None:
    found = PlacedGrids((4, 4), (2, 2)).distances(slice(0, 1), torch.float64, CPU)
    expected = [[math.hypot(y, x) for y in (0.5, 2.5) for x in (0.5, 2.5)]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_grids_without_cells_have_no_distances() -> None:
    assert PlacedGrids((0,), (0,)).distances(slice(0, 0), torch.float32, CPU).shape == (0, 0)
    assert PlacedGrids((3,), (0,)).distances(slice(0, 3), torch.float32, CPU).shape == (3, 0)
