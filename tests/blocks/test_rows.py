"""Positions in row-major order, and back."""

import pytest
import torch

from nlprobe.blocks import to_map, to_rows
from nlprobe.blocks.rows import add_rows


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 70, 9, 8), (1, 1, 1, 1), (0, 3, 2, 2)], ids=str)
def test_adding_rows_is_adding_their_map(
    shape: tuple[int, int, int, int], dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> None:
    if dtype == torch.float64 and device.type == "mps":
        pytest.skip("MPS has no float64")
    x = torch.randn(shape, dtype=torch.float32, device=device).contiguous(memory_format=layout).requires_grad_()
    rows = torch.randn(shape[0], shape[2] * shape[3], shape[1], device=device).to(dtype).requires_grad_()
    total = add_rows(x, rows)
    expected = x + to_map(rows, shape[2:])
    assert torch.equal(total, expected)
    assert total.dtype == expected.dtype
    assert total.stride() == x.stride() or total.numel() <= 1
    upstream = torch.randn_like(total)
    actual_gradients = torch.autograd.grad(total, (x, rows), upstream)
    for actual, reference in zip(actual_gradients, torch.autograd.grad(expected, (x, rows), upstream), strict=True):
        assert torch.equal(actual, reference)
        assert actual.dtype == reference.dtype


def test_adding_rows_can_be_differentiated_twice() -> None:
    x, rows = torch.randn(1, 3, 2, 2, dtype=torch.float64), torch.randn(1, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda x, rows: add_rows(x, rows).square(), (x.requires_grad_(), rows.requires_grad_())
    )
