"""Softmax maps against the materialised maps in float64."""

import math

import brute_force
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats import MapStatistics, softmax_map_statistics, softmax_shifted

properties = settings(derandomize=True, deadline=None, max_examples=25)
sizes = st.tuples(st.integers(1, 30), st.integers(2, 30), st.integers(1, 12))


def pair(n: int, m: int, d: int, seed: int = 0, bias: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)
    return query + bias * torch.randn(d, generator=generator), key + bias * torch.randn(d, generator=generator)


def check(found: MapStatistics, query: Tensor, key: Tensor, scale: float) -> None:
    """The distance to the error that is promised for float32 products, everything else to 1e-5."""
    maps = brute_force.softmax_map(query, key, scale)
    distance = brute_force.average_distance(maps)
    assert found.avg_dist.item() == pytest.approx(distance, rel=1e-5, abs=1e-9)
    assert found.n_eff.item() == pytest.approx(brute_force.n_eff(maps), rel=1e-5)
    assert found.entropy.item() == pytest.approx(brute_force.entropy(maps), rel=1e-5, abs=1e-9)
    assert found.shared.item() == pytest.approx(brute_force.shared(maps), rel=1e-5)
    assert found.zero_rows == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 5), (40, 3, 16), (3, 40, 16), (1, 9, 4)])
def test_agrees_with_the_materialised_map(device: torch.device, dtype: torch.dtype, n: int, m: int, d: int) -> None:
    query, key = (t.to(dtype).to(device) for t in pair(n, m, d))
    check(softmax_map_statistics(query, key, 0.4), query, key, 0.4)


@properties
@given(sizes, st.integers(0, 999), st.sampled_from([0.0, 1.0, 30.0]), st.sampled_from([1e-3, 0.1, 1.0]))
def test_agrees_whatever_the_sizes_biases_and_scales(
    size: tuple[int, int, int], seed: int, bias: float, scale: float
) -> None:
    query, key = (t.double() for t in pair(*size, seed, bias))
    check(softmax_map_statistics(query, key, scale), query, key, scale)


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_float32_products_keep_the_promised_error_from_even_to_peaked_maps(scale: float, bias: float) -> None:
    query, key = pair(300, 200, 64, 1, bias)
    check(softmax_map_statistics(query, key, scale), query, key, scale)


@pytest.mark.parametrize("scale", [1e-4, 1e-5, 1e-6, 1e-8])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_nearly_even_maps_keep_their_digits(scale: float, precision) -> None:  # type: ignore[no-untyped-def]
    query, key = pair(100, 80, 16, 2)
    found = softmax_map_statistics(query, key, scale, precision)
    # to first order softmax(s) is (1 + s − mean s)/M, and its square is left out
    centred = brute_force.logits(query, key, scale)
    centred = centred - centred.mean(-1, keepdim=True)
    expected = 0.5 * (centred - centred.mean(0)).square().mean().item()
    assert found.avg_dist.item() == pytest.approx(expected, rel=10 * scale + 1e-5)
    assert found.shared.item() == pytest.approx(brute_force.shared(centred), rel=10 * scale + 1e-5)


def test_float64_products_go_beyond_the_promise() -> None:
    query, key = pair(200, 150, 32, 3)
    maps = brute_force.softmax_map(query, key)
    found = softmax_map_statistics(query, key, precision="float64")
    assert found.avg_dist.item() == pytest.approx(brute_force.average_distance(maps), rel=1e-12)
    assert found.entropy.item() == pytest.approx(brute_force.entropy(maps), rel=1e-12)


def test_one_odd_query_does_not_spoil_the_others() -> None:
    query, key = pair(500, 100, 16, 4)
    query *= 1e-3
    for odd in (0, 7, 499):
        uneven = query.clone()
        uneven[odd] *= 1e5
        check(softmax_map_statistics(uneven, key), uneven, key, 1.0)


def test_peaked_maps_keep_the_digits_of_a_small_entropy() -> None:
    key = torch.eye(40)
    query = 16 * torch.eye(40) + torch.rand(40, 40)
    check(softmax_map_statistics(query, key), query, key, 1.0)


def test_one_hot_rows_are_as_far_apart_as_orthonormal_rows() -> None:
    found = softmax_map_statistics(1000 * torch.eye(50), torch.eye(50))
    assert found.avg_dist.item() == pytest.approx((1 - 1 / 50) / 2, rel=1e-6)
    assert found.entropy == 0
    assert found.n_eff.item() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_queries_have_no_distance_and_share_everything(dtype: torch.dtype) -> None:
    query, key = (t.to(dtype) for t in pair(30, 20, 6))
    found = softmax_map_statistics(query[:1].expand(30, 6), key)
    assert found.avg_dist.item() <= (1e-13 if dtype == torch.float32 else 1e-28)
    assert found.shared.item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("which", ["query zero", "equal keys", "key zero"])
