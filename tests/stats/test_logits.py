import pytest
import torch
from torch import Tensor

from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask

S, H, N, M, D = 2, 6, 10, 12, 8
ALL_SETS, ALL_HEADS = slice(0, S), slice(0, H)


def written_out(query: Tensor, key: Tensor, scale: float, mask: Mask) -> Tensor:
    logits = scale * query @ key.repeat_interleave(H // key.shape[1], 1).mT
    if mask.bias is not None:
        logits = logits + mask.bias.masked_fill(mask.bias <= mask.hidden_below, -torch.inf)
    if mask.visible is not None:
        logits = logits.masked_fill(~mask.visible, -torch.inf)
    if mask.diagonal is not None:
        later = torch.arange(M)[None, :] > torch.arange(N)[:, None] + mask.diagonal
        logits = logits.masked_fill(later, -torch.inf)
    return logits


def masks() -> dict[str, Mask]:
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(1, H, N, M, generator=generator, dtype=torch.float64)
    return {
        "none": Mask(),
        "bias by head": Mask(bias=bias),
        "causal": Mask(diagonal=0),
        "causal, keys ahead": Mask(diagonal=2),
        "padding": Mask(visible=torch.arange(M).expand(S, M).lt(torch.tensor([[12], [7]]))[:, None, None]),
        "all together": Mask(bias=bias, visible=torch.rand(S, 1, N, M, generator=generator) > 0.3, diagonal=1),
        "lowest number": Mask(bias=(bias[:, :1] > 1).double() * torch.finfo(torch.float64).min),
        "Swin": Mask(bias=torch.where(bias[:, :1] > 0, -100.0, 0.0), hidden_below=-99.0),
    }


@pytest.fixture(params=[6, 3, 1], ids=["own keys", "grouped keys", "one key head"])
def product(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(S, N, H, D, generator=generator, dtype=torch.float64).transpose(1, 2)
    return query, torch.randn(S, request.param, M, D, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("rows", [slice(0, N), slice(3, 7), torch.tensor([8, 1, 1])], ids=["all", "range", "indices"])
def test_a_block_is_the_written_out_formula(name: str, rows: slice | Tensor, product: tuple[Tensor, Tensor]) -> None:
    query, key = product
    expected = written_out(query, key, 0.3, masks()[name])[:, 1:5, rows]
    out = torch.empty_like(expected).contiguous()
    logits = Logits(query, key, 0.3, masks()[name])
    logits.prepare(ALL_SETS, slice(1, 5), torch.float64).fill(rows, out)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("queries", [slice(2, 9), torch.tensor([1, 4, 9])], ids=["range", "indices"])
def test_restricting_takes_the_same_logits(name: str, queries: slice | Tensor, product: tuple[Tensor, Tensor]) -> None:
    query, key = product
    expected = written_out(query, key, 0.3, masks()[name])[:, :, queries, 1:8]
    part = Logits(query, key, 0.3, masks()[name]).restricted(queries, slice(1, 8))
    out = torch.empty_like(expected).contiguous()
    part.prepare(ALL_SETS, ALL_HEADS, torch.float64).fill(slice(0, part.shape[2]), out)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("name", masks())
def test_given_logits_and_products_make_the_same_blocks(name: str, product: tuple[Tensor, Tensor]) -> None:
    query, key = product
    expected = written_out(query, key, 0.3, masks()[name])
    given = expected.nan_to_num(neginf=torch.finfo(torch.float64).min)
    logits = Logits(mask=Mask(visible=torch.isfinite(expected)), given=given).of_sets(slice(1, 2))
    out = torch.empty(1, H, 4, M, dtype=torch.float64)
    logits.prepare(slice(0, 1), ALL_HEADS, torch.float64).fill(slice(3, 7), out)
    torch.testing.assert_close(out, expected[1:, :, 3:7])


def test_centring_the_keys_changes_no_softmax(product: tuple[Tensor, Tensor]) -> None:
    logits = Logits(*product, 0.3, masks()["all together"])
    blocks = torch.empty(2, S, H, N, M, dtype=torch.float64)
    for block, centred in zip(blocks, (False, True), strict=True):
        logits.prepare(ALL_SETS, ALL_HEADS, torch.float64, centred=centred).fill(slice(0, N), block)
    torch.testing.assert_close(blocks[0].softmax(-1), blocks[1].softmax(-1), equal_nan=True)


@pytest.mark.parametrize("name", masks())
def test_a_mask_hides_where_the_logits_are_minus_infinity(name: str, product: tuple[Tensor, Tensor]) -> None:
    mask = masks()[name]
    hidden = torch.isinf(written_out(*product, 0.3, mask))
    support = mask.support(ALL_SETS, ALL_HEADS, slice(0, N), M, torch.device("cpu"))
    assert mask.hides(N, M) == bool(hidden.any())
    seen = torch.ones_like(hidden) if support is None else support.expand_as(hidden)
    assert torch.equal(seen, ~hidden)
