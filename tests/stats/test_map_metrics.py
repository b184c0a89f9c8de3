import importlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlprobe.errors import ConfigError, NlprobeError
from nlprobe.stats import logit_blocks, map_rank
from nlprobe.stats.logits import Logits
from nlprobe.stats.map_metrics import METRICS, map_metrics
from nlprobe.stats.masks import Mask

MODULE = importlib.import_module("nlprobe.stats.map_metrics")
S, H, D, PREFIX = 2, 4, 8, 2
QUERY_GRID, KEY_GRID = (3, 4), (3, 2)
N, M = PREFIX + 12, PREFIX + 6
STREAMED = tuple(name for name in METRICS if name != "effective_rank")


def masks() -> dict[str, Mask | None]:
    generator = torch.Generator().manual_seed(1)
    bias = 2 * torch.randn(1, H, N, M, generator=generator, dtype=torch.float64)
    visible = torch.rand(S, 1, N, M, generator=generator) > 0.3
    visible[0, :, 1:6] = False
    visible[0, :, 7, PREFIX:] = False
    blind = visible.clone()
    blind[1] = False
    return {
        "none": None,
        "bias by head": Mask(bias=bias),
        "causal": Mask(diagonal=0),
        "first queries see nothing": Mask(diagonal=-4),
        "some rows see nothing, one the prefix only": Mask(bias=bias, visible=visible, diagonal=5),
        "a whole set sees nothing": Mask(visible=blind),
        "Swin": Mask(bias=torch.where(bias[:, :1] > 0, -100.0, 0.0), hidden_below=-99.0),
    }


