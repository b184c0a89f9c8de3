"""Intervals of numbers that are computed from a sum over images."""

import numpy as np
import pytest

from nlprobe.stats.intervals import bootstrap_mean, bootstrap_of_counts, bootstrap_of_sum


def test_a_ratio_of_sums_has_the_interval_of_its_resampled_sums() -> None:
    values = np.random.default_rng(0).integers(0, 9, (40, 2))

    def ratio(total: np.ndarray) -> np.ndarray:
        return np.asarray(total[0] / total[1])

    (found,), (low,), (high,) = bootstrap_of_sum(values, ratio, seed=3, resamples=300)
    generator = np.random.default_rng(3)
    samples = [ratio(values[generator.integers(0, 40, 40)].sum(0)) for _ in range(300)]
    assert found == values[:, 0].sum() / values[:, 1].sum()
    assert (low, high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), rel=1e-12)


def test_the_mean_by_its_sum_has_the_interval_of_the_mean() -> None:
    values = np.random.default_rng(1).integers(0, 100, 25)
    (found,), (low,), (high,) = bootstrap_of_sum(values, lambda total: np.asarray(total / 25), seed=5)
    expected = bootstrap_mean(values.astype(np.float64), seed=5)
    assert (found, low, high) == pytest.approx((expected.mean, expected.low, expected.high), rel=1e-12)


def test_several_numbers_come_together_and_undefined_ones_stay_so() -> None:
    values = np.array([[1, 0], [3, 0], [2, 0]])

    def two(total: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return total / np.array([1, total[1]])

    found, low, high = bootstrap_of_sum(values, two)
    assert found[0] == 6
    assert np.isnan([found[1], low[1], high[1]]).all()
    assert 3 <= low[0] <= 6 <= high[0] <= 9


def test_a_single_image_has_no_interval_of_a_sum() -> None:
    found, low, high = bootstrap_of_sum(np.array([[4]]), lambda total: total.astype(float))
    assert found.tolist() == [4]
    assert np.isnan([low, high]).all()


def test_numbers_that_are_no_sum_follow_from_how_often_each_image_counts() -> None:
    values = np.random.default_rng(2).random(30)

    def median(counts: np.ndarray) -> np.ndarray:
        return np.asarray(np.median(np.repeat(values, counts)))

    (found,), (low,), (high,) = bootstrap_of_counts(30, median, seed=5, resamples=200)
    generator = np.random.default_rng(5)
    samples = [np.median(values[generator.integers(0, 30, 30)]) for _ in range(200)]
    assert found == np.median(values)
    assert (low, high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), rel=1e-12)
    assert np.isnan(bootstrap_of_counts(1, lambda counts: np.array([1.0, np.nan]))[1]).all()
