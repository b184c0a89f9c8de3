"""Intervals over images where classes are compared."""

import numpy as np
import pytest

from nlprobe.stats import class_selectivity
from nlprobe.stats.class_bootstrap import centred_estimate, class_resamples, classes_of, has_interval
from nlprobe.stats.selectivity import mean_index_samples


def test_classes_come_in_order_with_all_their_images() -> None:
    labels = np.array([2, 0, 2, 5, 0])
    assert [members.tolist() for members in classes_of(labels)] == [[1, 4], [0, 2], [3]]
    for members, counts in class_resamples(labels, resamples=4):
        assert counts.shape == (4, len(members))
        assert (counts.sum(1) == len(members)).all()
    assert not has_interval(labels)
    assert has_interval(np.array([1, 1, 0, 0]))


def test_samples_are_moved_to_lie_around_the_estimate() -> None:
    samples = np.linspace(1, 3, 2001)
    found = centred_estimate(1.5, samples, 9)
    assert (found.low, found.high) == pytest.approx((0.55, 2.45))
    nothing = centred_estimate(1.5, np.empty(0), 9)
    assert np.isnan([nothing.low, nothing.high]).all()


@pytest.mark.parametrize("images", [6, 20])
def test_nineteen_of_twenty_intervals_hold_what_more_data_of_that_size_give(images: int) -> None:
    generator = np.random.default_rng(0)
    classes, channels = 8, 40
    centres = generator.uniform(0.2, 3, (classes, channels))
    labels = np.repeat(np.arange(classes), images)

    def draw() -> np.ndarray:
        return generator.exponential(centres[labels])

    def index(values: np.ndarray) -> float:
        return float(class_selectivity(values.reshape(classes, images, channels).mean(1)).index.mean())

    expected = np.mean([index(draw()) for _ in range(1000)])
    found, unmoved = [], []
    for seed in range(150):
        values = draw()
        samples = mean_index_samples(values.astype(np.float32), labels, seed=seed, resamples=200)
        found.append(centred_estimate(index(values), samples, len(labels)))
        unmoved.append(np.quantile(samples, [0.025, 0.975]))
    covered = np.mean([one.low <= expected <= one.high for one in found])
    assert 0.87 <= covered <= 0.99
    assert np.mean([low <= expected <= high for low, high in unmoved]) < 0.6
