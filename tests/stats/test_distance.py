"""Row distances against every pair of rows in float64."""

import math

import brute_force
import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats import RowStatistics, avg_dist, row_statistics, row_statistics_beside_prefix

properties = settings(derandomize=True, deadline=None, max_examples=25)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 24))


def rows(shape: tuple[int, ...], seed: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape[-1:], generator=generator) + spread * torch.randn(shape, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-2, 1e-3, 1e-4])
def test_agrees_with_all_pairs(device: torch.device, dtype: torch.dtype, spread: float) -> None:
    v = rows((60, 32), 1, spread).to(dtype).to(device)
    assert avg_dist(v).item() == pytest.approx(brute_force.average_distance(v), rel=1e-5)
    assert avg_dist(v).dtype == torch.float64


def nearly_equal(distance: float, dtype: torch.dtype) -> Tensor:
    """Rows whose true distance is about what is asked for, exactly representable in `dtype`."""
    base = torch.zeros(200, 96)
    base[:, 0] = 1
    generator = torch.Generator().manual_seed(3)
    base[:, 1:] = torch.randn(200, 95, generator=generator) * math.sqrt(2 * distance / 95)
    return base.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("distance", [1e-3, 1e-5, 1e-7, 1e-9, 1e-11, 1e-13])
def test_nearly_equal_rows_keep_their_digits(dtype: torch.dtype, distance: float) -> None:
    v = nearly_equal(distance, dtype)
    expected = brute_force.average_distance(v)
    assert expected == pytest.approx(distance, rel=0.1)
    assert avg_dist(v).item() == pytest.approx(expected, rel=1e-5)
    assert avg_dist(v.mT.contiguous().mT).item() == pytest.approx(expected, rel=1e-5)
    assert row_statistics(v).avg_dist.item() == pytest.approx(expected, rel=1e-5)


def test_nearly_equal_dense_rows_keep_their_digits() -> None:
    v = rows((300, 257), 4, 3e-5)
    expected = brute_force.average_distance(v)
    assert 1e-10 < expected < 1e-8
    assert avg_dist(v).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("repeats", [50, 5000])
def test_two_clusters_of_equal_rows_whose_rounding_does_not_average_out(repeats: int) -> None:
    pair = rows((2, 333), 5, 0.07)
    v = pair.repeat_interleave(repeats, 0)
    assert avg_dist(v).item() == pytest.approx(brute_force.average_distance(pair), rel=1e-8)


MANY = 2048  # rows, so that a first pass in float32 is tried


