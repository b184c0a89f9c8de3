"""The split of distances into space and time, against all pairs of rows in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats import Logits, Mask, avg_dist, softmax_statistics
from nlprobe.stats import space_time as module
from nlprobe.stats.space_time import (
    SpaceTimeDistances,
    concat_map_space_time,
    concat_product_space_time,
    product_space_time,
    softmax_space_time,
    space_time_distances,
)

T, H, W = 4, 3, 5
N = T * H * W
NAMES = ("same_frame", "other_frames", "same_place")


def split_distances(rows: Tensor, frames: int) -> dict[str, float]:
    """The three averages over all pairs of one set of rows."""
    rows = rows.double()
    kept = rows.norm(dim=-1) > 0
    unit = rows[kept] / rows[kept].norm(dim=-1, keepdim=True)
    apart = (unit.unsqueeze(0) - unit.unsqueeze(1)).square().sum(-1) / 4
    place = torch.arange(len(rows))[kept]
    time, where = place // (len(rows) // frames), place % (len(rows) // frames)
    same_time, same_place = time[:, None] == time, where[:, None] == where
    pairs = {"same_frame": same_time, "other_frames": ~same_time, "same_place": same_place}
    return {name: float(apart[chosen].mean()) for name, chosen in pairs.items()}


def agrees(found: SpaceTimeDistances, rows: Tensor, frames: int = T, rel: float = 1e-9, abs: float = 1e-14) -> None:
    """Each set's three values are those of its pairs."""
    sets = rows.reshape(-1, *rows.shape[-2:])
    for at, one in enumerate(sets):
        expected = split_distances(one, frames)
        for name in NAMES:
            value = float(getattr(found, name).flatten()[at])
            assert value == pytest.approx(expected[name], rel=rel, abs=abs), name


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("zero", [0, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_have_the_averages_over_their_pairs_and_zero_rows_are_left_out(dtype, zero) -> None:
    v = torch.randn(2, 3, N, 6, generator=generator()).to(dtype)
    v[..., :zero, :] = 0
    v[0, 0, N // 2] = 0
    agrees(space_time_distances(v, T), v)


@pytest.mark.parametrize("spread", [1e-3, 1e-5, 1e-7])
def test_frames_and_places_that_hardly_differ_keep_their_digits(spread) -> None:
    noise = spread * torch.randn(T, H * W, 8, generator=generator(), dtype=torch.float64)
    frames = torch.randn(T, 1, 8, generator=generator(1), dtype=torch.float64)
    places = torch.randn(1, H * W, 8, generator=generator(2), dtype=torch.float64)
    for base in (frames, places):
        v = (base + noise).flatten(0, 1)
        agrees(space_time_distances(v, T), v, rel=1e-6)


def test_the_whole_distance_is_the_weighted_mean_of_same_and_other_frames() -> None:
    v = torch.randn(N, 6, generator=generator(3))
    found = space_time_distances(v, T)
    assert float(found.same_frame / T + found.other_frames * (T - 1) / T) == pytest.approx(float(avg_dist(v)), rel=1e-6)


def test_a_still_clip_has_nothing_between_times_and_one_of_flat_frames_nothing_within_them() -> None:
    still = torch.randn(1, H * W, 6, generator=generator()).expand(T, -1, -1).reshape(N, 6)
    found = space_time_distances(still, T)
    assert float(found.same_place) == pytest.approx(0, abs=1e-30)
    assert float(found.same_frame) == pytest.approx(float(found.other_frames), rel=1e-12)
    flat = torch.randn(T, 1, 6, generator=generator()).expand(-1, H * W, -1).reshape(N, 6)
    found = space_time_distances(flat, T)
    assert float(found.same_frame) == pytest.approx(0, abs=1e-30)
    assert float(found.same_place) == pytest.approx(float(avg_dist(flat)), rel=1e-6)


def test_one_frame_has_no_others_and_zero_rows_alone_have_no_distance() -> None:
    v = torch.randn(6, 4, generator=generator())
    one = space_time_distances(v, 1)
    assert torch.isnan(one.other_frames)
    assert float(one.same_frame) == pytest.approx(float(avg_dist(v)), rel=1e-6)
    assert float(one.same_place) == 0
    assert all(torch.isnan(value) for value in vars(space_time_distances(torch.zeros(6, 4), 2)).values())


@given(st.integers(0, 1000), st.sampled_from([1e-150, 1e-3, 1e150]))
def test_neither_scale_nor_the_order_of_places_and_frames_matters(seed, scale) -> None:
    v = torch.randn(T, H * W, 5, generator=generator(seed), dtype=torch.float64)
    moved = v[torch.randperm(T, generator=generator(seed))][:, torch.randperm(H * W, generator=generator(seed))]
    before, after = (space_time_distances(one.flatten(0, 1), T) for one in (v, moved * scale))
    for name in NAMES:
        assert float(getattr(after, name)) == pytest.approx(float(getattr(before, name)), rel=1e-9)


@pytest.mark.parametrize("keys", [3, 15, 40])
def test_logit_rows_are_measured_without_being_formed(keys) -> None:
    query = torch.randn(2, N, 8, generator=generator(), dtype=torch.float64)
    key = torch.randn(2, keys, 8, generator=generator(1), dtype=torch.float64)
    query[:, 4] = 0
    query[0, 5], key[0, :, 0] = torch.eye(8, dtype=torch.float64)[0], 0  # orthogonal to all keys
    agrees(product_space_time(query, key, T), query @ key.mT)
    a, b = query[..., 0], key[..., 1]
    agrees(concat_product_space_time(a, b, T), a.unsqueeze(-1) + b.unsqueeze(-2))
    agrees(concat_map_space_time(a, b, T), (a.unsqueeze(-1) + b.unsqueeze(-2)).relu())


@pytest.mark.parametrize("rows_in_a_block", [1, 9, 10_000])
@pytest.mark.parametrize("strength", [0.003, 0.3, 3.0])
def test_softmax_maps_are_measured_block_by_block(strength, rows_in_a_block, monkeypatch) -> None:
    monkeypatch.setattr(module, "block_elements", lambda _: rows_in_a_block * 2 * 20)
    query = torch.randn(2, 2, N, 8, generator=generator())
    key = torch.randn(2, 2, 20, 8, generator=generator(1))
    logits = Logits(query, key, strength)
    maps = (query.double() @ key.double().mT * strength).softmax(-1)
    agrees(softmax_space_time(logits, T), maps, rel=1e-5, abs=1e-9)
    agrees(softmax_space_time(logits, T, double=True), maps, rel=1e-7, abs=1e-15)
    found, (each, _) = softmax_space_time(logits, T), softmax_statistics(logits)
    whole = found.same_frame / T + found.other_frames * (T - 1) / T
    assert torch.allclose(whole, each.avg_dist, rtol=2e-5, atol=2e-9)


def test_maps_with_hidden_keys_and_with_a_unary_map_are_those_of_the_formula() -> None:
    query = torch.randn(1, 1, N, 8, generator=generator())
    key = torch.randn(1, 1, 20, 8, generator=generator(1))
    visible = torch.rand(1, 1, N, 20, generator=generator(2)) > 0.4
    visible[0, 0, 3] = False
    products = (query.double() @ key.double().mT).masked_fill(~visible, -torch.inf)
    maps = products.softmax(-1).nan_to_num(0.0)
    agrees(softmax_space_time(Logits(query, key, mask=Mask(visible=visible)), T), maps, rel=1e-5)
    unary = torch.rand(1, 20, generator=generator(3)).softmax(-1)
    joined = 0.5 * (query.double() @ key.double().mT).softmax(-1) + 2 * unary.double()
    found = softmax_space_time(Logits(query, key), T, unary=unary, weights=(0.5, 2.0))
    agrees(found, joined, rel=1e-5, abs=1e-9)


def test_what_is_not_finite_is_refused_by_name() -> None:
    v = torch.randn(N, 4)
    v[3] = torch.nan
    with pytest.raises(NlprobeError, match="`v` of shape"):
        space_time_distances(v, T)
    with pytest.raises(NlprobeError, match="`key`"):
        product_space_time(torch.randn(N, 4), v, T)
