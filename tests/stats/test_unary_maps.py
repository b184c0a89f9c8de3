"""Rows p_i + u against the written-out matrix."""

import math
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from brute_force import average_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats import Logits, MapStatistics, Mask, softmax_statistics, unary_map_statistics


def rows_of(query: Tensor, key: Tensor, scale: float, unary: Tensor, weights: tuple[float, float]) -> Tensor:
    pairwise = (scale * query.double() @ key.double().mT).softmax(-1)
    return weights[0] * pairwise + weights[1] * unary.double() / unary.double().sum()


def reference(rows: Tensor, weights: tuple[float, float]) -> dict[str, float]:
    """The columns of one map, from its rows (N, M) in float64."""
    mixed = rows / sum(weights)
    c = rows - rows.mean(1, keepdim=True)
    unevenness = c.square().sum(1).mean()
    return {
        "avg_dist": float(average_distance(rows)),
        "entropy": float(-(mixed * mixed.clamp_min(1e-300).log()).sum(1).mean() / math.log(rows.shape[1])),
        "n_eff": float((rows.abs().sum(1).square() / rows.square().sum(1)).mean()),
        "shared": float(c.mean(0).square().sum() / unevenness),
    }


def measured(query: Tensor, key: Tensor, scale: float, unary: Tensor, weights: tuple[float, float]) -> MapStatistics:
    return unary_map_statistics(Logits(query[:, None], key[:, None], scale), unary, weights)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 40),
    m=st.integers(2, 40),
    spread=st.sampled_from([1e-3, 0.3, 3.0, 30.0]),
    weights=st.sampled_from([(1.0, 1.0), (0.02, 1.0), (3.0, 1.0), (1.0, 0.0), (1e-6, 1.0)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_every_column_equals_the_written_out_matrix(n, m, spread, weights, dtype, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, n, 5, generator=generator, dtype=dtype) * spread
    key = torch.randn(2, m, 5, generator=generator, dtype=dtype)
    unary = torch.randn(2, m, generator=generator, dtype=dtype).mul(2).softmax(-1)
    found = measured(query, key, 0.7, unary, weights)
    for at in range(2):
        expected = reference(rows_of(query[at], key[at], 0.7, unary[at], weights), weights)
        for name, value in expected.items():
            actual = float(getattr(found, name)[at, 0])
            assert actual == pytest.approx(value, rel=1e-6, abs=1e-15 if name == "avg_dist" else 1e-9), name
    assert not found.zero_rows.any()


def test_nearly_equal_rows_keep_their_digits() -> None:
    query, key = torch.randn(1, 300, 4) * 1e-3, torch.randn(1, 200, 4)
    unary = torch.randn(1, 200).mul(3).softmax(-1)
    expected = reference(rows_of(query[0], key[0], 1.0, unary[0], (1.0, 1.0)), (1.0, 1.0))
    assert expected["avg_dist"] < 1e-6
    assert float(measured(query, key, 1.0, unary, (1.0, 1.0)).avg_dist) == pytest.approx(expected["avg_dist"], rel=1e-6)


def test_without_the_unary_map_the_numbers_are_those_of_the_softmax_map() -> None:
    query, key = torch.randn(2, 90, 6), torch.randn(2, 50, 6)
    unary = torch.full((2, 50), 1 / 50)
    found = measured(query, key, 0.5, unary, (1.0, 0.0))
    plain, _ = softmax_statistics(Logits(query[:, None], key[:, None], 0.5))
    for name, value in vars(plain).items():
        assert torch.allclose(value.double(), getattr(found, name).double(), rtol=1e-4), name


def test_without_the_pairwise_map_all_rows_are_the_same() -> None:
    query, key, unary = torch.randn(1, 30, 4), torch.randn(1, 20, 4), torch.randn(1, 20).softmax(-1)
    found = measured(query, key, 1.0, unary, (0.0, 1.0))
    assert float(found.avg_dist) == pytest.approx(0, abs=1e-16)
    assert float(found.shared) == pytest.approx(1)
    assert float(found.n_eff) == pytest.approx(float(1 / unary.square().sum()))


def test_two_even_maps_share_nothing_that_is_defined() -> None:
    found = measured(torch.zeros(1, 30, 4), torch.randn(1, 20, 4), 1.0, torch.full((1, 20), 0.05), (1.0, 1.0))
    assert math.isnan(float(found.shared))
    assert float(found.entropy) == pytest.approx(1)
    assert float(found.n_eff) == pytest.approx(20)


def test_a_negative_gate_has_rows_of_both_signs_and_no_entropy() -> None:
    query, key, unary = torch.randn(1, 30, 4), torch.randn(1, 20, 4), torch.randn(1, 20).softmax(-1)
    rows = rows_of(query[0], key[0], 1.0, unary[0], (-0.5, 1.0))
    found = measured(query, key, 1.0, unary, (-0.5, 1.0))
    assert math.isnan(float(found.entropy))
    assert float(found.avg_dist) == pytest.approx(float(average_distance(rows)), rel=1e-8)
    expected = float((rows.abs().sum(1).square() / rows.square().sum(1)).mean())
    assert float(found.n_eff) == pytest.approx(expected, rel=1e-6)


def test_permuting_keys_or_queries_changes_nothing() -> None:
    query, key, unary = torch.randn(1, 30, 4), torch.randn(1, 20, 4), torch.randn(1, 20).softmax(-1)
    found = measured(query, key, 1.0, unary, (1.0, 1.0))
    keys, queries = torch.randperm(20), torch.randperm(30)
    other = measured(query[:, queries], key[:, keys], 1.0, unary[:, keys], (1.0, 1.0))
    for name, value in vars(found).items():
        assert torch.allclose(value.double(), getattr(other, name).double(), rtol=1e-6), name


def test_what_cannot_be_measured_is_refused_in_words() -> None:
    query, key, unary = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 5, 4), torch.full((1, 5), 0.2)
    with pytest.raises(NlprobeError, match=r"`unary` of shape .* holds NaN"):
        unary_map_statistics(Logits(query, key), unary * math.nan)
    with pytest.raises(NlprobeError, match="`query`"):
        unary_map_statistics(Logits(query * math.nan, key), unary)
    with pytest.raises(NlprobeError, match="cannot be masked"):
        unary_map_statistics(Logits(query, key, mask=Mask(diagonal=0)), unary)


PROGRAM = """
    import torch
    from benchmarks.memory import peak_extra_bytes
    from nlprobe.stats import Logits, unary_map_statistics
    torch.set_num_threads(2)
    def run(n):
        query, key = torch.randn(1, 1, n, 8), torch.randn(1, 1, n, 8)
        unary_map_statistics(Logits(query, key), torch.full((1, n), 1 / n))
    run(81)
    print(peak_extra_bytes(lambda: run(9409)))
"""


@pytest.mark.slow
def test_the_memory_stays_far_below_one_map() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", dedent(PROGRAM)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 9409 * 9409 * 4 / 10
