"""Statistics of two parts of the rows, joined, are those of all rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nlprobe.stats.distance import row_statistics
from nlprobe.stats.joining import few_row_statistics, joined_rows


def assert_same(found, expected, rtol: float = 1e-9) -> None:
    for name, value in vars(expected).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=rtol, atol=1e-15, err_msg=name)


@given(
    n=st.integers(2, 12),
    first=st.integers(1, 11),
    spread=st.sampled_from([1.0, 1e-3, 1e-6, 0.0]),
    seed=st.integers(0, 100),
)
def test_parts_join_to_the_whole(n: int, first: int, spread: float, seed: int) -> None:
    first = min(first, n - 1)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(2, 3, 1, 5, generator=generator, dtype=torch.float64)
    v = v + spread * torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64)
    parts = (few_row_statistics(v[..., :first, :]), row_statistics(v[..., first:, :]))
    assert_same(joined_rows(*parts, first, n - first), row_statistics(v), rtol=1e-8)


@pytest.mark.parametrize("zeros", [[0], [0, 1], [3], [2, 3, 4], [0, 1, 2, 3, 4]])
def test_zero_rows_of_either_part_are_left_out(zeros: list[int]) -> None:
    v = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v[zeros] = 0
    assert_same(joined_rows(few_row_statistics(v[:2]), row_statistics(v[2:]), 2, 3), row_statistics(v))


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e150])
@pytest.mark.parametrize("n", [1, 4])
def test_few_rows_are_measured_as_many_are(n: int, size: float) -> None:
    v = size * torch.randn(3, n, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, expected = few_row_statistics(v), row_statistics(v)
    for name in ("avg_dist", "zero_rows", "direction", "mean"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=0 if n > 1 else 1e-15)


def test_half_precision_is_widened() -> None:
    v = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert_same(few_row_statistics(v), row_statistics(v), rtol=1e-6)
