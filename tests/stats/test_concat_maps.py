"""The concatenation mode's maps against the materialised maps in float64."""

import math

import brute_force
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats import concat_map_statistics, concat_product_statistics

properties = settings(derandomize=True, deadline=None, max_examples=60)


def check(a: Tensor, b: Tensor) -> None:
    found, maps = concat_map_statistics(a, b), brute_force.concat_map(a, b)
    assert found.zero_rows == brute_force.zero_rows(maps)
    assert math.isnan(found.entropy)
    expected = brute_force.average_distance(maps), brute_force.n_eff(maps), brute_force.shared(maps)
    assert found.avg_dist.item() == pytest.approx(expected[0], rel=1e-5, abs=1e-15, nan_ok=True)
    assert found.n_eff.item() == pytest.approx(expected[1], rel=1e-5, nan_ok=True)
    assert found.shared.item() == pytest.approx(expected[2], rel=1e-5, nan_ok=True)


@properties
@given(
    st.integers(1, 30),
    st.integers(2, 30),
    st.integers(0, 999),
    st.sampled_from([-3.0, -1.0, 0.0, 2.0, 100.0]),
    st.sampled_from([1e-2, 1.0, 10.0]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_agrees_with_the_materialised_map(
    n: int, m: int, seed: int, offset: float, spread: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = offset + spread * torch.randn(n, generator=generator)
    check(a.to(dtype), torch.randn(m, generator=generator).to(dtype))


@pytest.mark.parametrize("offset", [0.0, 5.0, 1000.0])
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
def test_nearly_equal_rows_keep_their_digits(offset: float, spread: float) -> None:
    a, b = offset + spread * torch.randn(200, dtype=torch.float64), torch.randn(150, dtype=torch.float64)
    found = concat_map_statistics(a, b).avg_dist.item()
    expected = brute_force.average_distance(brute_force.concat_map(a, b))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-17)


def test_a_distance_of_one_in_a_billion_keeps_its_digits() -> None:
    a, b = 3 + 3e-4 * torch.randn(300, dtype=torch.float64), torch.randn(200, dtype=torch.float64)
    expected = brute_force.average_distance(brute_force.concat_map(a, b))
    assert 1e-10 < expected < 1e-8
    assert concat_map_statistics(a, b).avg_dist.item() == pytest.approx(expected, rel=1e-5)
    expected = brute_force.average_distance(a[:, None] + b)
    assert concat_product_statistics(a, b).avg_dist.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", ["one active", "ties", "outlier key", "outlier query", "integers", "none active"])
def test_awkward_cases(case: str) -> None:
    a, b = torch.randn(40), torch.randn(30)
    match case:
        case "one active":
            a, b = -b.max() + 1e-3 * torch.rand(40), b
        case "ties":
            a, b = a.round(), b.round()
        case "outlier key":
            b[3] = 1e6
        case "outlier query":
            a[3] = 1e6
        case "integers":
            a, b = torch.arange(-20.0, 20.0), torch.arange(-15.0, 15.0)
        case "none active":
            a, b = a - 100, b
    check(a, b)


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e-40, 1e30, 1e200])
def test_huge_tiny_and_denormal_values(size: float) -> None:
    a, b = torch.randn(40, dtype=torch.float64).float().double(), torch.randn(30, dtype=torch.float64).float().double()
    a, b = (a * size, b * size) if size > 1e-300 else (a.round() * size, b.round() * size)
    found, expected = concat_map_statistics(a, b), concat_map_statistics(a / size, b / size)
    torch.testing.assert_close(found.avg_dist, expected.avg_dist, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.n_eff, expected.n_eff, rtol=1e-6, atol=0)


def test_rows_without_an_active_key_are_zero_rows() -> None:
    a, b = torch.tensor([-1.0, -3.0, 2.0, -2.0]), torch.tensor([1.0, 2.0])
    assert concat_map_statistics(a, b).zero_rows == 2  # −2 + 2 is not active either
    check(a, b)
    nothing = concat_map_statistics(a - 10, b)
    assert math.isnan(nothing.avg_dist)
    assert math.isnan(nothing.n_eff)
    assert math.isnan(nothing.shared)
    assert nothing.zero_rows == 4


def test_equal_rows_have_no_distance_and_share_everything() -> None:
    found = concat_map_statistics(torch.full((50,), 0.3), torch.randn(40))
    assert 0 <= found.avg_dist < 1e-24
    assert found.shared.item() == pytest.approx(1, rel=1e-9)


def test_equal_keys_make_even_rows_with_nothing_to_share() -> None:
    found = concat_map_statistics(torch.rand(50) + 1, torch.full((40,), 0.3))
    assert 0 <= found.avg_dist < 1e-16
    assert found.n_eff.item() == pytest.approx(40)
    assert math.isnan(found.shared)


@properties
@given(st.integers(1, 20), st.integers(2, 20), st.integers(0, 999), st.sampled_from([0.0, 1.0, 1e3]))
def test_logits_before_the_relu_agree_with_the_materialised_sums(n: int, m: int, seed: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = offset + torch.randn(n, generator=generator), torch.randn(m, generator=generator)
    found, rows = concat_product_statistics(a, b), a.double()[:, None] + b.double()[None, :]
    assert found.avg_dist.item() == pytest.approx(brute_force.average_distance(rows), rel=1e-5, abs=1e-15)
    assert found.unary.item() == pytest.approx(b.double().var(correction=0).item(), rel=1e-9)
    assert found.logit_std.item() == pytest.approx(b.double().std(correction=0).item(), rel=1e-9)
    assert found.pairwise == 0
    assert found.zero_rows == 0


def test_zero_rows_before_the_relu_are_counted() -> None:
    found = concat_product_statistics(torch.tensor([-0.1, 0.5, 1.0]), torch.full((7,), 0.1))
    assert found.zero_rows == 1
    assert found.avg_dist == 0
    assert found.unary == 0


def test_sets_are_measured_one_by_one() -> None:
    a, b = torch.randn(2, 3, 50), torch.randn(2, 3, 40)
    for function in (concat_map_statistics, concat_product_statistics):
        found = function(a, b)
        for image in range(2):
            for head in range(3):
                one = function(a[image, head], b[image, head])
                torch.testing.assert_close(found.avg_dist[image, head], one.avg_dist, rtol=1e-12, atol=0)


@pytest.mark.parametrize("function", [concat_map_statistics, concat_product_statistics])
def test_non_finite_input_is_refused_by_name(function) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NlprobeError, match="`a`"):
        function(torch.tensor([1.0, math.nan]), torch.ones(3))
    with pytest.raises(NlprobeError, match="`b`"):
        function(torch.ones(3), torch.tensor([1.0, math.inf]))


def test_gradients_and_autocast_around_the_call_change_nothing(device: torch.device) -> None:
    a, b = torch.randn(30, device=device), torch.randn(20, device=device)
    expected = concat_map_statistics(a, b)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = concat_map_statistics(a.clone().requires_grad_(), b)
    assert torch.equal(found.avg_dist, expected.avg_dist)
    assert not found.avg_dist.requires_grad
