"""The statements of docs/math.md, with numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlprobe.stats import avg_dist

SEEDS = st.integers(0, 10**6)


def drawn(seed: int, spread: float, n: int = 12, m: int = 9, d: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, values and W."""
    generator = torch.Generator().manual_seed(seed)
    logits, values, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, m), (m, d), (4, d))
    )
    common = torch.randn(m, generator=generator, dtype=torch.float64)
    return common + spread * logits, values, weight


def mean_map_error(y: Tensor) -> float:
    return math.sqrt(float((y - y.mean(0)).square().sum() / y.square().sum()))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.01, 4))
def test_no_constant_vector_comes_nearer_than_the_mean_output(seed: int, spread: float) -> None:
    logits, values, weight = drawn(seed, spread)
    maps = logits.softmax(1)
    y = maps @ values @ weight.mT + 0.3
    mean = (maps.mean(0, keepdim=True) @ values @ weight.mT + 0.3).expand_as(y)
    assert float((y - mean).norm() / y.norm()) == pytest.approx(mean_map_error(y), rel=1e-9)
    other = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    excess = (y - other).square().sum() - (y - y.mean(0)).square().sum()
    torch.testing.assert_close(excess, len(y) * (y.mean(0) - other).square().sum())
    assert float((y - other).norm() / y.norm()) >= mean_map_error(y)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.01, 4))
def test_the_change_of_the_output_is_bounded_by_the_maps_and_the_centred_values(seed: int, spread: float) -> None:
    logits, values, weight = drawn(seed, spread)
    maps = logits.softmax(1)
    y = maps @ values @ weight.mT
    sigma = torch.linalg.matrix_norm((values - values.mean(0)) @ weight.mT, ord=2)
    apart = maps - maps.mean(0)
    assert bool(((y - y.mean(0)).norm(dim=1) <= sigma * apart.norm(dim=1) + 1e-12).all())
    bound = sigma * (apart.square().sum(1).mean() / y.square().sum(1).mean()).sqrt()
    assert mean_map_error(y) <= float(bound) + 1e-12
    units = maps / maps.norm(dim=1, keepdim=True)
    spread_of_units = (units - units.mean(0)).square().sum(1).mean()
    assert float(spread_of_units) == pytest.approx(2 * float(avg_dist(maps)), rel=1e-6)


def test_rows_of_one_norm_turn_the_distance_into_that_bound() -> None:
    maps = torch.stack(
        [torch.roll(torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64), shift) for shift in range(4)]
    )
    norm = maps[0].norm()
    apart = (maps - maps.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(apart, 2 * norm**2 * avg_dist(maps))


@pytest.mark.parametrize("epsilon", [0.1, 1e-2, 1e-3])
def test_maps_that_hardly_differ_can_make_all_of_the_output(epsilon: float) -> None:
    rows = torch.tensor([[0.5 + epsilon, 0.5 - epsilon], [0.5 - epsilon, 0.5 + epsilon]], dtype=torch.float64)
    maps = rows.repeat(8, 1)
    distance = float(avg_dist(maps))
    assert distance == pytest.approx(2 * epsilon**2 / (1 + 4 * epsilon**2), rel=1e-4)
    value = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert mean_map_error(maps @ torch.stack([value, -value])) == pytest.approx(1)


def test_maps_that_share_nothing_can_make_no_difference() -> None:
    maps = torch.eye(16, dtype=torch.float64)
    assert float(avg_dist(maps)) > 0.46
    values = torch.ones(16, 3, dtype=torch.float64)
    assert mean_map_error(maps @ values) == 0


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.001, 3))
def test_the_geometric_mean_of_the_rows_is_off_by_no_more_than_their_divergence_allows(
    seed: int, spread: float
) -> None:
    logits = drawn(seed, spread)[0]
    maps, closed = logits.softmax(1), logits.mean(0).softmax(0)
    excess = logits.logsumexp(1).mean() - logits.mean(0).logsumexp(0)
    divergence = (closed * (closed.log() - maps.log())).sum(1).mean()
    assert float(excess) >= 0
    assert float(divergence) == pytest.approx(float(excess), rel=1e-7, abs=1e-12)
    assert float((maps.mean(0) - closed).abs().sum()) <= float((maps - closed).abs().sum(1).mean()) + 1e-12
    assert float((maps - closed).abs().sum(1).mean()) <= math.sqrt(2 * float(excess)) + 1e-9
    other = torch.randn(len(closed), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(0)
    assert float((other * (other.log() - maps.log())).sum(1).mean()) >= float(excess)


def test_to_second_order_the_excess_is_half_of_the_pairwise_variance() -> None:
    logits = drawn(3, 1e-3)[0]
    closed, apart = logits.mean(0).softmax(0), logits - logits.mean(0)
    variance = ((closed * apart.square()).sum(1) - (closed * apart).sum(1).square()).mean()
    excess = logits.logsumexp(1).mean() - logits.mean(0).logsumexp(0)
    assert float(excess) == pytest.approx(0.5 * float(variance), rel=1e-2)


def test_constants_of_rows_leave_the_closed_form_exact() -> None:
    row = drawn(1, 1.0)[0][0]
    logits = row + torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(logits.softmax(1).mean(0), logits.mean(0).softmax(0))
