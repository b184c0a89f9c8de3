import importlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nlprobe.errors import ConfigError, NlprobeError
from nlprobe.stats import logit_blocks
from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask
from nlprobe.stats.softmax_rows import softmax_apply, softmax_mean_map, softmax_rows

MODULE = importlib.import_module("nlprobe.stats.softmax_rows")
S, H, N, M, D = 3, 6, 10, 12, 8
ROWS = torch.tensor([8, 1, 1, 0])


def masks() -> dict[str, Mask | None]:
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(1, H, N, M, generator=generator, dtype=torch.float64)
    visible = torch.rand(S, 1, N, M, generator=generator) > 0.3
    blind = visible.clone()
    blind[1, :, 2:9] = False
    blind[2] = False
    return {
        "none": None,
        "bias by head": Mask(bias=bias),
        "causal": Mask(diagonal=0),
        "first queries see nothing": Mask(diagonal=-3),
        "padding": Mask(visible=torch.arange(M).expand(S, M).lt(torch.tensor([[12], [7], [1]]))[:, None, None]),
        "some rows and a whole set see nothing": Mask(bias=bias, visible=blind, diagonal=5),
        "Swin": Mask(bias=torch.where(bias[:, :1] > 0, -100.0, 0.0), hidden_below=-99.0),
    }


