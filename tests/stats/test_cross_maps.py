"""Criss-cross maps, single and composed, against N x N matrices in float64."""

import itertools
import math

import pytest
import torch
from brute_force import average_distance, entropy, n_eff, shared, zero_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlprobe import stats
from nlprobe.errors import NlprobeError

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))
SEEDS = st.integers(0, 10_000)
SIZES = st.sampled_from([1e-4, 0.1, 1.0, 5.0])


def crosses(height: int, width: int) -> Tensor:
    places = list(itertools.product(range(height), range(width)))
    return torch.tensor([[y == v or x == u for v, u in places] for y, x in places])


def draw(seed: int, *shape: int, size: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * size, torch.randn(*shape, generator=generator) * size


def products(query: Tensor, key: Tensor) -> Tensor:
    return query.double().flatten(0, 1) @ key.double().flatten(0, 1).mT


def cross_map(query: Tensor, key: Tensor) -> Tensor:
    return products(query, key).masked_fill(~crosses(*query.shape[:2]), -torch.inf).softmax(-1)


def composed_map(query: Tensor, key: Tensor) -> Tensor:
    total = cross_map(query[0], key[0])
    for step in range(1, len(query)):
        total = cross_map(query[step], key[step]) @ total
    return total


def close(found: Tensor, expected: float, rel: float = 1e-6, floor: float = 1e-13) -> bool:
    if math.isnan(expected):
        return bool(found.isnan())
    return float(found) == pytest.approx(expected, rel=rel, abs=floor)


@settings(max_examples=60, deadline=None)
@given(GRIDS, SEEDS, SIZES)
def test_statistics_of_crosses_are_those_of_the_masked_matrix(grid: tuple[int, int], seed: int, size: float) -> None:
    query, key = draw(seed, *grid, 3, size=size)
    found = stats.cross_map_statistics(query[None], key[None])
    maps, seen = cross_map(query, key), crosses(*grid)
    keys = sum(grid) - 1
    assert close(found.avg_dist[0], average_distance(maps))
    assert close(found.n_eff[0], n_eff(maps))
    nats = float(-torch.special.xlogy(maps, maps).sum(-1).mean())
    assert close(found.entropy[0], nats / math.log(keys) if keys > 1 else math.nan)
    uneven = maps - seen.double() / keys
    energy = uneven.square().sum(-1).mean()
    if float(energy) * keys > 1e-20:
        assert close(found.shared[0], float(uneven.mean(0).square().sum() / energy), rel=1e-5)
    assert int(found.zero_rows[0]) == 0


@settings(max_examples=40, deadline=None)
@given(GRIDS, SEEDS, SIZES)
def test_products_are_measured_on_the_cross_alone(grid: tuple[int, int], seed: int, size: float) -> None:
    query, key = draw(seed, *grid, 3, size=size)
    query[0, 0] = 0
    found = stats.cross_product_statistics(query[None], key[None])
    seen = crosses(*grid)
    rows = products(query, key) * seen
    assert close(found.avg_dist[0], average_distance(rows))
    assert int(found.zero_rows[0]) == zero_rows(rows)
    spread = torch.stack([row[see].var(correction=0) for row, see in zip(rows, seen, strict=True)]).mean().sqrt()
    assert close(found.logit_std[0], float(spread))
    assert found.pairwise.isnan().all()
    assert found.unary.isnan().all()


@settings(max_examples=60, deadline=None)
@given(GRIDS, SEEDS, SIZES, st.integers(2, 4))
def test_composed_statistics_are_those_of_the_matrix_product(
    grid: tuple[int, int], seed: int, size: float, steps: int
) -> None:
    query, key = draw(seed, steps, 1, *grid, 3, size=size)
    found = stats.composed_map_statistics(query, key)
    maps = composed_map(query[:, 0], key[:, 0])
    n = grid[0] * grid[1]
    assert close(found.avg_dist[0], average_distance(maps), rel=1e-5)
    assert close(found.n_eff[0], n_eff(maps))
    if n > 1:
        assert close(found.entropy[0], entropy(maps))
        if float((maps - 1 / n).square().sum(-1).mean()) * n > 1e-20:
            assert close(found.shared[0], shared(maps), rel=1e-5)


@pytest.mark.parametrize("grid", [(3, 5), (5, 3), (2, 8), (1, 4), (4, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("steps", [2, 3])
def test_composed_rows_and_their_mean_are_those_of_the_matrix_product(grid: tuple[int, int], steps: int) -> None:
    query, key = draw(1, steps, 2, *grid, 3)
    n = grid[0] * grid[1]
    chosen = torch.randperm(n)
    rows, mean = stats.composed_rows(query, key, chosen), stats.composed_mean_map(query, key)
    for image in range(2):
        expected = composed_map(query[:, image], key[:, image])
        torch.testing.assert_close(rows[image], expected[chosen], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(mean[image], expected.mean(0), rtol=1e-12, atol=1e-15)


def test_the_order_of_the_steps_matters() -> None:
    query, key = draw(2, 2, 1, 3, 5, 3)
    everything = torch.arange(15)
    forwards = stats.composed_rows(query, key, everything)
    assert not torch.allclose(forwards, stats.composed_rows(query.flip(0), key.flip(0), everything))


def test_rows_of_crosses_have_zeros_outside() -> None:
    query, key = draw(3, 1, 4, 6, 3)
    chosen = torch.tensor([0, 23, 9])
    rows = stats.cross_rows(query, key, chosen)[0]
    torch.testing.assert_close(rows, cross_map(query[0], key[0])[chosen], rtol=1e-12, atol=0)
    assert (rows != 0).sum(-1).tolist() == [9, 9, 9]


@settings(max_examples=40, deadline=None)
@given(GRIDS)
def test_flat_crosses_have_a_closed_form(grid: tuple[int, int]) -> None:
    found = float(stats.cross_flat_distance(torch.ones(1, *grid, dtype=torch.bool)))
    if min(grid) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(average_distance(crosses(*grid).double()), rel=1e-12)
        assert found == pytest.approx((grid[0] - 1) * (grid[1] - 1) / (2 * grid[0] * grid[1]), rel=1e-12)
        flat = stats.cross_map_statistics(torch.zeros(1, *grid, 2), torch.zeros(1, *grid, 2))
        assert float(flat.avg_dist) == pytest.approx(found, rel=1e-12)
        assert float(flat.entropy) == pytest.approx(1)
        assert flat.shared.isnan().all()


def test_flat_steps_do_not_compose_to_a_flat_map() -> None:
    """Two uniform crosses weigh what lies on the own cross more than what lies off it, by paths along the arm."""
    zeros = torch.zeros(2, 1, 4, 6, 2)
    found = stats.composed_map_statistics(zeros, zeros)
    assert float(found.avg_dist) == pytest.approx(average_distance(composed_map(zeros[:, 0], zeros[:, 0])), rel=1e-10)
    assert float(found.avg_dist) > 0.01


@pytest.mark.parametrize("size", [1e-3, 1e-4])
def test_nearly_equal_composed_rows_keep_their_digits(size: float) -> None:
    """On one row of positions crosses hold everything, and two flat steps give nearly equal rows."""
    query, key = draw(4, 2, 1, 1, 40, 4, size=size)
    expected = average_distance(composed_map(query[:, 0], key[:, 0]))
    assert expected < 1e-9
    assert float(stats.composed_map_statistics(query, key).avg_dist) == pytest.approx(expected, rel=1e-5)


def test_turning_an_image_on_its_side_changes_nothing() -> None:
    query, key = draw(5, 2, 1, 4, 7, 3)
    turned = query.transpose(2, 3), key.transpose(2, 3)
    for measured, other in (
        (stats.composed_map_statistics(query, key), stats.composed_map_statistics(*turned)),
        (stats.cross_map_statistics(query[0], key[0]), stats.cross_map_statistics(turned[0][0], turned[1][0])),
    ):
        for name, value in vars(measured).items():
            torch.testing.assert_close(value, vars(other)[name], rtol=1e-10, atol=1e-14)


def test_products_by_the_written_out_formula() -> None:
    for grid in ((3, 5), (1, 4), (4, 1)):
        query, key = draw(6, 2, *grid, 3)
        value = torch.randn(2, *grid, 5)
        found = stats.cross_apply(query, key, value)
        for image in range(2):
            expected = cross_map(query[image], key[image]) @ value[image].double().flatten(0, 1)
            torch.testing.assert_close(found[image].flatten(0, 1), expected.float(), rtol=1e-5, atol=1e-6)


def test_large_logits_do_not_overflow_and_bad_ones_are_named() -> None:
    query, key = draw(7, 2, 1, 3, 4, 2, size=1e3)
    for found in (stats.composed_map_statistics(query, key), stats.cross_map_statistics(query[0], key[0])):
        assert torch.isfinite(found.avg_dist).all()
    query[0, 0, 1, 1, 0] = torch.nan
    with pytest.raises(NlprobeError, match="`query`"):
        stats.composed_map_statistics(query, key)
    with pytest.raises(NlprobeError, match="`query`"):
        stats.cross_map_statistics(query[0], key[0])
