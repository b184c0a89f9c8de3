"""Logit rows, and the dot product's maps, against the materialised products in float64."""

import math

import brute_force
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats import (
    ProductStatistics,
    dot_map_statistics,
    product_statistics,
    product_statistics_beside_prefix,
    products,
)

properties = settings(derandomize=True, deadline=None, max_examples=25)
sizes = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12))


def pair(n: int, m: int, d: int, seed: int = 0, bias: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)
    return query + bias * torch.randn(d, generator=generator), key + bias * torch.randn(d, generator=generator)


def check(found: ProductStatistics, query: Tensor, key: Tensor, scale: float, rel: float = 1e-5) -> None:
    rows = brute_force.logits(query, key, scale)
    assert found.avg_dist.item() == pytest.approx(brute_force.average_distance(rows), rel=rel, abs=1e-15)
    covariance = brute_force.covariance(key)
    pairwise = (brute_force.covariance(query) * covariance).sum().item() * scale**2
    mean = query.double().cpu().mean(0)
    unary = (mean @ covariance @ mean).item() * scale**2
    floor = 1e-20 * rows.square().mean().item()
    assert found.pairwise.item() == pytest.approx(pairwise, rel=rel, abs=floor)
    assert found.unary.item() == pytest.approx(unary, rel=rel, abs=floor)
    deviation = (rows - rows.mean(-1, keepdim=True)).square().mean().sqrt().item()
    assert found.logit_std.item() == pytest.approx(deviation, rel=rel, abs=math.sqrt(floor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 5), (40, 3, 16), (3, 40, 16), (20, 20, 20), (1, 9, 4), (9, 1, 4)])
def test_agrees_with_the_materialised_products(
    device: torch.device, dtype: torch.dtype, n: int, m: int, d: int
) -> None:
    query, key = (t.to(dtype).to(device) for t in pair(n, m, d))
    found = product_statistics(query, key, 0.3)
    check(found, query, key, 0.3)
    assert found.zero_rows == 0


@properties
@given(sizes, st.integers(0, 999), st.sampled_from([0.0, 1.0, 100.0]))
def test_agrees_whatever_the_sizes_and_biases(size: tuple[int, int, int], seed: int, bias: float) -> None:
    query, key = pair(*size, seed, bias)
    check(product_statistics(query, key), query, key, 1.0)


@properties
@given(sizes, st.integers(0, 999))
def test_rotating_queries_and_keys_together_changes_nothing(size: tuple[int, int, int], seed: int) -> None:
    query, key = (t.double() for t in pair(*size, seed))
    rotation = torch.linalg.qr(torch.randn(size[2], size[2], dtype=torch.float64)).Q
    found, expected = product_statistics(query @ rotation, key @ rotation), product_statistics(query, key)
    torch.testing.assert_close(found.avg_dist, expected.avg_dist, rtol=1e-8, atol=1e-14)
    torch.testing.assert_close(found.logit_std, expected.logit_std, rtol=1e-8, atol=1e-14)