def dense_maps(query: Tensor, key: Tensor, scale: float, mask: Mask | None) -> Tensor:
    """The maps in float64; rows that see nothing are zero."""
    scores = scale * query.double() @ key.double().repeat_interleave(query.shape[1] // key.shape[1], 1).mT
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    if mask is not None and mask.bias is not None:
        weights = weights * mask.bias.exp() * (mask.bias > mask.hidden_below)
    if mask is not None and mask.visible is not None:
        weights = weights * mask.visible
    if mask is not None and mask.diagonal is not None:
        weights = weights.tril(mask.diagonal)
    return (weights / weights.sum(-1, keepdim=True)).nan_to_num(0)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def bits(row: list[float]) -> float:
    return -sum(weight * math.log2(weight) for weight in row if weight > 0)


def distance_by_loops(
    rows: list[list[float]], query_grid: tuple[int, ...], key_grid: tuple[int, ...], prefix: int
) -> float:
    queries = list(itertools.product(*map(range, query_grid)))
    keys = list(itertools.product(*map(range, key_grid)))
    centres = [
        [(place + 0.5) * n / m - 0.5 for place, n, m in zip(key, query_grid, key_grid, strict=True)] for key in keys
    ]
    found = []
    for place, row in zip(queries, rows[prefix:], strict=True):
        mass = sum(row[prefix:])
        if mass > 0:
            found.append(sum(w * math.dist(place, p) for w, p in zip(row[prefix:], centres, strict=True)) / mass)
    return mean(found)


def rank_by_loops(rows: list[list[float]]) -> float:
    rows = [row for row in rows if sum(row) > 0]
    if not rows:
        return math.nan
    middle = [mean(list(column)) for column in zip(*rows, strict=True)]
    centred = torch.tensor([[a - b for a, b in zip(row, middle, strict=True)] for row in rows], dtype=torch.float64)
    values = [float(value) for value in torch.linalg.svd(centred).S if value > 1e-12]
    return 2 ** bits([value / sum(values) for value in values]) if values else math.nan


def brute_force(maps: Tensor, query_grid: tuple[int, ...], key_grid: tuple[int, ...], prefix: int) -> dict[str, Tensor]:
    """All metrics, one map at a time, from the written-out formulas."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for one in maps.flatten(0, 1):
        rows = one.tolist()
        seeing = [row for row in rows if sum(row) > 0]
        middle = [mean(list(column)) for column in zip(*seeing, strict=True)]
        found["attention_distance"].append(distance_by_loops(rows, query_grid, key_grid, prefix))
        prefix_masses = [sum(row[:prefix]) for row in rows[prefix:] if sum(row) > 0]
        found["prefix_mass"].append(mean(prefix_masses) if prefix else math.nan)
        found["sink_mass"].append(max(middle) if middle else math.nan)
        found["jsd"].append(bits(middle) - mean([bits(row) for row in seeing]))
        found["effective_rank"].append(rank_by_loops(rows))
    return {name: torch.tensor(values, dtype=torch.float64).view(maps.shape[:2]) for name, values in found.items()}


def measured(logits: Logits, prefix: int = PREFIX) -> dict[str, Tensor]:
    return map_metrics(logits, tuple(METRICS), query_grid=QUERY_GRID, key_grid=KEY_GRID, prefix=prefix)


def assert_same(
    found: dict[str, Tensor], expected: dict[str, Tensor], relative: float, absolute: float = 1e-12
) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], rtol=relative, atol=absolute, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(params=[4, 2, 1], ids=["own keys", "grouped keys", "one key head"])
def product(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(S, N, H, D, generator=generator, dtype=torch.float64).transpose(1, 2)
    return query, torch.randn(S, request.param, M, D, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("elements", [1 << 17, 500, 250, 40, 1], ids="blocks of {}".format)
def test_every_metric_is_the_written_out_formula(
    name: str, elements: int, product: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_blocks, "block_elements", lambda device: elements)
    monkeypatch.setattr(map_rank, "block_elements", lambda device: elements)
    expected = brute_force(dense_maps(*product, 0.3, masks()[name]), QUERY_GRID, KEY_GRID, PREFIX)
    assert_same(measured(Logits(*product, 0.3, masks()[name])), expected, 1e-10)


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.3, 5.0], ids=["nearly even", "soft", "usual", "peaked"])
def test_less_than_float64_is_within_1e_5(
    name: str, dtype: torch.dtype, scale: float, product: tuple[Tensor, Tensor]
) -> None:
    query, key = (part.to(dtype) for part in product)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = measured(Logits(query, key, scale, masks()[name]))
    expected = brute_force(dense_maps(query, key, scale, masks()[name]), QUERY_GRID, KEY_GRID, PREFIX)
    assert_same(found, expected, 1e-5, 1e-11)


@pytest.mark.parametrize("name", masks())
def test_given_logits_have_the_same_metrics(name: str, product: tuple[Tensor, Tensor]) -> None:
    maps = dense_maps(*product, 0.3, masks()[name])
    expected = brute_force(maps, QUERY_GRID, KEY_GRID, PREFIX)
    assert_same(measured(Logits(given=maps.log())), expected, 1e-10)
    lowest = maps.log().clamp_min(torch.finfo(torch.float64).min)
    assert_same(measured(Logits(mask=Mask(visible=maps > 0), given=lowest)), expected, 1e-10)


@pytest.mark.parametrize(
    "query_grid, key_grid, prefix",
    [((7,), (7,), 0), ((7,), (3,), 1), ((2, 3, 4), (2, 3, 4), 0), ((2, 3, 4), (1, 3, 2), 1), ((4, 4), (2, 8), 3)],
)
def test_grids_of_any_dimensions_and_pooled_keys(
    query_grid: tuple[int, ...], key_grid: tuple[int, ...], prefix: int
) -> None:
    query = torch.randn(1, 2, prefix + math.prod(query_grid), D, dtype=torch.float64)
    key = torch.randn(1, 2, prefix + math.prod(key_grid), D, dtype=torch.float64)
    found = map_metrics(Logits(query, key), tuple(METRICS), query_grid=query_grid, key_grid=key_grid, prefix=prefix)
    assert_same(found, brute_force(dense_maps(query, key, 1.0, None), query_grid, key_grid, prefix), 1e-10)


def test_a_single_position() -> None:
    logits = Logits(torch.randn(2, 3, 1, D), torch.randn(2, 3, 1, D))
    found = map_metrics(logits, tuple(METRICS), query_grid=(1, 1), key_grid=(1, 1))
    expected = {"attention_distance": 0.0, "prefix_mass": math.nan, "sink_mass": 1.0, "jsd": 0.0}
    for name, value in {**expected, "effective_rank": math.nan}.items():
        torch.testing.assert_close(found[name], torch.full((2, 3), value, dtype=torch.float64), equal_nan=True)


def test_even_maps_have_no_divergence_and_no_rank() -> None:
    logits = Logits(torch.zeros(1, 1, N, D), torch.randn(1, 1, M, D))
    found = measured(logits)
    assert float(found["jsd"]) < 1e-12
    assert found["effective_rank"].isnan().all()
    assert float(found["sink_mass"]) == pytest.approx(1 / M, rel=1e-6)
    assert float(found["prefix_mass"]) == pytest.approx(PREFIX / M, rel=1e-6)


def test_each_query_on_its_own_key_has_full_divergence_and_rank_and_no_distance() -> None:
    logits = Logits(given=torch.full((8, 8), -torch.inf).fill_diagonal_(0)[None, None])
    found = map_metrics(logits, tuple(METRICS), query_grid=(2, 4), key_grid=(2, 4))
    expected = {"attention_distance": 0.0, "prefix_mass": math.nan, "sink_mass": 1 / 8, "jsd": 3.0}
    for name, value in {**expected, "effective_rank": 7.0}.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-6, nan_ok=True)


def test_weights_too_small_for_float32_are_left_out_and_nothing_else() -> None:
    given = torch.linspace(0, -160, 12).repeat(1, 1, 12, 1)
    given[..., :6, :] = given[..., :6, :].flip(-1)
    expected = brute_force(given.double().softmax(-1), (11,), (11,), 1)
    found = map_metrics(Logits(given=given), STREAMED, query_grid=(11,), key_grid=(11,), prefix=1)
    assert_same(found, {name: expected[name] for name in STREAMED}, 1e-5)


@pytest.mark.parametrize("level", [0.0, 30.0, 60.0, 1e4])
def test_a_row_that_is_all_on_the_prefix_still_has_a_distance(level: float) -> None:
    given = torch.zeros(1, 1, 3, 3)
    given[..., 1, 0] = level
    given[..., 1, 1] = math.log(3)
    found = map_metrics(Logits(given=given), ["attention_distance"], query_grid=(2,), key_grid=(2,), prefix=1)
    assert float(found["attention_distance"]) == pytest.approx((1 / 4 + 1 / 2) / 2)


def test_nan_within_the_products_is_not_taken_for_a_hidden_key() -> None:
    huge = torch.full((1, 1, 2, 2), 3e38)
    huge[..., 1] *= -1
    assert map_metrics(Logits(huge, huge.flip(-2) * torch.tensor([1.0, 0.5])), ["sink_mass"])["sink_mass"].isnan().all()


@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(2, 40), st.floats(0.01, 3))
@settings(max_examples=30, deadline=None)
def test_every_metric_keeps_its_bounds_and_does_not_ask_for_the_order_of_positions(
    seed: int, n: int, m: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, 1, size, D, generator=generator, dtype=torch.float64) for size in (n, m))
    names = ("sink_mass", "jsd", "effective_rank")
    found = map_metrics(Logits(query, key, scale), names)
    order, keys = torch.randperm(n, generator=generator), torch.randperm(m, generator=generator)
    shuffled = map_metrics(Logits(query[:, :, order], key[:, :, keys], scale), names)
    assert_same(found, shuffled, 1e-8, 1e-10)
    assert 1 / m <= float(found["sink_mass"]) <= 1
    assert 0 <= float(found["jsd"]) <= math.log2(min(n, m))
    assert 1 - 1e-9 <= float(found["effective_rank"]) <= min(n, m) - 1 + 1e-9


def test_a_small_divergence_is_taken_in_float64(
    product: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key = (part.float() for part in product)
    expected = brute_force(dense_maps(query, key, 1e-4, None), QUERY_GRID, KEY_GRID, PREFIX)["jsd"]
    found = map_metrics(Logits(query, key, 1e-4), ["jsd"])["jsd"]
    assert 0 < expected.max() < 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    monkeypatch.setattr(MODULE, "JSD_ACCEPTED", 0.0)
    lossy = map_metrics(Logits(query, key, 1e-4), ["jsd"])["jsd"]
    assert abs(lossy / expected - 1).max() > 1e-2


def test_only_what_is_asked_for_comes_back_in_that_order(product: tuple[Tensor, Tensor]) -> None:
    every = measured(Logits(*product))
    for names in itertools.permutations(METRICS, 2):
        found = map_metrics(Logits(*product), names, query_grid=QUERY_GRID, key_grid=KEY_GRID, prefix=PREFIX)
        assert tuple(found) == names
        assert all(torch.equal(found[name], every[name]) for name in names)


def test_without_grids_and_prefix_their_metrics_are_undefined(product: tuple[Tensor, Tensor]) -> None:
    found = map_metrics(Logits(*product), tuple(METRICS))
    undefined = {name for name, value in found.items() if value.isnan().all()}
    assert undefined == {"attention_distance", "prefix_mass"}


def test_a_sequence_of_prefix_tokens_alone_has_no_distance() -> None:
    logits = Logits(torch.randn(1, 1, 3, D), torch.randn(1, 1, 3, D))
    found = map_metrics(logits, STREAMED, query_grid=(0,), key_grid=(0,), prefix=3)
    assert {name for name, value in found.items() if value.isnan()} == {"attention_distance", "prefix_mass"}


@pytest.mark.parametrize(
    "metrics, query_grid, key_grid, prefix, message",
    [
        (["jds"], None, None, 0, "`jds`"),
        (["jsd"], None, None, -1, "`prefix` -1"),
        (["jsd"], None, None, M + 1, f"`prefix` {M + 1}"),
        (["jsd"], (3, 4), None, 0, r"`query_grid` \(3, 4\)"),
        (["jsd"], None, (3, 4), 2, r"`key_grid` \(3, 4\)"),
        (["jsd"], (3, 4), (6,), 2, "dimensions"),
    ],
)
def test_what_does_not_fit_is_refused(
    metrics: list[str],
    query_grid: tuple[int, ...] | None,
    key_grid: tuple[int, ...] | None,
    prefix: int,
    message: str,
    product: tuple[Tensor, Tensor],
) -> None:
    with pytest.raises(ConfigError, match=message):
        map_metrics(Logits(*product), metrics, query_grid=query_grid, key_grid=key_grid, prefix=prefix)


def test_what_is_not_finite_is_named() -> None:
    with pytest.raises(NlprobeError, match="`given`"):
        map_metrics(Logits(given=torch.full((1, 1, 2, 2), torch.nan)), ["jsd"])
