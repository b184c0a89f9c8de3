"""Queries after a prefix, measured beside all of them."""

import importlib

import numpy as np
import pytest
import torch

from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask
from nlprobe.stats.softmax_maps import softmax_statistics, softmax_statistics_beside_prefix

softmax_maps = importlib.import_module("nlprobe.stats.softmax_maps")

S, H, N, M, D = 2, 3, 40, 30, 8


def masks() -> dict[str, Mask | None]:
    generator = torch.Generator().manual_seed(1)
    blind = torch.rand(S, 1, N, M, generator=generator) > 0.3
    blind[0, 0, [1, 5]] = False
    return {
        "none": None,
        "causal": Mask(diagonal=0),
        "padding": Mask(visible=torch.arange(M).lt(torch.tensor([[30], [17]]))[:, None, None]),
        "rows that see nothing": Mask(visible=blind),
        "bias": Mask(bias=torch.randn(1, H, N, M, generator=generator)),
    }


@pytest.fixture(params=[0.01, 1.0, 30.0], ids=["even maps", "usual maps", "peaked maps"])
def product(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(S, H, size, D, generator=generator) for size in (N, M))
    query[:, :, 0] = 3  # a class token unlike the rest
    return query * request.param, key


@pytest.mark.parametrize("rows_in_a_block", [None, 7], ids=["one block", "blocks of rows"])
@pytest.mark.parametrize("prefix", [1, 5, 12])
@pytest.mark.parametrize("name", masks())
def test_both_measurements_are_those_of_separate_calls(
    name: str, prefix: int, rows_in_a_block: int | None, product, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = importlib.import_module("nlprobe.stats.softmax_direct")
    if rows_in_a_block is not None:
        monkeypatch.setattr(direct, "block_elements", lambda device: rows_in_a_block * M)
        monkeypatch.setattr(importlib.import_module("nlprobe.stats.softmax_blocks"), "LEAST_ROWS", rows_in_a_block)
    logits = Logits(*product, 0.5, masks()[name])
    both = softmax_statistics_beside_prefix(logits, prefix, average=True)
    rest = logits.restricted(slice(prefix, N), slice(0, M))
    for found, source in zip(both, (logits, rest), strict=True):
        for ours, separate in zip(found, softmax_statistics(source, average=True), strict=True):
            for column, value in vars(separate).items():
                np.testing.assert_allclose(getattr(ours, column), value, rtol=2e-5, atol=2e-9, err_msg=column)


def test_usual_maps_take_one_pass_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(S, H, size, D, generator=generator) for size in (N, M))

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(softmax_maps, "shifted_statistics", never)
    both = softmax_statistics_beside_prefix(Logits(query, key), 1, average=True)
    assert len(both) == 2