@properties
@given(sizes, st.integers(0, 999))
def test_permuting_and_duplicating_positions_change_nothing(size: tuple[int, int, int], seed: int) -> None:
    query, key = (t.double() for t in pair(*size, seed))
    found = product_statistics(query.flip(0).repeat(3, 1), key.repeat(2, 1).flip(0))
    expected = product_statistics(query, key)
    for name in ("avg_dist", "pairwise", "unary", "logit_std"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 16), (300, 10, 64)], ids=["d×d", "few keys"])
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4, 3e-5, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nearly_equal_rows_keep_their_digits(n: int, m: int, d: int, spread: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    query = (torch.randn(d, generator=generator) + spread * torch.randn(n, d, generator=generator)).to(dtype)
    key = torch.randn(m, d, generator=generator).to(dtype)
    if spread == 3e-5:
        assert 1e-10 < brute_force.average_distance(brute_force.logits(query, key)) < 1e-8
    check(product_statistics(query, key), query, key, 1.0)


def test_keys_that_hardly_differ_keep_their_variance() -> None:
    query, key = torch.randn(50, 8), 1 + 1e-6 * torch.randn(60, 8)
    check(product_statistics(query, key), query, key, 1.0)


def test_equal_keys_have_no_variance_at_all() -> None:
    found = product_statistics(torch.randn(50, 8), torch.randn(1, 8).expand(60, 8))
    assert found.pairwise == found.unary == found.logit_std == 0
    assert math.isnan(dot_map_statistics(torch.randn(50, 8), torch.randn(1, 8).expand(60, 8)).shared)


def test_equal_queries_have_no_distance_and_no_pairwise_part() -> None:
    found = product_statistics(torch.randn(1, 8).expand(50, 8), torch.randn(60, 8))
    assert 0 <= found.avg_dist < 1e-24
    assert found.pairwise == 0
    assert found.unary > 0


def test_queries_orthogonal_to_all_keys_are_zero_rows() -> None:
    query, key = pair(30, 40, 6)
    query[:4], query[4:9, :3], key[:, 3:] = 0, 0, 0
    found = product_statistics(query, key)
    assert found.zero_rows == 9
    check(found, query, key, 1.0)
    assert dot_map_statistics(query, key).n_eff.item() == pytest.approx(
        brute_force.n_eff(brute_force.logits(query, key)), rel=1e-5
    )


def test_queries_nearly_orthogonal_to_all_keys_keep_their_direction() -> None:
    query, key = pair(300, 200, 6)
    key[:, 3:] *= 1e-7
    query[:200, :3] = 0
    check(product_statistics(query, key), query, key, 1.0)


def test_all_queries_zero_is_not_a_number() -> None:
    found = product_statistics(torch.zeros(5, 3), torch.randn(6, 3))
    assert math.isnan(found.avg_dist)
    assert found.zero_rows == 5
    assert found.logit_std == 0


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e30), (torch.float32, 1e-30), (torch.float32, 1e-42)])
def test_huge_tiny_and_denormal_values(dtype: torch.dtype, size: float) -> None:
    query, key = pair(40, 30, 5)
    check(product_statistics((query * size).to(dtype), key), (query * size).to(dtype), key, 1.0)
    check(product_statistics(query, (key * size).to(dtype)), query, (key * size).to(dtype), 1.0)


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e-310])
def test_huge_and_tiny_float64_keep_their_distance(size: float) -> None:
    query, key = (t.double() for t in pair(40, 30, 5))
    expected = product_statistics(query, key)
    torch.testing.assert_close(product_statistics(query * size, key).avg_dist, expected.avg_dist, rtol=1e-6, atol=0)
    torch.testing.assert_close(product_statistics(query, key * size).avg_dist, expected.avg_dist, rtol=1e-6, atol=0)
    assert product_statistics(query * size, key).zero_rows == 0


@pytest.mark.parametrize("function", [product_statistics, dot_map_statistics])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_input_is_refused_by_name(function, bad: float) -> None:  # type: ignore[no-untyped-def]
    query, key = pair(5, 6, 3)
    with pytest.raises(NlprobeError, match="`query`"):
        function(query.index_fill(0, torch.tensor([2]), bad), key)
    with pytest.raises(NlprobeError, match="`key`"):
        function(query, key.index_fill(0, torch.tensor([2]), bad))


