import importlib

import pytest
import torch
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats import logit_blocks
from nlprobe.stats.logit_spread import logit_spread
from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask
from nlprobe.stats.products import product_statistics

MODULE = importlib.import_module("nlprobe.stats.logit_spread")
S, H, N, M, D = 3, 4, 10, 12, 8


def masks() -> dict[str, Mask | None]:
    generator = torch.Generator().manual_seed(1)
    bias = 3 * torch.randn(1, H, N, M, generator=generator, dtype=torch.float64)
    visible = torch.rand(S, 1, N, M, generator=generator) > 0.3
    visible[1, :, 2:9] = False
    visible[2] = False
    return {
        "none": None,
        "bias by head": Mask(bias=bias),
        "causal": Mask(diagonal=0),
        "first queries see nothing": Mask(diagonal=-3),
        "some rows and a whole set see nothing": Mask(bias=bias, visible=visible, diagonal=5),
        "Swin": Mask(bias=torch.where(bias[:, :1] > 0, -100.0, 0.0), hidden_below=-99.0),
    }


def dense_logits(query: Tensor, key: Tensor, scale: float, mask: Mask | None) -> Tensor:
    """The logits in float64, NaN where a key is hidden."""
    scores = scale * query.double() @ key.double().repeat_interleave(H // key.shape[1], 1).mT
    if mask is not None and mask.bias is not None:
        scores = (scores + mask.bias).masked_fill(mask.bias <= mask.hidden_below, torch.nan)
    if mask is not None and mask.visible is not None:
        scores = scores.masked_fill(~mask.visible, torch.nan)
    if mask is not None and mask.diagonal is not None:
        scores = scores.masked_fill(torch.ones(N, M).triu(mask.diagonal + 1) > 0, torch.nan)
    return scores


def brute_force(scores: Tensor) -> Tensor:
    """One map, one row, one key at a time; NaN marks hidden keys."""
    result = torch.empty(scores.shape[:2], dtype=torch.float64)
    for s, h in torch.cartesian_prod(torch.arange(scores.shape[0]), torch.arange(scores.shape[1])):
        rows = [[float(x) for x in row if not x.isnan()] for row in scores[s, h]]
        variances = [sum((x - sum(row) / len(row)) ** 2 for x in row) / len(row) for row in rows if row]
        result[s, h] = (sum(variances) / len(variances)) ** 0.5 if variances else torch.nan
    return result


@pytest.fixture(params=[4, 2, 1], ids=["own keys", "grouped keys", "one key head"])
def product(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(S, N, H, D, generator=generator, dtype=torch.float64).transpose(1, 2)
    return query, torch.randn(S, request.param, M, D, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("elements", [1 << 17, 300, 30], ids="blocks of {}".format)
def test_it_is_the_written_out_formula(
    name: str, elements: int, product: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_blocks, "block_elements", lambda device: elements)
    scores = dense_logits(*product, 0.3, masks()[name])
    found = logit_spread(Logits(*product, 0.3, masks()[name]))
    torch.testing.assert_close(found, brute_force(scores), rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", masks())
def test_given_logits_have_the_same_spread(name: str, product: tuple[Tensor, Tensor]) -> None:
    scores = dense_logits(*product, 0.3, masks()[name])
    given = scores.nan_to_num(torch.finfo(torch.float64).min)
    found = logit_spread(Logits(mask=Mask(visible=~scores.isnan()), given=given))
    torch.testing.assert_close(found, brute_force(scores), rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_less_than_float64_is_within_1e_5(name: str, dtype: torch.dtype, product: tuple[Tensor, Tensor]) -> None:
    query, key = (part.to(dtype) for part in product)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logit_spread(Logits(query, key, 0.3, masks()[name]))
    expected = brute_force(dense_logits(query, key, 0.3, masks()[name]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("name", ["none", "causal"])
def test_a_small_spread_about_a_high_level_keeps_its_digits(name: str, spread: float) -> None:
    given = 50 + spread * torch.randn(S, H, N, M)
    scores = given.double().masked_fill(torch.ones(N, M).triu(1) > 0, torch.nan) if name == "causal" else given.double()
    found = logit_spread(Logits(mask=masks()[name], given=given))
    torch.testing.assert_close(found, brute_force(scores), rtol=1e-5, atol=0)


def test_what_float32_would_lose_is_taken_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    given = 1e3 + 1e-3 * torch.randn(1, 1, N, M)
    mask, exact = Mask(diagonal=0), given.double().masked_fill(torch.ones(N, M).triu(1) > 0, torch.nan)
    expected = brute_force(exact)
    torch.testing.assert_close(logit_spread(Logits(mask=mask, given=given)), expected, rtol=1e-9, atol=0)
    monkeypatch.setattr(MODULE, "LEVEL_RATIO", 0.0)
    lossy = logit_spread(Logits(mask=mask, given=given))
    assert abs(lossy / expected - 1).max() > 1e-5


def test_products_that_cancel_keep_their_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    basis = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q
    query = (torch.randn(1, 1, N, 32, dtype=torch.float64) @ basis[:32]).float()
    key = (1e4 * torch.randn(1, 1, M, 32, dtype=torch.float64) @ basis[32:]).float()
    expected = brute_force(query.double() @ key.double().mT)
    torch.testing.assert_close(logit_spread(Logits(query, key)), expected, rtol=1e-9, atol=0)
    monkeypatch.setattr(MODULE, "LEVEL_RATIO", 0.0)
    assert abs(logit_spread(Logits(query, key)) / expected - 1).max() > 1e-5


def test_equal_keys_have_no_spread() -> None:
    key = torch.randn(1, H, 1, D).expand(1, H, M, D)
    assert logit_spread(Logits(torch.randn(1, H, N, D), key)).max() < 1e-12


def test_a_single_key_has_no_spread() -> None:
    found = logit_spread(Logits(torch.randn(1, 2, 1, D), torch.randn(1, 2, 1, D)))
    assert torch.equal(found, torch.zeros(1, 2, dtype=torch.float64))


def test_without_mask_and_bias_it_is_the_total_of_the_exact_split() -> None:
    query, key = torch.randn(2, N, D), torch.randn(2, M, D)
    found = logit_spread(Logits(query[:, None], key[:, None], 0.3))[:, 0]
    torch.testing.assert_close(found, product_statistics(query, key, scale=0.3).logit_std, rtol=1e-5, atol=0)


def test_what_is_not_finite_is_named() -> None:
    with pytest.raises(NlprobeError, match="`given`"):
        logit_spread(Logits(given=torch.full((1, 1, 2, 2), torch.nan)))
