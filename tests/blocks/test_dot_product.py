"""Dot-product attention takes the cheaper order and stays in range."""

import pytest
import torch
from blocks_reference import relative_error, written_out
from torch.utils.flop_counter import FlopCounterMode

from nlprobe.blocks.dot_product import dot_product_attention


def flops(queries: int, keys: int, width: int, value_width: int) -> int:
    shapes = ((queries, width), (keys, width), (keys, value_width))
    with FlopCounterMode(display=False) as counter:
        dot_product_attention(*(torch.empty(1, *shape, device="meta") for shape in shapes))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "shape", [(4, 4, 64, 64), (500, 500, 8, 8), (1000, 3, 16, 32), (3, 1000, 16, 32), (9, 9, 9, 9)]
)
def test_the_cheaper_order_is_taken(shape: tuple[int, int, int, int]) -> None:
    queries, keys, width, value_width = shape
    through_the_map = 2 * queries * keys * (width + value_width)
    through_the_sums = 2 * width * value_width * (queries + keys)
    assert flops(*shape) == min(through_the_map, through_the_sums)


@pytest.mark.parametrize("positions", [3, 400])
def test_both_orders_are_the_formula(positions: int) -> None:
    query, key, value = (torch.randn(2, positions, 20, dtype=torch.float64) for _ in range(3))
    assert (
        relative_error(dot_product_attention(query, key, value), written_out("dot_product", query, key, value)) < 1e-13
    )


@pytest.mark.parametrize("positions", [3, 5000])
def test_sums_beyond_the_range_of_a_half_are_no_trouble(positions: int) -> None:
    rows = torch.full((1, positions, 20), 8.0, dtype=torch.float16)
    # the sum over 5 000 keys is 320 000, their mean 64, and the result 20 * 8 * 64
    assert torch.equal(dot_product_attention(rows, rows, rows), torch.full_like(rows, 10_240.0))