def large(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(300, 32, generator=generator), torch.randn(260, 32, generator=generator)
    match kind:
        case "close":
            query = query[:1] + 1e-4 * query
        case "biased":
            query, key = query + 30, key + 30
        case "clusters":
            query = query[:2].repeat_interleave(150, 0)
        case "tiny row":
            query[17] *= 1e-42
        case "huge row":
            query[17] *= 1e19
        case "nearly null":
            key[:, 16:] *= 1e-4
            query[5, :16] = 0
        case "zero row":
            query[17] = 0
        case "huge":
            query, key = query * 1e25, key * 1e15
    return query, key


@pytest.mark.parametrize(
    "kind", ["random", "close", "biased", "clusters", "tiny row", "huge row", "nearly null", "zero row", "huge"]
)
def test_float32_products_are_kept_only_where_they_are_good_enough(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(products, "LARGE", 0)
    query, key = large(kind)
    found = product_statistics(query, key)
    check(found, query, key, 1.0)
    assert found.zero_rows == (kind == "zero row")
    kept = products._single_precision(query.unsqueeze(0), key.unsqueeze(0)) is not None
    if kind == "random":
        assert kept
    if kind in ("close", "biased", "tiny row", "huge row", "huge"):
        assert not kept


def test_sets_are_measured_one_by_one_whatever_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(2, 21, 3, 8).transpose(1, 2), torch.randn(2, 17, 3, 8).transpose(1, 2)
    for room in (1 << 17, 300):
        monkeypatch.setattr(products, "block_elements", lambda _, room=room: room)
        found = product_statistics(query, key)
        for image in range(2):
            for head in range(3):
                one = product_statistics(query[image, head], key[image, head])
                torch.testing.assert_close(found.avg_dist[image, head], one.avg_dist, rtol=1e-10, atol=0)
                torch.testing.assert_close(found.pairwise[image, head], one.pairwise, rtol=1e-10, atol=0)


def test_gradients_and_autocast_around_the_call_change_nothing(device: torch.device) -> None:
    query, key = (t.to(device) for t in pair(30, 40, 6))
    expected, maps = product_statistics(query, key), dot_map_statistics(query, key)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = product_statistics(query.clone().requires_grad_(), key)
        assert torch.equal(dot_map_statistics(query, key.clone().requires_grad_()).n_eff, maps.n_eff)
    assert torch.equal(found.avg_dist, expected.avg_dist)
    assert not found.avg_dist.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(50, 30, 6), (400, 300, 192)], ids=["float64 products", "float32 products"])
def test_dot_product_maps_agree_with_the_materialised_maps(dtype: torch.dtype, n: int, m: int, d: int) -> None:
    query, key = (t.to(dtype) for t in pair(n, m, d))
    found, maps = dot_map_statistics(query, key), brute_force.logits(query, key) / m
    assert found.avg_dist.item() == pytest.approx(brute_force.average_distance(maps), rel=1e-5)
    assert found.n_eff.item() == pytest.approx(brute_force.n_eff(maps), rel=1e-5)
    assert found.shared.item() == pytest.approx(brute_force.shared(maps), rel=1e-5)
    assert math.isnan(found.entropy)
    assert math.isnan(dot_map_statistics(query, key, distance_only=True).n_eff)
    assert dot_map_statistics(query, key, distance_only=True).avg_dist == found.avg_dist


@pytest.mark.parametrize("kind", ["biased", "nearly null", "tiny row", "huge row", "huge"])
def test_dot_product_maps_fall_back_to_float64_where_logits_cancel(kind: str) -> None:
    query, key = large(kind)
    expected = brute_force.n_eff(brute_force.logits(query, key))
    assert dot_map_statistics(query, key).n_eff.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("prefix", [1, 5])
@pytest.mark.parametrize("shape", [(2, 3, 60, 50, 16), (1, 2, 9, 4, 3), (2, 3, 70, 70, 64)])
def test_queries_after_a_prefix_are_measured_as_by_themselves(shape: tuple[int, ...], prefix: int) -> None:
    s, h, n, m, d = shape
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(s, h, n, d, generator=generator), torch.randn(s, h, m, d, generator=generator)
    query[:, :, 0] = 5
    both = product_statistics_beside_prefix(query, key, prefix, 0.3)
    for found, queries in zip(both, (query, query[:, :, prefix:]), strict=True):
        for name, value in vars(product_statistics(queries.double(), key.double(), 0.3)).items():
            torch.testing.assert_close(getattr(found, name).double(), value.double(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["random", "close", "zero row"])
@pytest.mark.parametrize("prefix", [1, 7])
def test_long_sets_are_measured_beside_their_prefix_too(
    kind: str, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "LARGE", 0)
    query, key = large(kind)
    query[0] *= 3
    both = product_statistics_beside_prefix(query, key, prefix)
    check(both[0], query, key, 1.0)
    check(both[1], query[prefix:], key, 1.0)
    if kind == "random":
        assert products._single_precision(query.unsqueeze(0), key.unsqueeze(0), prefix) is not None
