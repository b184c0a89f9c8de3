"""The attention on chosen keys against rows written out in float64."""

import math

import pytest
import torch
from brute_force import concat_map, logits, softmax_map
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlprobe import stats
from nlprobe.errors import NlprobeError
from nlprobe.stats import Logits, Mask

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))


def draw(sizes: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, and two sets of keys that overlap."""
    s, h, n, m, d = sizes
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(s, h, n, d, generator=generator) * scale
    key = torch.randn(s, h, m, d, generator=generator)
    return query, key, torch.rand(s, 2, m, generator=generator) < 0.5


def shares(rows: Tensor, keys: Tensor) -> Tensor:
    """(n, m) and (k, m) -> (n, k), by sums of magnitudes."""
    rows = rows.double().abs()
    return torch.stack([rows[:, one].sum(1) for one in keys], 1) / rows.sum(1, keepdim=True)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([1e-3, 1.0, 30.0]), st.integers(0, 99))
def test_softmax_masses_are_sums_over_the_rows(sizes: tuple[int, ...], scale: float, seed: int) -> None:
    query, key, keys = draw(sizes, scale, seed)
    found = stats.softmax_key_mass(Logits(query, key, 0.7), keys)
    for s in range(sizes[0]):
        for h in range(sizes[1]):
            expected = shares(softmax_map(query[s, h], key[s, h], 0.7), keys[s])
            torch.testing.assert_close(found[s, h], expected, rtol=2e-5, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([1e-18, 1.0, 1e15]), st.integers(0, 99))
def test_dot_product_masses_are_shares_of_the_magnitudes(sizes: tuple[int, ...], scale: float, seed: int) -> None:
    query, key, keys = draw(sizes, scale, seed)
    found = stats.dot_key_mass(query[:, 0], key[:, 0], keys)
    for s in range(sizes[0]):
        expected = shares(logits(query[s, 0], key[s, 0]), keys[s])
        torch.testing.assert_close(found[s], expected, rtol=1e-4, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([1e-6, 1.0, 1e6]), st.integers(0, 99))
def test_concat_masses_are_shares_of_the_active_keys(sizes: tuple[int, ...], scale: float, seed: int) -> None:
    query, key, keys = draw(sizes, 1.0, seed)
    a, b = query[:, 0, :, 0] * scale, key[:, 0, :, 0] * scale
    found = stats.concat_key_mass(a, b, keys)
    for s in range(sizes[0]):
        torch.testing.assert_close(
            found[s], shares(concat_map(a[s], b[s]), keys[s]), rtol=1e-6, atol=1e-12, equal_nan=True
        )


@settings(max_examples=40, deadline=None)
@given(SIZES, st.sampled_from([(1.0, 1.0), (1.0, -0.7), (0.3, 1.0)]), st.integers(0, 99))
def test_masses_of_joined_rows_are_shares_of_their_magnitudes(
    sizes: tuple[int, ...], weights: tuple[float, float], seed: int
) -> None:
    query, key, keys = draw(sizes, 1.0, seed)
    unary = torch.randn(sizes[0], sizes[3], generator=torch.Generator().manual_seed(seed)).softmax(-1)
    found = stats.joined_key_mass(Logits(query, key), unary, weights, keys)
    for s in range(sizes[0]):
        u = unary[s].double() / unary[s].double().sum()
        rows = weights[0] * softmax_map(query[s, 0], key[s, 0]) + weights[1] * u
        if float(rows.abs().sum(1).min()) > 1e-6:
            torch.testing.assert_close(found[s, 0], shares(rows, keys[s]), rtol=1e-5, atol=1e-9)


def test_the_mass_of_one_map_is_that_of_its_softmax() -> None:
    scores, keys = torch.randn(2, 7) * 20, torch.rand(2, 7) < 0.5
    expected = (scores.double().softmax(-1) * keys).sum(-1)
    torch.testing.assert_close(stats.single_map_mass(scores, keys), expected, rtol=1e-12, atol=0)


def test_hidden_keys_get_nothing_and_blind_queries_have_no_mass() -> None:
    query, key, _ = draw((1, 1, 3, 4, 2))
    visible = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])[None, None]
    keys = torch.tensor([[[False, True, True, False]]])
    found = stats.softmax_key_mass(Logits(query, key, mask=Mask(visible=visible)), keys)[0, 0, :, 0]
    row = logits(query[0, 0], key[0, 0])[0].masked_fill(~visible[0, 0, 0], -math.inf).softmax(0)
    assert float(found[0]) == pytest.approx(float(row[1]), rel=1e-6)
    assert float(found[1]) == 0
    assert math.isnan(found[2])


def test_rows_without_a_weight_have_no_share() -> None:
    query, key = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [-3.0, 5.0]]])
    keys = torch.tensor([[[False, True]]])
    found = stats.dot_key_mass(query, key, keys)[0, :, 0]
    assert float(found[0]) == pytest.approx(0.75)
    assert math.isnan(found[1])
    found = stats.concat_key_mass(torch.tensor([[0.0, -9.0]]), torch.tensor([[1.0, 3.0]]), keys)[0, :, 0]
    assert float(found[0]) == pytest.approx(0.75)
    assert math.isnan(found[1])


def test_logits_that_cancel_are_done_again_in_float64() -> None:
    """Queries nearly orthogonal to long keys: float32 products hold their rounding and little else."""
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(1, 50, 8, generator=generator) + torch.tensor([1e4] + [0.0] * 7)
    query = torch.randn(1, 20, 8, generator=generator) * torch.tensor([1e-10] + [1e-3] * 7)
    keys = torch.rand(1, 1, 50, generator=generator) < 0.3
    expected = shares(logits(query[0], key[0]), keys[0])
    torch.testing.assert_close(stats.dot_key_mass(query, key, keys)[0], expected, rtol=1e-6, atol=0)


def test_long_maps_are_taken_block_by_block() -> None:
    query, key, keys = draw((1, 2, 700, 900, 4), 2.0)
    found = stats.softmax_key_mass(Logits(query, key), keys)
    dots = stats.dot_key_mass(query[:, 1], key[:, 1], keys)
    for h in range(2):
        expected = shares(softmax_map(query[0, h], key[0, h]), keys[0])
        torch.testing.assert_close(found[0, h], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(dots[0], shares(logits(query[0, 1], key[0, 1]), keys[0]), rtol=1e-5, atol=0)


def test_what_is_not_finite_is_refused() -> None:
    query, key, keys = draw((1, 1, 3, 4, 2))
    query[0, 0, 0, 0] = torch.nan
    with pytest.raises(NlprobeError, match="holds NaN"):
        stats.softmax_key_mass(Logits(query, key), keys)
    with pytest.raises(NlprobeError, match="holds NaN"):
        stats.dot_key_mass(query[:, 0], key[:, 0], keys)
