"""Each way to measure softmax maps by itself: what it finds, and when it is not to be trusted."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from softmax_reference import H, M, N, check, masks, product, written_out
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats import softmax_blocks, softmax_direct, softmax_trust
from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask
from nlprobe.stats.softmax_maps import softmax_statistics

softmax_maps = importlib.import_module("nlprobe.stats.softmax_maps")
properties = settings(derandomize=True, deadline=None, max_examples=20)


def force(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one way alone answer: it is trusted with everything, and the others would fail."""
    shifted = softmax_maps.shifted_statistics

    def only_single(logits, masked, dtype, *rest):  # type: ignore[no-untyped-def]
        assert way == "residuals"
        assert dtype == torch.float32
        return shifted(logits, masked, dtype, *rest)

    monkeypatch.setattr(softmax_maps, "shifted_statistics", only_single)
    direct = torch.ones_like if way == "few passes" else torch.zeros_like
    monkeypatch.setattr(softmax_trust.Trust, "direct", lambda _, found: direct(found.distance, dtype=torch.bool))
    monkeypatch.setattr(softmax_trust.Trust, "shifted", lambda _, found: torch.isfinite(found.distance))


MAPS_WITHOUT_BLIND_SETS = [name for name in masks() if "wholly" not in name]


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("name", MAPS_WITHOUT_BLIND_SETS)
def test_few_passes_alone_measure_usual_maps(name: str, bounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    force("few passes", monkeypatch)
    monkeypatch.setattr(softmax_direct, "BOUNDED_BELOW", 1e9 if bounded else 0.0)
    check(Logits(*product(3), 0.5, masks()[name]))


@pytest.mark.parametrize("name", MAPS_WITHOUT_BLIND_SETS)
def test_residuals_alone_measure_usual_maps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force("residuals", monkeypatch)
    check(Logits(*product(3), 0.5, masks()[name]))


@pytest.mark.parametrize("elements", [1, 2000, 1 << 17])
@pytest.mark.parametrize("name", ["none", "by head, some blind", "all together", "padding"])
def test_few_passes_measure_the_same_in_blocks_of_any_size(
    name: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    force("few passes", monkeypatch)
    monkeypatch.setattr(softmax_direct, "block_elements", lambda _: elements)
    monkeypatch.setattr("nlprobe.stats.softmax_blocks.LEAST_ROWS", 3)
    monkeypatch.setattr("nlprobe.stats.softmax_blocks.KEY_BYTES", elements)
    check(Logits(*product(3), 0.5, masks()[name]))


@pytest.mark.parametrize(
    ("way", "size"), [("few passes", 1e-6), ("few passes", 1000.0), ("residuals", 1e-6), ("residuals", 1000.0)]
)
def test_each_way_loses_the_digits_that_it_is_not_trusted_with(
    way: str, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = Logits(*product(6, size=size), 0.5)
    check(logits)
    force(way, monkeypatch)
    with pytest.raises((AssertionError, NlprobeError)):
        check(logits)


def test_even_maps_keep_their_digits_by_their_differences_from_1(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = Logits(*product(6, size=1e-2), 0.5)
    force("few passes", monkeypatch)
    check(logits)
    monkeypatch.setattr(softmax_direct, "NEAR_EVEN", 0.0)
    monkeypatch.setattr(softmax_blocks.HeadGroups, "plain", False)
    with pytest.raises(AssertionError):
        check(logits)


@pytest.mark.parametrize("m", [197, 4097])
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0])
def test_what_is_kept_of_few_passes_is_good_around_every_threshold(m: int, size: float) -> None:
    generator = torch.Generator().manual_seed(5)
    query, key = torch.randn(1, 2, 60, 32, generator=generator), torch.randn(1, 2, m, 32, generator=generator)
    for bias in (0.0, 1.0, 5.0):
        check(Logits(size * (query + bias), key + 0.3 * bias, 32**-0.5))


@pytest.mark.parametrize("bias", [0.0, 30.0])
@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_long_sets_choose_their_way_from_a_few_rows(
    spread: float, bias: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(6)
    query = torch.randn(1, 2, 300, 16, generator=generator)
    query[0, 1] = query[0, 1, :1] + spread * query[0, 1]  # one head's rows are alike, those of the other are not
    key = torch.randn(1, 2, 80, 16, generator=generator)
    monkeypatch.setattr(softmax_maps, "SAMPLED_FROM", 100)
    check(Logits(query + bias, key, 0.25))


@properties
@given(
    st.tuples(st.integers(1, 3), st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)])),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9)),
    st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
    st.booleans(),
    st.integers(0, 999),
)
def test_any_sets_heads_sizes_and_masks_agree(
    groups: tuple[int, tuple[int, int]], sizes: tuple[int, int, int], scale: float, masked: bool, seed: int
) -> None:
    (s, (h, k)), (n, m, d) = groups, sizes
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(s, h, n, d, generator=generator), torch.randn(s, k, m, d, generator=generator)
    visible = torch.rand(s, 1, n, m, generator=generator) > 0.4
    bias = torch.randn(1, h, 1, m, generator=generator, dtype=torch.float64)
    mask = Mask(bias=bias, visible=visible) if masked else None
    check(Logits(query.double(), key.double(), scale, mask), exact=scale > 0.01)


