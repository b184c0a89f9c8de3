"""The statistics' kernels: distances, softmax maps, dot product and concat maps."""

from collections.abc import Callable
from functools import cache

import numpy as np
import sklearn.metrics
import torch
import torchmetrics.functional
from torch import Tensor

from benchmarks.pairs import Row, main
from nlprobe.stats import (
    avg_dist,
    concat_map_statistics,
    dot_map_statistics,
    product_statistics,
    softmax_map_statistics,
    softmax_statistics,
)
from nlprobe.stats.logits import Logits


@cache
def rows(n: int, c: int, spread: float | None) -> Tensor:
    """Rows of any direction, or within `spread` of one direction."""
    torch.manual_seed(0)
    v = torch.randn(n, c)
    return v if spread is None else torch.randn(c) + spread * v


@cache
def image(n: int, c: int) -> Tensor:
    """Rows as the transposed view of an NCHW tensor."""
    return rows(n, c, None).mT.contiguous().mT


@cache
def array(n: int, c: int) -> np.ndarray:
    return rows(n, c, None).numpy()


@cache
def queries_and_keys(n: int, d: int) -> tuple[Tensor, Tensor]:
    """With logits of unit variance."""
    torch.manual_seed(0)
    return torch.randn(n, d) / d**0.25, torch.randn(n, d) / d**0.25


@cache
def concat_logits(n: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n), torch.randn(n)


@cache
def heads(images: int, n: int) -> tuple[Tensor, Tensor]:
    """Queries and keys of ViT-B's 12 heads, as the views of one tensor that its projection gives."""
    torch.manual_seed(0)
    query, key, _ = torch.randn(images, n, 3, 12, 64).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key


def closed_form(maps: Tensor) -> float:
    unit = maps / torch.linalg.vector_norm(maps, dim=-1, keepdim=True)
    return 0.5 * (1 - unit.mean(0).square().sum().item())


def torchmetrics_mean() -> Tensor:
    v = rows(4200, 1024, None)
    return torchmetrics.functional.pairwise_cosine_similarity(v, v, zero_diagonal=False, reduction="mean")


def against_one_pass(name: str, target: float, v: Callable[[], Tensor], same: Callable[[], Tensor]) -> Row:
    """`same` is what the peer reads: as many bytes, contiguous."""
    return Row(
        name=f"avg_dist 16 700x512, {name}",
        target=target,
        kind="at_most",
        ours=lambda: avg_dist(v()),
        peer=lambda: torch.linalg.vector_norm(same(), dim=-1),
    )


def softmax(n: int, d: int, distance_only: bool, target: float) -> Row:
    return Row(
        name=f"softmax att N {n} d {d}, {'distance' if distance_only else 'whole record'}",
        target=target,
        kind="at_most",
        ours=lambda: softmax_map_statistics(*queries_and_keys(n, d), distance_only=distance_only),
        peer=lambda: torch.matmul(queries_and_keys(n, d)[0], queries_and_keys(n, d)[1].mT),
    )


def head_products(images: int, n: int) -> Tensor:
    query, key = heads(images, n)
    return torch.matmul(query, key.mT)


def brute_force(images: int, n: int) -> Tensor:
    """Eager weights, then each column by its definition, of the heads and of their mean."""
    weights = torch.softmax(0.125 * head_products(images, n), dim=-1)
    columns = []
    for maps in (weights, weights.mean(1, keepdim=True)):
        unit = maps / torch.linalg.vector_norm(maps, dim=-1, keepdim=True)
        centred = maps - 1 / n
        columns += [
            0.5 * (1 - (unit @ unit.mT).mean((-2, -1))),
            -torch.special.xlogy(maps, maps).sum(-1).mean(-1),
            (1 / maps.square().sum(-1)).mean(-1),
            centred.mean(-2).square().sum(-1) / centred.square().sum(-1).mean(-1),
        ]
    return torch.cat(columns, dim=1)


def all_heads(images: int, n: int) -> object:
    return softmax_statistics(Logits(*heads(images, n), 0.125), average=True)


def of_heads(images: int, n: int, att: float, prod: float) -> list[Row]:
    name = f"ViT-B heads, {images} x {n}"
    return [
        Row(
            f"{name}: att with mean, Q·Kᵀ",
            att,
            "at_most",
            lambda: all_heads(images, n),
            lambda: head_products(images, n),
        ),
        Row(
            f"{name}: prod, Q·Kᵀ",
            prod,
            "at_most",
            lambda: product_statistics(*heads(images, n), 0.125),
            lambda: head_products(images, n),
        ),
    ]


def materialised_products() -> float:
    query, key = queries_and_keys(4200, 512)
    return closed_form(query @ key.mT)


def materialised_concat() -> float:
    a, b = concat_logits(4200)
    return closed_form(torch.relu(a[:, None] + b))


ROWS = [
    against_one_pass("any direction", 4.5, lambda: rows(16700, 512, None), lambda: rows(16700, 512, None)),
    against_one_pass("distance 2e-3", 4.5, lambda: rows(16700, 512, 0.0633), lambda: rows(16700, 512, None)),
    against_one_pass("distance 5e-7", 10.0, lambda: rows(16700, 512, 1e-3), lambda: rows(16700, 512, None)),
    against_one_pass("distance 5e-11", 10.0, lambda: rows(16700, 512, 1e-5), lambda: rows(16700, 512, None)),
    against_one_pass("transposed view of NCHW", 4.5, lambda: image(16700, 512), lambda: rows(16700, 512, None)),
    Row(
        name="avg_dist 4 200x1024, torchmetrics' mean",
        target=50.0,
        kind="faster",
        ours=lambda: avg_dist(rows(4200, 1024, None)),
        peer=torchmetrics_mean,
    ),
    Row(
        name="avg_dist 4 200x1024, scikit-learn's mean",
        target=50.0,
        kind="faster",
        ours=lambda: avg_dist(rows(4200, 1024, None)),
        peer=lambda: sklearn.metrics.pairwise.cosine_distances(array(4200, 1024)).mean(),
    ),
    softmax(4200, 512, True, 1.3),
    softmax(4200, 512, False, 1.6),
    softmax(9409, 256, True, 1.3),
    softmax(9409, 256, False, 1.6),
    *of_heads(8, 197, 3.0, 1.7),
    *of_heads(1, 4097, 1.6, 0.25),
    Row(
        name="ViT-B heads, 8 x 197: att with mean, eager weights and brute force",
        target=3.0,
        kind="faster",
        ours=lambda: all_heads(8, 197),
        peer=lambda: brute_force(8, 197),
    ),
    Row(
        name="prod N 4 200 d 512, materialised",
        target=3.0,
        kind="faster",
        ours=lambda: product_statistics(*queries_and_keys(4200, 512)),
        peer=materialised_products,
    ),
    Row(
        name="dot product att N 4 200 d 512, materialised",
        target=3.0,
        kind="faster",
        ours=lambda: dot_map_statistics(*queries_and_keys(4200, 512), distance_only=True),
        peer=materialised_products,
    ),
    Row(
        name="concat att N 4 200, materialised",
        target=10.0,
        kind="faster",
        ours=lambda: concat_map_statistics(*concat_logits(4200)),
        peer=materialised_concat,
    ),
]


if __name__ == "__main__":
    raise SystemExit(main(ROWS))
