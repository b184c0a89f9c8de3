"""Agreement of mean maps: cosines by hand, sums over coarser grids, and which maps are compared when shuffled."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nlprobe.errors import ConfigError
from nlprobe.stats.agreement import Agreement, MeanMap, partners, resized, site_agreement, summed
from nlprobe.stats.agreement import agreement as of_mean_maps

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def drawn(grid: tuple[int, int], seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random(grid)
    return (values / values.sum()).astype(np.float32)


def agreement(first: list[np.ndarray], second: list[np.ndarray]) -> Agreement:
    """Of maps without padding."""
    return of_mean_maps(*([MeanMap(one) for one in maps] for maps in (first, second)))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(float).ravel(), b.astype(float).ravel()
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def test_the_cosines_of_equal_grids_are_those_of_the_maps() -> None:
    first, second = ([drawn((3, 4), 10 * side + at) for at in range(3)] for side in range(2))
    found = agreement(first, second)
    ones = np.ones((3, 4))
    for at in range(3):
        assert found.agreement[at] == pytest.approx(cosine(first[at], second[at]), rel=1e-12)
        assert found.shuffled[at] == pytest.approx(cosine(first[at], second[(at + 1) % 3]), rel=1e-12)
        assert found.uniform_first[at] == pytest.approx(cosine(first[at], ones), rel=1e-12)
        assert found.uniform_second[at] == pytest.approx(cosine(second[at], ones), rel=1e-12)
    n_eff = float(1 / (first[0].astype(float) ** 2).sum())
    assert found.uniform_first[0] == pytest.approx(math.sqrt(n_eff / 12), rel=1e-6)


def test_equal_maps_agree_wholly_whatever_their_scale() -> None:
    maps = [drawn((4, 5), at) for at in range(3)]
    found = agreement(maps, [7 * one for one in maps])
    np.testing.assert_allclose(found.agreement, 1, rtol=1e-12)
    assert (found.shuffled < 1).all()


def test_a_map_over_pooled_keys_is_compared_on_their_grid() -> None:
    fine, coarse = drawn((6, 8)), drawn((3, 4), 1)
    pooled = fine.astype(float).reshape(3, 2, 4, 2).sum((1, 3))
    for pair in (([fine], [coarse]), ([coarse], [fine])):
        found = agreement(*pair)
        assert found.grids == [(3, 4)]
        assert found.agreement[0] == pytest.approx(cosine(pooled, coarse), rel=1e-12)
    assert math.isnan(agreement([fine], [coarse]).shuffled[0])


def test_what_lies_in_the_padding_is_left_out_of_the_comparison() -> None:
    """Of 24x32 pixels 17x21 are picture: on 3x4 cells the first 2 rows and 3 columns, on 6x8 the first 4 and 5."""
    fine, coarse = drawn((6, 8)), drawn((3, 4), 1)
    extent = {"size": (17, 21), "canvas": (24, 32)}
    found = of_mean_maps([MeanMap(fine, **extent)], [MeanMap(coarse, **extent)])
    pooled = fine.astype(float).reshape(3, 2, 4, 2).sum((1, 3))
    assert found.agreement[0] == pytest.approx(cosine(pooled[:2, :3], coarse[:2, :3]), rel=1e-12)
    assert found.grids == [(2, 3)]
    found = of_mean_maps([MeanMap(fine, **extent)], [MeanMap(drawn((6, 8), 2), **extent)])
    assert found.agreement[0] == pytest.approx(cosine(fine[:4, :5], drawn((6, 8), 2)[:4, :5]), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(GRIDS, st.integers(1, 3))
def test_sums_over_coarser_cells_keep_the_mass(grid: tuple[int, int], factor: int) -> None:
    coarse = tuple(max(1, size // factor) for size in grid)
    found = summed(drawn(grid), coarse)
    assert found.shape == coarse
    assert float(found.sum()) == pytest.approx(1, rel=1e-6)
    even = summed(np.ones(grid), coarse)
    np.testing.assert_allclose(even, grid[0] * grid[1] / (coarse[0] * coarse[1]), rtol=1e-9)


def test_a_cell_that_two_coarse_ones_share_is_divided_by_area() -> None:
    # 5 columns over 2: the middle one belongs to both by half
    found = summed(np.array([[1.0, 2, 4, 8, 16]]), (1, 2))
    assert found.tolist() == [[1 + 2 + 2, 2 + 8 + 16]]


@settings(max_examples=60, deadline=None)
@given(GRIDS, GRIDS)
def test_resizing_is_bilinear_between_the_centres_of_cells(before: tuple[int, int], after: tuple[int, int]) -> None:
    values = drawn(before)
    source = torch.from_numpy(values)[None, None].double()
    expected = F.interpolate(source, size=after, mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(resized(values, after), expected.numpy(), atol=1e-7)


def test_the_other_image_has_the_same_grid_where_one_has() -> None:
    wide, tall, odd = (2, 3), (3, 2), (4, 4)
    assert partners([wide, tall, wide, odd, tall, wide]) == [2, 4, 5, 4, 1, 0]
    assert partners([wide]) == [None]
    assert partners([wide, tall]) == [1, 0]


def test_other_images_of_another_size_are_resized() -> None:
    first, second = [drawn((4, 6)), drawn((6, 4), 1)], [drawn((4, 6), 2), drawn((6, 4), 3)]
    found = agreement(first, second)
    assert found.shuffled[0] == pytest.approx(cosine(first[0], resized(second[1], (4, 6))), rel=1e-12)


@pytest.mark.parametrize("other", [(5, 8), (4, 3), (3, 8)])
def test_grids_of_which_none_is_the_other_pooled_are_refused(other: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="neither grid is the other one pooled"):
        agreement([drawn((6, 8))], [drawn(other)])


def test_the_estimate_is_over_the_images_that_both_have_seen() -> None:
    first = {(name, view): MeanMap(drawn((3, 4), at)) for at, (name, view) in enumerate([("a", 0), ("a", 1), ("b", 0)])}
    second = {
        (name, view): MeanMap(drawn((3, 4), 9 + at)) for at, (name, view) in enumerate([("b", 0), ("a", 1), ("a", 0)])
    }
    second["c", 0] = MeanMap(drawn((3, 4)))
    found = site_agreement(("NL", "GC"), ("x", "y"), "by hand", (first, second))
    each = {view: cosine(one.values, second[view].values) for view, one in first.items()}
    assert found.estimates["agreement"].n == 2
    a = (each["a", 0] + each["a", 1]) / 2
    assert found.by_image.loc["a", "agreement"] == pytest.approx(a)
    assert found.estimates["agreement"].mean == pytest.approx((a + each["b", 0]) / 2)
    difference = found.by_image["agreement"] - found.by_image["shuffled"]
    assert found.estimates["difference"].mean == pytest.approx(difference.mean())
    assert found.estimates["agreement"].low <= found.estimates["agreement"].mean <= found.estimates["agreement"].high
    payload = found.as_dict()
    assert payload["agreement"]["n"] == 2
    assert (payload["first_site"], payload["second_site"], payload["grids"]) == ("x", "y", [[3, 4], [3, 4]])
    with pytest.raises(ConfigError, match="no image in common"):
        site_agreement(("NL", "GC"), ("x", "y"), "", (first, {("z", 0): MeanMap(drawn((3, 4)))}))


def test_a_single_image_has_no_interval_and_null_in_json() -> None:
    one = {("a", 0): MeanMap(drawn((3, 4)))}
    found = site_agreement(("NL", "GC"), ("x", "y"), "", (one, one)).as_dict()
    assert found["agreement"] == {"mean": pytest.approx(1), "low": None, "high": None, "n": 1}
    assert found["shuffled"] == {"mean": None, "low": None, "high": None, "n": 0}
