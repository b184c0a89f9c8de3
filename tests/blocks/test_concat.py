"""Concat attention by sorting: exact for ties, far-off centres and every pattern of active keys."""

import pytest
import torch
from blocks_reference import relative_error
from hypothesis import given
from hypothesis import strategies as st

from nlprobe.blocks.concat import concat_attention


def formula(a: torch.Tensor, b: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.relu(a.unsqueeze(2) + b.unsqueeze(1)) / b.shape[1] @ value


def compare(a: torch.Tensor, b: torch.Tensor, value: torch.Tensor, upstream: torch.Tensor, bound: float) -> None:
    ours = [tensor.clone().requires_grad_() for tensor in (a, b, value)]
    theirs = [tensor.double().clone().requires_grad_() for tensor in (a, b, value)]
    output, expected = concat_attention(*ours), formula(*theirs)
    output.backward(upstream)
    expected.backward(upstream.double())
    assert relative_error(output, expected) <= bound
    for actual, reference in zip(ours, theirs, strict=True):
        assert relative_error(actual.grad, reference.grad) <= bound


@pytest.mark.parametrize("centre", [0.0, 1e3, -1e3, 1e6])
def test_large_terms_that_cancel_do_no_harm(centre: float) -> None:
    a, b = torch.randn(2, 60) + centre, torch.randn(2, 50) - centre
    compare(a, b, torch.randn(2, 50, 7), torch.randn(2, 60, 7), 1e-5)


@pytest.mark.parametrize(
    ("a", "b"),
    [(-100.0, 0.0), (100.0, 0.0), (0.0, 0.0)],
    ids=["no key is active", "every key is active", "at the edge of ReLU"],
)
def test_rows_with_no_every_or_just_no_active_key(a: float, b: float) -> None:
    shape = (2, 9)
    compare(torch.full(shape, a), torch.full(shape, b), torch.randn(*shape, 3), torch.randn(*shape, 3), 1e-6)


@given(
    a=st.lists(st.integers(-4, 4), min_size=1, max_size=9),
    b=st.lists(st.integers(-4, 4), min_size=1, max_size=9),
    seed=st.integers(0, 99),
)
def test_ties_count_exactly_as_in_the_formula(a: list[int], b: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(1, len(b), 2, generator=generator, dtype=torch.float64)
    upstream = torch.randn(1, len(a), 2, generator=generator, dtype=torch.float64)
    compare(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64), value, upstream, 1e-12)


def test_thousands_of_positions_stay_exact_in_float32() -> None:
    a, b = torch.randn(1, 3000), torch.randn(1, 3000)
    compare(a, b, torch.randn(1, 3000, 5).abs(), torch.randn(1, 3000, 5), 1e-5)


def test_a_non_contiguous_upstream_gradient_is_fine() -> None:
    a, b, value = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 5), (2, 6), (2, 6, 3)))
    compare(a, b, value, torch.ones(1, dtype=torch.float64).expand(2, 5, 3), 1e-12)
    compare(a, b, value, torch.randn(2, 3, 5, dtype=torch.float64).mT, 1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_spoils_every_row_even_where_its_key_is_not_active(bad: float) -> None:
    a, b, value = torch.zeros(1, 4), torch.tensor([[1.0, -1.0, -2.0]]), torch.ones(1, 3, 2)
    value[0, 2, 0] = bad
    assert concat_attention(a, b, value)[..., 0].isnan().all()
    assert torch.equal(concat_attention(a, b, value)[..., 1], formula(a, b, value)[..., 1])
