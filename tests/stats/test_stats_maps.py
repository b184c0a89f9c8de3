"""Chosen rows, mean maps and A·V against the formulas of section 3.1, position by position."""

import math

import pytest
import torch
from torch import Tensor

from nlprobe.errors import ConfigError, NlprobeError
from nlprobe.stats import apply_map, map_rows, maps, mean_map

INSTANTIATIONS = ("gaussian", "embedded_gaussian", "dot_product", "concat")


def written_out(instantiation: str, query: Tensor, key: Tensor, scale: float, weights: tuple[Tensor, Tensor]) -> Tensor:
    rows = torch.empty(len(query), len(key), dtype=torch.float64)
    for i, q in enumerate(query.double()):
        for j, k in enumerate(key.double()):
            if instantiation == "concat":
                rows[i, j] = max(0.0, float(weights[0].double() @ q + weights[1].double() @ k)) / len(key)
            elif instantiation == "dot_product":
                rows[i, j] = q @ k / len(key)
            else:
                rows[i, j] = math.exp(scale * float(q @ k))
        if "gaussian" in instantiation:
            rows[i] /= rows[i].sum()
    return rows


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
@pytest.mark.parametrize("room", [1, 50, 1 << 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_agrees_with_the_written_out_formula(
    monkeypatch: pytest.MonkeyPatch, instantiation: str, room: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(maps, "BLOCK_ELEMENTS", room)
    query, key, value = (torch.randn(2, 3, n, d).to(dtype) for n, d in ((9, 4), (7, 4), (7, 5)))
    weights = torch.randn(4).to(dtype), torch.randn(4).to(dtype)
    rows = torch.tensor([3, 0, 8, 3])
    found = map_rows(instantiation, query, key, 0.7, rows, weights)
    mean = mean_map(instantiation, query, key, 0.7, weights)
    applied = apply_map(instantiation, query, key, value, 0.7, weights)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.dtype == applied.dtype == wide
    assert mean.dtype == torch.float64
    tolerance = {"rtol": 1e-12, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    for image in range(2):
        for head in range(3):
            expected = written_out(instantiation, query[image, head], key[image, head], 0.7, weights)
            torch.testing.assert_close(found[image, head].double(), expected[rows], **tolerance)
            torch.testing.assert_close(mean[image, head], expected.mean(0), **tolerance)
            context = expected @ value[image, head].double()
            torch.testing.assert_close(applied[image, head].double(), context, **tolerance)


def test_works_without_a_batch_dimension() -> None:
    query, key = torch.randn(6, 3), torch.randn(5, 3)
    assert map_rows("gaussian", query, key, 1.0, torch.tensor([2])).shape == (1, 5)
    assert mean_map("gaussian", query, key, 1.0).sum().item() == pytest.approx(1)
    assert apply_map("gaussian", query, key, torch.ones(5, 2), 1.0).shape == (6, 2)


def test_an_unknown_instantiation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="`embedded_gaussian`"):
        mean_map("softmax", torch.ones(2, 3), torch.ones(2, 3), 1.0)


def test_concat_without_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="`weights`"):
        mean_map("concat", torch.ones(2, 3), torch.ones(2, 3), 1.0)


def test_non_finite_input_is_refused_by_name() -> None:
    query, key = torch.ones(2, 3), torch.tensor([[1.0, math.nan, 0.0]])
    with pytest.raises(NlprobeError, match="`key`"):
        mean_map("gaussian", query, key, 1.0)
    with pytest.raises(NlprobeError, match="`key`"):
        map_rows("gaussian", query, key, 1.0, torch.tensor([0]))


def test_gradients_and_autocast_around_the_call_change_nothing(device: torch.device) -> None:
    query, key, value = (torch.randn(20, 8, device=device) for _ in range(3))
    expected = apply_map("gaussian", query, key, value, 1.0)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = apply_map("gaussian", query.clone().requires_grad_(), key, value, 1.0)
    assert torch.equal(found, expected)
    assert not found.requires_grad
