"""Positions in row-major order, and back."""

import pytest
import torch

from nlprobe.blocks import to_map, to_rows


@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 4), (1, 1)])
def test_rows_are_the_positions_in_row_major_order(spatial: tuple[int, ...]) -> None:
    x = torch.randn(2, 6, *spatial)
    rows = to_rows(x)
    assert rows.is_contiguous()
    for number, position in enumerate(
        torch.cartesian_prod(*(torch.arange(size) for size in spatial)).view(-1, len(spatial))
    ):
        assert torch.equal(rows[:, number], x[(slice(None), slice(None), *position)])
    assert torch.equal(to_map(rows, spatial), x)


def test_a_channels_last_map_is_not_copied() -> None:
    x = torch.randn(2, 6, 3, 4).to(memory_format=torch.channels_last)
    assert to_rows(x).data_ptr() == x.data_ptr()
    assert to_map(to_rows(x), (3, 4)).stride() == x.stride()