@properties
@given(st.integers(0, 999), st.sampled_from([0.1, 1.0, 5.0]))
def test_permuting_keys_with_their_mask_and_repeating_heads_change_nothing(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = product(6)
    visible = torch.rand(1, H, N, M, generator=generator) > 0.3
    found, mean = softmax_statistics(Logits(query, key, scale, Mask(visible=visible)), average=True)
    order = torch.randperm(M, generator=generator)
    twice = (query.repeat(1, 2, 1, 1), key[:, :, order].repeat(1, 2, 1, 1))
    again, mean_again = softmax_statistics(
        Logits(*twice, scale, Mask(visible=visible[..., order].repeat(1, 2, 1, 1))), average=True
    )
    assert mean is not None
    assert mean_again is not None
    for name in vars(found):
        # pairs of float32 results, each with the promised error
        torch.testing.assert_close(getattr(again, name)[:, :H], getattr(found, name), rtol=2e-5, atol=2e-9)
        torch.testing.assert_close(getattr(mean_again, name), getattr(mean, name), rtol=2e-5, atol=2e-9)


def test_queries_that_see_nothing_change_no_column_but_their_count() -> None:
    query, key = product(6)
    visible = torch.ones(1, 1, N, 1, dtype=torch.bool)
    visible[:, :, ::3] = False
    found, _ = softmax_statistics(Logits(query, key, 0.5, Mask(visible=visible)))
    expected, _ = softmax_statistics(Logits(query[:, :, visible[0, 0, :, 0]], key, 0.5))
    assert (found.zero_rows == math.ceil(N / 3)).all()
    for name in ("avg_dist", "entropy", "n_eff", "shared"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=2e-5, atol=2e-9)


def test_hidden_keys_are_as_good_as_missing_ones() -> None:
    query, key = product(6)
    visible = (torch.arange(M) < 31).view(1, 1, 1, M)
    found, mean = softmax_statistics(Logits(query, key, 0.5, Mask(visible=visible)), average=True)
    expected, expected_mean = softmax_statistics(Logits(query, key[:, :, :31], 0.5), average=True)
    for one, other in ((found, expected), (mean, expected_mean)):
        for name in ("avg_dist", "entropy", "n_eff", "shared"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=2e-5, atol=2e-9)


def test_the_reference_sees_what_the_mask_hides() -> None:
    def hidden(name: str) -> Tensor:
        return torch.isinf(written_out(Logits(*product(6), 0.5, masks()[name])))

    assert not hidden("none").any()
    assert not hidden("bias by head").any()
    assert hidden("causal")[0, 0].sum() == sum(max(M - 1 - i, 0) for i in range(N))
    assert hidden("some queries blind, one set wholly")[1].all()
