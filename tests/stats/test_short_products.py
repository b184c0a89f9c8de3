"""The few float32 passes over short sets of logit rows, against the materialised products in float64."""

import brute_force
import pytest
import torch
from torch import Tensor

from nlprobe.stats import ProductStatistics, product_statistics, products
from nlprobe.stats.short_products import is_short, short_products

N, M, D = 97, 83, 16
CPU = torch.device("cpu")


def pair(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(N, D, generator=generator), torch.randn(M, D, generator=generator)
    query = query + 0.3 * torch.randn(D, generator=generator)
    match kind:
        case "keys biased":
            key = key + 3
        case "queries biased":
            query = query + 1
        case "queries biased much":
            query = query + 30
        case "keys nearly equal":
            key = key[:1] + 1e-4 * key
        case "keys equal":
            key = key[:1].expand(M, D)
        case "rows close":
            query = query[:1] + 1e-3 * query
        case "opposed":
            query = torch.cat((query[:48], -query[:48], 1e-3 * query[:1]))
        case "nearly null":
            key[:, 4:] *= 1e-5
            query[:, :4] *= 1e-5
        case "zero row":
            query[17] = 0
        case "tiny row":
            query[17] *= 1e-30
        case "huge":
            query, key = query * 1e25, key * 1e15
        case "one of them far away":
            query[5] *= 1e6
            key[7] *= 100
    return query, key


def check(found: ProductStatistics, at: tuple[int, ...], query: Tensor, key: Tensor) -> None:
    rows = brute_force.logits(query, key)
    covariance = brute_force.covariance(key)
    mean = query.double().mean(0)
    expected = {
        "avg_dist": brute_force.average_distance(rows),
        "zero_rows": brute_force.zero_rows(rows),
        "pairwise": (brute_force.covariance(query) * covariance).sum().item(),
        "unary": (mean @ covariance @ mean).item(),
        "logit_std": (rows - rows.mean(-1, keepdim=True)).square().mean().sqrt().item(),
    }
    floor = 1e-20 * rows.square().mean().item()
    for name, value in expected.items():
        found_value = getattr(found, name)[at].item()
        absolute = floor if name in ("pairwise", "unary") else 1e-12
        assert found_value == pytest.approx(value, rel=1e-5, abs=absolute), name


KEPT = ["random", "keys biased", "queries biased"]
REDONE = [
    "queries biased much",
    "keys nearly equal",
    "keys equal",
    "rows close",
    "opposed",
    "nearly null",
    "zero row",
    "tiny row",
    "huge",
]


@pytest.mark.parametrize("kind", [*KEPT, *REDONE, "one of them far away"])
def test_short_sets_keep_the_promise_and_their_digits(kind: str) -> None:
    query, key = pair(kind)
    assert is_short(N, M, D, CPU)
    check(product_statistics(query, key), (), query, key)
    _, kept = short_products(query[None, None], key[None, None])[0]
    if kind in KEPT:
        assert kept.all()
    if kind in REDONE:
        assert not kept.any()


@pytest.mark.parametrize("room", [100, 30000, 1 << 20])
def test_each_set_is_kept_or_redone_by_itself_whatever_the_layout(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [[*KEPT], ["huge", "zero row", "random"]]
    pairs = [[pair(kind) for kind in row] for row in kinds]
    query, key = (
        torch.stack([torch.stack([one[side] for one in row], 1) for row in pairs]).transpose(1, 2) for side in (0, 1)
    )
    assert not query.is_contiguous()
    monkeypatch.setattr("nlprobe.stats.short_products.block_elements", lambda _: room)
    monkeypatch.setattr(products, "is_short", lambda *_: True)
    found = product_statistics(query, key)
    for image in range(2):
        for head in range(3):
            check(found, (image, head), query[image, head], key[image, head])


def test_the_thresholds_do_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "short_products", trusting(products.short_products))
    for kind in ("queries biased much", "rows close", "zero row"):
        query, key = pair(kind)
        with pytest.raises(AssertionError):
            check(product_statistics(query, key), (), query, key)


def trusting(function):  # type: ignore[no-untyped-def]
    def run(query: Tensor, key: Tensor, prefix: int):  # type: ignore[no-untyped-def]
        return [(found, torch.ones_like(kept)) for found, kept in function(query, key, prefix)]

    return run


@pytest.mark.parametrize("size", [0.3, 1.0, 1.8])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
def test_what_is_kept_near_the_thresholds_is_good(size: float, share: float) -> None:
    generator = torch.Generator().manual_seed(4)
    direction, key = torch.randn(64, generator=generator), torch.randn(197, 64, generator=generator)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        spectrum = torch.logspace(0, -2, 64)
        query = (1 - share) * torch.randn(197, 64, generator=generator) + share * direction
        keys = (key + size * torch.randn(64, generator=generator)) * spectrum
        check(product_statistics(query, keys), (), query, keys)