@pytest.mark.parametrize("spread", [0.07, 0.2, 0.35, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_float32_keeps_its_digits_where_rounding_is_the_same_in_all_rows(spread: float, seed: int) -> None:
    pair = rows((2, 333), seed, spread)
    v = pair.repeat_interleave(MANY, 0)
    expected = brute_force.average_distance(pair)
    assert avg_dist(v).item() == pytest.approx(expected, rel=1e-5)
    assert avg_dist(v.mT.contiguous().mT).item() == pytest.approx(expected, rel=1e-5)
    energy, mean = pair.double().square().sum(-1).mean().item(), pair.double().mean(0)
    found = row_statistics(v)
    assert found.avg_dist.item() == pytest.approx(expected, rel=1e-5)
    assert found.energy.item() == pytest.approx(energy, rel=1e-6)
    assert found.spread.item() == pytest.approx((pair.double() - mean).square().sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("awkward", ["none", "zero", "tiny", "huge", "not a number", "hidden cluster"])
@pytest.mark.parametrize("transposed", [False, True])
def test_many_rows_are_measured_as_few_are(awkward: str, transposed: bool) -> None:
    v = rows((2, MANY, 3, 12), 20).transpose(1, 2)
    v = v.mT.contiguous().mT if transposed else v
    odd = torch.arange(MANY) % 64 == 5  # none of the rows that are sampled
    match awkward:
        case "zero":
            v[1, 1, odd] = 0
        case "tiny":
            v[1, 1, odd] *= 1e-25
        case "huge":
            v[1, 1, odd] *= 1e25
        case "not a number":
            v[1, 1, 5, 3] = math.nan
            with pytest.raises(NlprobeError, match="`v`"):
                avg_dist(v)
            return
        case "hidden cluster":
            v[1, 1] = v[1, 1, :1] * (1 + torch.arange(MANY).unsqueeze(-1) % 7)
            v[1, 1, :: MANY // 32] = torch.randn(32, 12)
    found = row_statistics(v)
    for image in range(2):
        for head in range(3):
            one = v[image, head]
            assert found.zero_rows[image, head] == brute_force.zero_rows(one)
            assert found.avg_dist[image, head].item() == pytest.approx(brute_force.average_distance(one), rel=1e-5)


@properties
@given(shapes, st.integers(0, 999))
def test_is_half_of_one_less_the_squared_mean_of_unit_rows(shape: tuple[int, int], seed: int) -> None:
    v = rows(shape, seed)
    assert avg_dist(v).item() == pytest.approx(brute_force.average_distance(v), rel=1e-5, abs=1e-15)


@properties
@given(shapes, st.integers(0, 999))
def test_permuting_positions_changes_nothing(shape: tuple[int, int], seed: int) -> None:
    v = rows(shape, seed)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    assert avg_dist(v[order]).item() == pytest.approx(avg_dist(v).item(), rel=1e-9, abs=1e-15)


@properties
@given(shapes, st.integers(0, 999))
def test_scaling_each_row_by_a_positive_factor_changes_nothing(shape: tuple[int, int], seed: int) -> None:
    v = rows(shape, seed)
    factors = 2.0 ** torch.randint(-60, 60, (shape[0], 1), generator=torch.Generator().manual_seed(seed))
    assert avg_dist(v * factors).item() == pytest.approx(avg_dist(v).item(), rel=1e-9, abs=1e-15)


@properties
@given(shapes, st.integers(0, 999))
def test_rotating_all_rows_changes_nothing(shape: tuple[int, int], seed: int) -> None:
    v = rows(shape, seed).double()
    rotation = torch.linalg.qr(rows((shape[1], shape[1]), seed + 1).double()).Q
    assert avg_dist(v @ rotation).item() == pytest.approx(avg_dist(v).item(), rel=1e-9, abs=1e-14)


@properties
@given(shapes, st.integers(0, 999), st.integers(2, 5))
def test_duplicating_all_positions_changes_nothing(shape: tuple[int, int], seed: int, times: int) -> None:
    v = rows(shape, seed)
    assert avg_dist(v.repeat(times, 1)).item() == pytest.approx(avg_dist(v).item(), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 7, 3000])
def test_equal_rows_have_no_distance(n: int) -> None:
    v = rows((1, 77), 6).expand(n, 77)
    assert 0 <= avg_dist(v).item() < 1e-24
    assert 0 <= row_statistics(v).spread.item() < 1e-24


@pytest.mark.parametrize("n", [1, 2, 16, 128])
def test_orthonormal_rows_have_the_distance_of_one_less_one_over_n_halved(n: int) -> None:
    assert avg_dist(torch.eye(n)).item() == pytest.approx((1 - 1 / n) / 2, rel=1e-12)


def test_opposite_rows_have_half_the_largest_distance() -> None:
    assert avg_dist(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])).item() == pytest.approx(0.5)


def test_zero_rows_are_left_out_and_counted() -> None:
    v = rows((20, 9), 7)
    padded = torch.cat((torch.zeros(5, 9), v, -torch.zeros(2, 9)))
    found = row_statistics(padded)
    assert found.zero_rows.item() == 7
    assert found.avg_dist.item() == pytest.approx(avg_dist(v).item(), rel=1e-12)


def test_zero_rows_are_left_out_of_nearly_equal_rows() -> None:
    v = nearly_equal(1e-12, torch.float32)
    padded = torch.cat((torch.zeros(50, 96), v))
    assert avg_dist(padded).item() == pytest.approx(brute_force.average_distance(v), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_all_rows_zero_is_not_a_number(dtype: torch.dtype) -> None:
    found = row_statistics(torch.stack((torch.zeros(4, 3), torch.ones(4, 3))).to(dtype))
    assert found.zero_rows.tolist() == [4, 0]
    assert math.isnan(found.avg_dist[0])
    assert found.avg_dist[1] == 0
    assert found.energy[0] == found.spread[0] == 0


@pytest.mark.parametrize(
    ("dtype", "magnitudes"),
    [
        (torch.float32, [1e30, 3e38, 1e-30, 1e-38, 1e-43]),
        (torch.float64, [1e200, 1e308, 1e-200, 1e-308, 1e-321]),
        (torch.float16, [6e4, 1e-5, 3e-7]),
        (torch.bfloat16, [1e38, 1e-38, 1e-40]),
    ],
    ids=str,
)
def test_huge_tiny_and_denormal_rows_have_their_direction(dtype: torch.dtype, magnitudes: list[float]) -> None:
    directions = rows((10, 6), 8).double()
    directions = directions / directions.abs().amax(-1, keepdim=True)
    mixed = torch.cat([(magnitude * directions).to(dtype) for magnitude in magnitudes])
    assert avg_dist(mixed).item() == pytest.approx(brute_force.average_distance(mixed), rel=1e-5)
    for v in mixed.split(10):
        found = row_statistics(v)
        assert found.zero_rows == brute_force.zero_rows(v)
        assert found.avg_dist.item() == pytest.approx(brute_force.average_distance(v), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_non_finite_input_is_refused_by_name(bad: float, dtype: torch.dtype) -> None:
    v = torch.ones(2, 3, 4, dtype=dtype)
    v[1, 2, 3] = bad
    with pytest.raises(NlprobeError, match="`v` of shape"):
        avg_dist(v)
    with pytest.raises(NlprobeError, match="`v` of shape"):
        row_statistics(v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_moments_are_those_of_the_rows(device: torch.device, dtype: torch.dtype) -> None:
    v = (rows((2, 3, 50, 11), 9) * 7).to(dtype).to(device)
    found = row_statistics(v)
    wide = v.double()
    mean = wide.mean(-2)
    torch.testing.assert_close(found.mean, mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.energy, wide.square().sum(-1).mean(-1), rtol=1e-9, atol=0)
    spread = (wide - mean.unsqueeze(-2)).square().sum(-1).mean(-1)
    torch.testing.assert_close(found.spread, spread, rtol=1e-9, atol=0)
    assert found.avg_dist.shape == found.zero_rows.shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("relative", [1e-3, 1e-5, 1e-7])
def test_a_small_spread_is_measured_from_residuals(dtype: torch.dtype, relative: float) -> None:
    v = (1000 * (1 + relative * torch.randn(400, 30, dtype=torch.float64))).to(dtype)
    residuals = v.double() - v.double().mean(0)
    assert row_statistics(v).spread.item() == pytest.approx(residuals.square().sum(-1).mean().item(), rel=1e-6)


def layouts() -> dict[str, Tensor]:
    image = torch.randn(3, 10, 6, 7)
    tokens = torch.randn(2, 31, 3, 4, 8)
    return {
        "transposed image": image.flatten(2).mT,
        "channels last": image.contiguous(memory_format=torch.channels_last).flatten(2).mT,
        "heads": tokens[:, :, 0].transpose(1, 2),
        "every other row": torch.randn(50, 12)[::2],
        "some columns": torch.randn(40, 30)[:, 3:17],
        "broadcast": torch.randn(1, 12, 5).expand(4, 12, 5),
        "no batch": torch.randn(9, 4),
        "three batch dimensions": torch.randn(2, 2, 2, 6, 3).permute(2, 0, 1, 3, 4),
    }


@pytest.mark.parametrize("name", list(layouts()))
def test_any_layout_gives_what_the_contiguous_copy_gives(name: str) -> None:
    v = layouts()[name]
    found, expected = row_statistics(v), row_statistics(v.contiguous())
    for attribute in ("avg_dist", "zero_rows", "mean", "energy", "spread"):
        torch.testing.assert_close(getattr(found, attribute), getattr(expected, attribute), rtol=1e-12, atol=1e-12)


def test_many_blocks_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [rows((4, 3, 41, 10), 11), rows((4, 41, 3, 10), 11).transpose(1, 2), rows((2, 10, 90), 12).mT]
    inputs += [nearly_equal(1e-11, torch.float32), nearly_equal(1e-11, torch.float32).double().mT.contiguous().mT]
    expected = [row_statistics(v) for v in inputs]
    for room in (1, 64, 1000):
        monkeypatch.setattr("nlprobe.stats.distance.block_elements", lambda _, room=room: room)
        for v, whole in zip(inputs, expected, strict=True):
            found = row_statistics(v)
            for attribute in ("avg_dist", "zero_rows", "mean", "energy", "spread"):
                torch.testing.assert_close(getattr(found, attribute), getattr(whole, attribute), rtol=1e-9, atol=0)


def test_gradients_and_autocast_around_the_call_change_nothing(device: torch.device) -> None:
    v = rows((30, 16), 13).to(device)
    expected = row_statistics(v)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = row_statistics(v.clone().requires_grad_())
    assert torch.equal(found.avg_dist, expected.avg_dist)
    assert torch.equal(found.mean, expected.mean)
    assert not found.avg_dist.requires_grad


def test_the_input_is_left_as_it_was() -> None:
    for v in (rows((30, 16), 14), rows((30, 16), 14).double(), rows((16, 30), 14).mT):
        before = v.clone()
        row_statistics(v)
        assert torch.equal(v, before)


@pytest.mark.parametrize("shape", [(70, 33), (5, 2)])
def test_agrees_with_torchmetrics_and_scikit_learn(shape: tuple[int, int]) -> None:
    v = rows(shape, 15).double()
    similarity = torchmetrics.functional.pairwise_cosine_similarity(v, v, zero_diagonal=False)
    assert avg_dist(v).item() == pytest.approx(((1 - similarity) / 2).mean().item(), rel=1e-9)
    assert avg_dist(v).item() == pytest.approx(
        sklearn.metrics.pairwise.cosine_distances(v.numpy()).mean() / 2, rel=1e-9
    )


def assert_same(found: RowStatistics, expected: RowStatistics, rtol: float = 1e-9) -> None:
    for name, value in vars(expected).items():
        # parts of vectors are as good as the largest, a spread that is nothing but rounding as the energy
        size = {
            "direction": rtol * value.abs().max(),
            "mean": rtol * value.abs().max(),
            "spread": 1e-28 * expected.energy.max(),
        }
        atol = float(size.get(name, 1e-14))
        np.testing.assert_allclose(getattr(found, name), value, rtol=rtol, atol=atol, err_msg=name)


@properties
@given(
    n=st.integers(2, 12),
    prefix=st.integers(1, 11),
    spread=st.sampled_from([1.0, 1e-3, 1e-6, 0.0]),
    size=st.sampled_from([1e-200, 1.0, 1e150]),
    seed=st.integers(0, 100),
)
def test_rows_after_a_prefix_are_measured_as_by_themselves(
    n: int, prefix: int, spread: float, size: float, seed: int
) -> None:
    prefix = min(prefix, n - 1)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(2, 3, 1, 5, generator=generator, dtype=torch.float64)
    v = size * (v + spread * torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64))
    everything, rest = row_statistics_beside_prefix(v, prefix)
    assert_same(everything, row_statistics(v), rtol=1e-8)
    assert_same(rest, row_statistics(v[..., prefix:, :]), rtol=1e-8)


@pytest.mark.parametrize("zeros", [[0], [0, 1], [3], [2, 3, 4], [0, 1, 2, 3, 4]])
def test_zero_rows_of_prefix_and_rest_are_left_out(zeros: list[int]) -> None:
    v = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v[zeros] = 0
    everything, rest = row_statistics_beside_prefix(v, 2)
    assert_same(everything, row_statistics(v))
    assert_same(rest, row_statistics(v[2:]))


@pytest.mark.parametrize("images", [3, 20])
@pytest.mark.parametrize("shift", [0.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_heads_as_models_hold_them_agree_with_float64(dtype: torch.dtype, shift: float, images: int) -> None:
    generator = torch.Generator().manual_seed(0)
    held = torch.randn(images, 197, 3, 6, 64, generator=generator).add(shift).to(dtype).permute(2, 0, 3, 1, 4)[1]
    assert not held.is_contiguous()
    for found, start in zip(row_statistics_beside_prefix(held, 1), (0, 1), strict=True):
        assert_same(found, row_statistics(held[..., start:, :].double()), rtol=1e-5)
