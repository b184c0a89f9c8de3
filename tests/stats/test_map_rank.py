import math

import pytest
import torch
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats import map_rank
from nlprobe.stats.logits import Logits
from nlprobe.stats.map_rank import effective_rank
from nlprobe.stats.masks import Mask

N, M, D = 14, 8, 8


def brute_force(rows: Tensor) -> float:
    """From a singular value decomposition in full, value by value."""
    centred = rows - sum(rows) / len(rows)
    values = [float(value) for value in torch.linalg.svd(centred).S if value > 1e-12]
    parts = [value / sum(values) for value in values]
    return math.exp(-sum(part * math.log(part) for part in parts)) if parts else math.nan


@pytest.mark.parametrize("n, m", [(N, M), (M, N), (2, 2), (2, 9), (9, 2), (1, 5), (5, 1), (100, 90)])
@pytest.mark.parametrize("scale", [1e-3, 0.3, 3.0])
@pytest.mark.parametrize("elements", [1 << 17, 20])
def test_it_is_the_written_out_formula(
    n: int, m: int, scale: float, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_rank, "block_elements", lambda device: elements)
    query, key = torch.randn(2, 4, n, D), torch.randn(2, 2, m, D)
    maps = (scale * query.double() @ key.double().repeat_interleave(2, 1).mT).softmax(-1)
    expected = torch.tensor([[brute_force(head) for head in heads] for heads in maps], dtype=torch.float64)
    found = effective_rank(Logits(query, key, scale))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_queries_that_see_no_key_are_left_out() -> None:
    query, key = torch.randn(1, 1, N, D), torch.randn(1, 1, M, D)
    seeing = torch.arange(N) % 3 > 0
    found = effective_rank(Logits(query, key, mask=Mask(visible=seeing[None, None, :, None])))
    torch.testing.assert_close(found, effective_rank(Logits(query[:, :, seeing], key)))
    assert effective_rank(Logits(query, key, mask=Mask(diagonal=-N))).isnan().all()


def test_rows_that_are_equal_but_for_rounding_have_no_rank() -> None:
    logits = Logits(torch.ones(1, 1, 60, 1), 9 * torch.randn(1, 1, 50, 1), mask=Mask(bias=torch.randn(1, 1, 60, 1)))
    assert effective_rank(logits).isnan().all()


def test_two_kinds_of_rows_differ_in_one_direction() -> None:
    query = torch.randn(1, 1, 2, D).repeat_interleave(5, 2)
    rank = effective_rank(Logits(query, torch.randn(1, 1, M, D)))
    assert float(rank) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("limit", ["SIDE_LIMIT", "SIZE_LIMIT"])
def test_no_rank_is_taken_of_maps_beyond_the_limits(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = Logits(torch.randn(1, 1, 9, D), torch.randn(1, 1, 7, D))
    monkeypatch.setattr(map_rank, limit, {"SIDE_LIMIT": 7, "SIZE_LIMIT": 63}[limit])
    assert effective_rank(logits).isfinite().all()
    monkeypatch.setattr(map_rank, limit, {"SIDE_LIMIT": 6, "SIZE_LIMIT": 62}[limit])
    assert effective_rank(logits).isnan().all()


def test_what_is_not_finite_is_named() -> None:
    with pytest.raises(NlprobeError, match="`key`"):
        effective_rank(Logits(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), torch.nan)))
