"""Softmax maps of several heads with biases and masks, against the materialised maps in float64."""

import math

import pytest
import torch
from softmax_reference import H, S, check, masks, product, written_out

from nlprobe.errors import NlprobeError
from nlprobe.stats import softmax_blocks, softmax_shifted
from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask
from nlprobe.stats.softmax_maps import softmax_statistics


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("key_heads", [6, 3, 1])
def test_every_mask_agrees_with_the_materialised_maps(name: str, key_heads: int) -> None:
    check(Logits(*product(key_heads), 0.5, masks()[name]))


@pytest.mark.parametrize("name", masks())
def test_every_mask_agrees_to_float64_in_float64(name: str) -> None:
    check(Logits(*product(3, torch.float64), 0.5, masks()[name]), exact=True)


@pytest.mark.parametrize("name", masks())
def test_given_logits_agree_with_products(name: str) -> None:
    full = written_out(Logits(*product(6), 0.5, masks()[name]))
    check(Logits(given=full.float()))
    lowest = full.float().nan_to_num(neginf=torch.finfo(torch.float32).min)
    check(Logits(given=lowest, mask=masks()[name]))


@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.1, 10.0, 100.0])
@pytest.mark.parametrize("name", ["none", "bias by head", "causal", "padding", "all together"])
def test_even_and_peaked_maps_agree_under_masks(name: str, size: float) -> None:
    check(Logits(*product(6, size=size), 0.5, masks()[name]))


@pytest.mark.parametrize("name", ["none", "all together", "by head, some blind"])
@pytest.mark.parametrize("most", [1, 3000, 40000])
def test_the_size_of_the_blocks_changes_nothing(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_shifted, "MOST_ELEMENTS", most)
    monkeypatch.setattr(softmax_blocks, "LEAST_ROWS", 3)
    monkeypatch.setattr(softmax_blocks, "KEY_BYTES", most)
    check(Logits(*product(3), 0.5, masks()[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_widened_first(dtype: torch.dtype) -> None:
    query, key = product(3, dtype)
    check(Logits(query, key, 0.5, Mask(diagonal=0)))


@pytest.mark.parametrize(("n", "m"), [(1, 9), (9, 1), (1, 1), (2, 2)])
def test_one_query_and_one_key(n: int, m: int) -> None:
    query, key = product(6)
    check(Logits(query[:, :, :n], key[:, :, :m]))
    check(Logits(query[:, :, :n], key[:, :, :m], mask=Mask(diagonal=0)))


def test_flat_causal_attention_has_a_sixth() -> None:
    logits = Logits(torch.zeros(1, 2, 400, 3), torch.zeros(1, 2, 400, 3), mask=Mask(diagonal=0))
    found, mean = softmax_statistics(logits, average=True)
    assert mean is not None
    assert found.avg_dist[0, 1].item() == pytest.approx(1 / 6, rel=1e-2)
    assert mean.avg_dist.item() == pytest.approx(found.avg_dist[0, 0].item(), rel=1e-6)
    assert found.entropy[0, 0].item() == pytest.approx(1, rel=1e-12)
    assert math.isnan(found.shared[0, 0])


def test_without_average_there_is_no_mean() -> None:
    found, mean = softmax_statistics(Logits(*product(6)))
    assert mean is None
    assert found.avg_dist.shape == (S, H)


def test_distance_only_leaves_the_other_columns_out() -> None:
    logits = Logits(*product(6), 0.5, masks()["all together"])
    found, mean = softmax_statistics(logits, distance_only=True, average=True)
    expected, expected_mean = softmax_statistics(logits, average=True)
    for one, other in ((found, expected), (mean, expected_mean)):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.avg_dist, other.avg_dist, rtol=1e-5, atol=1e-9)
        assert one.entropy.isnan().all()
        assert one.n_eff.isnan().all()
        assert one.shared.isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("distance_only", [False, True])
def test_logits_that_are_not_finite_are_refused(bad: float, distance_only: bool) -> None:
    given = torch.randn(1, 2, 5, 6)
    given[0, 1, 2, 3] = bad
    with pytest.raises(NlprobeError, match="`given`"):
        softmax_statistics(Logits(given=given), distance_only=distance_only)
    query, key = product(6)
    key[0, 0, 0, 0] = bad
    with pytest.raises(NlprobeError, match="`key`"):
        softmax_statistics(Logits(query, key, mask=Mask(diagonal=-1)), distance_only=distance_only, average=True)
