import pytest
import torch
from torch import Tensor

from nlprobe.stats import flat_maps
from nlprobe.stats.distance import avg_dist
from nlprobe.stats.flat_maps import flat_distance
from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask

S, H, N, M = 3, 4, 10, 12
LOWEST = torch.finfo(torch.float32).min


def logits(mask: Mask | None, n: int = N, m: int = M) -> Logits:
    return Logits(torch.randn(S, H, n, 2), torch.randn(S, 2, m, 2), 1.0, mask)


def support(mask: Mask, n: int = N, m: int = M) -> Tensor:
    seen = torch.ones(S, H, n, m, dtype=torch.bool)
    if mask.bias is not None:
        seen = seen & (mask.bias > mask.hidden_below)
    if mask.visible is not None:
        seen = seen & mask.visible
    if mask.diagonal is not None:
        seen = seen.tril(mask.diagonal)
    return seen


def pairwise(seen: Tensor) -> float:
    """The mean over all pairs of queries that see anything of (1 − cosine) / 2, pair by pair."""
    rows = [row.double() for row in seen if row.any()]
    if seen.all() or not rows:
        return float("nan")
    cosines = [float(a @ b) / float(a.sum() * b.sum()) ** 0.5 for a in rows for b in rows]
    return sum((1 - cosine) / 2 for cosine in cosines) / len(cosines)


def masks() -> dict[str, Mask]:
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(1, H, N, M, generator=generator)
    visible = torch.rand(S, 1, N, M, generator=generator) > 0.3
    visible[1, :, 2:9] = False
    visible[2] = False
    window = torch.ones(S, 1, N, M)
    window[1, :, :4, 5:] = -100.0
    return {
        "causal": Mask(diagonal=0),
        "causal beside a bias that hides nothing": Mask(bias=bias, visible=visible.new_ones(S, 1, 1, M), diagonal=2),
        "first queries see nothing": Mask(diagonal=-3),
        "no query sees anything": Mask(diagonal=-N),
        "nothing is beyond the diagonal": Mask(diagonal=M - 1),
        "padding": Mask(visible=torch.arange(M).expand(S, M).lt(torch.tensor([[12], [7], [0]]))[:, None, None]),
        "padding and causal": Mask(visible=torch.arange(M).expand(S, M).lt(7)[:, None, None], diagonal=0),
        "queries by set": Mask(visible=visible),
        "one mask for all": Mask(visible=visible[:1]),
        "by set and head": Mask(visible=visible, bias=torch.where(bias > 1, LOWEST, 0.0), diagonal=4),
        "queries without keys": Mask(visible=torch.arange(N).lt(6)[None, None, :, None]),
        "one window of three": Mask(bias=window, hidden_below=-99.0),
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("elements", [1 << 17, 500, 30, 1], ids="blocks of {}".format)
def test_it_is_the_mean_over_all_pairs(name: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_maps, "block_elements", lambda device: elements)
    mask = masks()[name]
    expected = torch.tensor([[pairwise(head) for head in heads] for heads in support(mask)], dtype=torch.float64)
    torch.testing.assert_close(flat_distance(logits(mask)), expected, rtol=1e-12, atol=1e-15, equal_nan=True)


@pytest.mark.parametrize("n, m", [(1, 1), (1, 5), (5, 1), (7, 3), (3, 7), (6, 6)])
@pytest.mark.parametrize("diagonal", [-4, -1, 0, 1, 4])
def test_the_closed_form_for_a_diagonal_is_the_streamed_one(n: int, m: int, diagonal: int) -> None:
    written_out = Mask(visible=torch.ones(1, 1, n, m, dtype=torch.bool).tril(diagonal))
    streamed = flat_distance(logits(written_out, n, m))
    torch.testing.assert_close(flat_distance(logits(Mask(diagonal=diagonal), n, m)), streamed, equal_nan=True)


def test_flat_causal_maps_come_to_a_sixth() -> None:
    one = torch.empty(1, 1, 1_000_000, 1)
    assert float(flat_distance(Logits(one, one, mask=Mask(diagonal=0)))) == pytest.approx(1 / 6, abs=1e-6)


def test_it_is_the_distance_of_uniform_rows() -> None:
    mask = masks()["by set and head"]
    torch.testing.assert_close(
        flat_distance(logits(mask))[:2], avg_dist(support(mask).double())[:2], rtol=1e-9, atol=1e-12
    )


def test_padding_moves_no_query_away_from_another() -> None:
    distance = flat_distance(logits(masks()["padding"]))
    assert distance[1].max() < 1e-15
    assert distance[[0, 2]].isnan().all()


@pytest.mark.parametrize("mask", [None, Mask(), Mask(bias=torch.randn(1, 1, N, M))], ids=["none", "empty", "bias"])
def test_it_is_undefined_where_nothing_is_hidden(mask: Mask | None) -> None:
    assert flat_distance(logits(mask)).isnan().all()


def test_given_logits_hide_what_their_mask_says() -> None:
    mask = masks()["queries by set"]
    expected = flat_distance(logits(mask))
    found = flat_distance(Logits(mask=mask, given=torch.randn(S, H, N, M)))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_shared_mask_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[int, ...]] = []
    original = Mask.support

    def counted(self: Mask, *args: object) -> Tensor | None:
        found = original(self, *args)  # type: ignore[arg-type]
        looked.append(() if found is None else tuple(found.shape))
        return found

    monkeypatch.setattr(Mask, "support", counted)
    flat_distance(logits(Mask(bias=torch.randn(1, H, N, M), visible=masks()["one mask for all"].visible)))
    flat_distance(logits(masks()["padding"]))
    flat_distance(logits(masks()["causal"]))
    assert looked == [(1, 1, N, M), (S, 1, 1, M)]