def dense_maps(query: Tensor, key: Tensor, scale: float, mask: Mask | None) -> Tensor:
    """The maps in float64 by loops over nothing but torch's own operations; rows that see nothing are zero."""
    scores = scale * query.double() @ key.double().repeat_interleave(H // key.shape[1], 1).mT
    weights = scores.exp()
    if mask is not None and mask.bias is not None:
        weights = weights * mask.bias.exp() * (mask.bias > mask.hidden_below)
    if mask is not None and mask.visible is not None:
        weights = weights * mask.visible
    if mask is not None and mask.diagonal is not None:
        weights = weights.tril(mask.diagonal)
    return (weights / weights.sum(-1, keepdim=True)).nan_to_num(0)


@pytest.fixture(params=[6, 3, 1], ids=["own keys", "grouped keys", "one key head"])
def product(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(S, N, H, D, generator=generator, dtype=torch.float64).transpose(1, 2)
    return query, torch.randn(S, request.param, M, D, generator=generator, dtype=torch.float64)


@pytest.fixture(params=[1 << 17, 700, 300, 30, 1], ids="blocks of {}".format)
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several sets at once, one set, some heads, some rows of one head, one row."""
    monkeypatch.setattr(logit_blocks, "block_elements", lambda device: request.param)
    monkeypatch.setattr(MODULE, "block_elements", lambda device: request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("name", masks())
def test_rows_mean_and_product_are_the_written_out_ones(name: str, product: tuple[Tensor, Tensor]) -> None:
    mask = masks()[name]
    logits = Logits(*product, 0.3, mask)
    expected = dense_maps(*product, 0.3, mask)
    torch.testing.assert_close(softmax_rows(logits, ROWS), expected[:, :, ROWS])
    seeing = expected.sum(-1, keepdim=True).sum(-2).round().clamp_min(1)
    torch.testing.assert_close(softmax_mean_map(logits), expected.sum(-2) / seeing)
    for heads in (6, 2, 1):
        value = torch.randn(S, heads, M, 5, dtype=torch.float64)
        torch.testing.assert_close(softmax_apply(logits, value), expected @ value.repeat_interleave(H // heads, 1))


def test_the_masks_cover_queries_that_see_nothing_and_queries_that_see_all(product: tuple[Tensor, Tensor]) -> None:
    masses = [dense_maps(*product, 0.3, mask).sum(-1).round() for mask in masks().values()]
    assert sum(bool((mass == 0).any()) for mass in masses) == 2
    assert sum(bool((mass == 0).all(-1).any()) for mass in masses) == 1


@pytest.mark.parametrize("name", masks())
def test_given_logits_make_the_same_maps(name: str, product: tuple[Tensor, Tensor]) -> None:
    maps = dense_maps(*product, 0.3, masks()[name])
    given = maps.log().clamp_min(torch.finfo(torch.float64).min)
    logits = Logits(mask=Mask(visible=maps > 0), given=given)
    value = torch.randn(S, 2, M, 5, dtype=torch.float64)
    torch.testing.assert_close(softmax_rows(logits, ROWS), maps[:, :, ROWS])
    torch.testing.assert_close(softmax_apply(logits, value), maps @ value.repeat_interleave(3, 1))
    torch.testing.assert_close(softmax_mean_map(replace(logits, given=maps.log(), mask=None)), softmax_mean_map(logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_less_than_float64_is_computed_in_float32(dtype: torch.dtype, product: tuple[Tensor, Tensor]) -> None:
    query, key = (part.to(dtype) for part in product)
    value = torch.randn(S, 3, M, 5).to(dtype)
    expected = dense_maps(query, key, 0.3, masks()["causal"])
    logits = Logits(query, key, 0.3, masks()["causal"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows, mean, applied = softmax_rows(logits, ROWS), softmax_mean_map(logits), softmax_apply(logits, value)
    assert (rows.dtype, mean.dtype, applied.dtype) == (torch.float32, torch.float64, torch.float32)
    torch.testing.assert_close(rows.double(), expected[:, :, ROWS], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(mean, expected.mean(-2), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        applied.double(), expected @ value.double().repeat_interleave(2, 1), rtol=1e-5, atol=1e-6
    )


def test_float64_values_make_a_float64_product(product: tuple[Tensor, Tensor]) -> None:
    query, key = (part.float() for part in product)
    value = torch.randn(S, H, M, 5, dtype=torch.float64)
    torch.testing.assert_close(softmax_apply(Logits(query, key), value), dense_maps(query, key, 1.0, None) @ value)


def test_no_gradient_is_kept(product: tuple[Tensor, Tensor]) -> None:
    logits = Logits(product[0].requires_grad_(), product[1], mask=masks()["bias by head"])
    results = softmax_rows(logits, ROWS), softmax_mean_map(logits), softmax_apply(logits, product[1])
    assert not any(result.requires_grad for result in results)


def test_huge_logits_do_not_overflow() -> None:
    query = torch.tensor([1e4, -1e4])[None, None, :, None]
    key = torch.tensor([0.0, 1e4, 2e4])[None, None, :, None]
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0]])[None, None]
    assert torch.equal(softmax_rows(Logits(query, key), torch.arange(2)), expected)


@pytest.mark.parametrize("rows", [[0, N], [-1]], ids=["beyond the last", "negative"])
def test_an_index_that_is_no_query_is_refused(rows: list[int], product: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"`rows`.*\n.*from 0 to 9"):
        softmax_rows(Logits(*product), torch.tensor(rows))


def test_values_whose_heads_do_not_divide_those_of_the_queries_are_refused(product: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ConfigError, match="6 heads"):
        softmax_apply(Logits(*product), torch.zeros(S, 4, M, 5))


@pytest.mark.parametrize("part", ["query", "key", "bias", "given"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named(part: str, number: float, product: tuple[Tensor, Tensor]) -> None:
    parts = {"query": product[0], "key": product[1], "bias": torch.zeros(1, 1, N, M), "given": torch.zeros(S, H, N, M)}
    parts[part][0, 0, 0, 3] = number
    given = parts["given"] if part == "given" else None
    logits = Logits(parts["query"], parts["key"], mask=Mask(bias=parts["bias"]), given=given)
    for run in (softmax_mean_map, lambda x: softmax_rows(x, ROWS), lambda x: softmax_apply(x, product[1])):
        with pytest.raises(NlprobeError, match=f"`{part}`"):
            run(logits)