def test_exactly_even_maps_have_nothing_to_share(dtype: torch.dtype, which: str) -> None:
    query, key = (t.to(dtype) for t in pair(30, 20, 6))
    query = torch.zeros_like(query) if which == "query zero" else query
    key = key[:1].expand(20, 6) if which == "equal keys" else key
    key = torch.zeros_like(key) if which == "key zero" else key
    found = softmax_map_statistics(query, key)
    assert found.avg_dist.item() < 1e-13
    assert found.entropy.item() == pytest.approx(1, rel=1e-12)
    assert found.n_eff.item() == pytest.approx(20, rel=1e-12)
    assert math.isnan(found.shared)


def test_one_key_leaves_nothing_to_measure() -> None:
    found = softmax_map_statistics(torch.randn(5, 3), torch.randn(1, 3))
    assert found.avg_dist == 0
    assert found.n_eff == 1
    assert math.isnan(found.entropy)
    assert math.isnan(found.shared)


@properties
@given(sizes, st.integers(0, 999))
def test_permuting_and_duplicating_queries_and_permuting_keys_change_nothing(
    size: tuple[int, int, int], seed: int
) -> None:
    query, key = (t.double() for t in pair(*size, seed))
    found = softmax_map_statistics(query.flip(0).repeat(3, 1), key.flip(0))
    expected = softmax_map_statistics(query, key)
    for name in ("avg_dist", "entropy", "n_eff", "shared"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-8, atol=1e-14)


@properties
@given(sizes, st.integers(0, 999))
def test_a_bias_of_the_keys_changes_nothing(size: tuple[int, int, int], seed: int) -> None:
    query, key = (t.double() for t in pair(*size, seed))
    found = softmax_map_statistics(query, key + torch.randn(size[2]))
    torch.testing.assert_close(found.avg_dist, softmax_map_statistics(query, key).avg_dist, rtol=1e-8, atol=1e-14)


def test_logits_that_overflow_float32_are_redone_in_float64() -> None:
    query, key = pair(30, 20, 6)
    huge = query * 1e25, key * 1e25
    found = softmax_map_statistics(*huge)
    maps = brute_force.softmax_map(*huge)
    assert found.avg_dist.item() == pytest.approx(brute_force.average_distance(maps), rel=1e-5)
    tiny = softmax_map_statistics(query * 1e-30, key * 1e-30)
    assert 0 <= tiny.avg_dist < 1e-30


def test_logits_that_overflow_float64_are_refused() -> None:
    query, key = (t.double() for t in pair(30, 20, 6))
    with pytest.raises(NlprobeError, match="overflow"):
        softmax_map_statistics(query * 1e200, key * 1e200)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("distance_only", [False, True])
def test_non_finite_input_is_refused_by_name(bad: float, distance_only: bool) -> None:
    query, key = pair(5, 6, 3)
    with pytest.raises(NlprobeError, match="`query`"):
        softmax_map_statistics(query.index_fill(0, torch.tensor([2]), bad), key, distance_only=distance_only)
    with pytest.raises(NlprobeError, match="`key`"):
        softmax_map_statistics(query, key.index_fill(0, torch.tensor([2]), bad), distance_only=distance_only)


def test_distance_only_gives_the_same_distance_and_nothing_else() -> None:
    query, key = pair(60, 50, 8)
    found = softmax_map_statistics(query, key, distance_only=True)
    expected = softmax_map_statistics(query, key)
    torch.testing.assert_close(found.avg_dist, expected.avg_dist, rtol=1e-6, atol=0)
    assert math.isnan(found.entropy)
    assert math.isnan(found.n_eff)
    assert math.isnan(found.shared)


@pytest.mark.parametrize("most", [1, 3000, 1 << 21])
def test_sets_are_measured_one_by_one_whatever_the_layout_and_the_blocks(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(softmax_shifted, "MOST_ELEMENTS", most)
    query, key = torch.randn(2, 201, 3, 8).transpose(1, 2), torch.randn(2, 37, 3, 8).transpose(1, 2)
    query[1, 2] *= 1e-6  # one set of six is redone in float64
    query[0, 1] *= 100
    found = softmax_map_statistics(query, key, 0.5)
    assert found.avg_dist.shape == (2, 3)
    for image in range(2):
        for head in range(3):
            one = MapStatistics(*(getattr(found, name)[image, head] for name in vars(found)))
            check(one, query[image, head], key[image, head], 0.5)


def test_gradients_and_autocast_around_the_call_change_nothing(device: torch.device) -> None:
    query, key = (t.to(device) for t in pair(30, 40, 6))
    expected = softmax_map_statistics(query, key)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = softmax_map_statistics(query.clone().requires_grad_(), key)
    assert torch.equal(found.avg_dist, expected.avg_dist)
    assert torch.equal(found.shared, expected.shared)
    assert not found.avg_dist.requires_grad
