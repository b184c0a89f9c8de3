"""How far class means lie apart, held to loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nlprobe.stats.class_spread import class_spread, class_spread_samples
from nlprobe.stats.class_sums import ClassSums


def summed(values: np.ndarray, labels: np.ndarray, classes: int) -> ClassSums:
    sums = ClassSums(classes)
    sums.add(torch.from_numpy(np.asarray(values, dtype=np.float64)), torch.from_numpy(labels))
    return sums


def spread_of(values: np.ndarray, labels: np.ndarray, drawn: list[int] | None = None) -> float:
    """The formula, in loops; of drawn images the number in a class is that of the drawn."""
    values, labels = (values, labels) if drawn is None else (values[drawn], labels[drawn])
    top = bottom = 0.0
    for c in range(values.shape[1]):
        own = [values[labels == k, c] for k in sorted(set(labels.tolist()))]
        means = [math.fsum(rows) / len(rows) for rows in own]
        centre = math.fsum(means) / len(means)
        noises = [
            math.fsum((row - mean) ** 2 for row in rows) / (len(rows) - 1) / len(rows)
            for rows, mean in zip(own, means, strict=True)
            if len(rows) > 1
        ]
        noise = math.fsum(noises) / len(noises) if noises else 0.0
        top += math.fsum((mean - centre) ** 2 for mean in means) / (len(means) - 1) - noise
        bottom += centre**2
    return math.sqrt(max(top, 0) / bottom)


@given(seed=st.integers(0, 200), n=st.integers(9, 40), effect=st.sampled_from([0.0, 0.5, 5.0]))
def test_the_spread_is_that_of_its_definition(seed: int, n: int, effect: float) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.minimum(np.arange(n) % 5, 3))
    values = effect * generator.normal(size=(5, 3))[labels] + generator.normal(2, 1, (n, 3))
    assert class_spread(summed(values, labels, 6)) == pytest.approx(spread_of(values, labels), rel=1e-6, abs=1e-6)


def test_noise_of_few_images_is_taken_off() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 20
    centres = 3 + 0.5 * generator.normal(size=(20, 3000))
    found = class_spread(summed(centres[labels] + generator.normal(size=(60, 3000)), labels, 20))
    assert found == pytest.approx(0.5 / 3, rel=0.02)
    assert class_spread(summed(3 + generator.normal(size=(60, 3000)), labels, 20)) < 0.02


def test_scale_does_not_matter_and_nothing_at_all_is_undefined() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(30) % 3
    values = generator.normal(1, 1, (30, 4)) + labels[:, None]
    one = class_spread(summed(values, labels, 3))
    assert class_spread(summed(-7 * values, labels, 3)) == pytest.approx(one, rel=1e-12)
    assert math.isnan(class_spread(summed(np.zeros((30, 4)), labels, 3)))


def test_bootstrap_samples_are_those_of_images_drawn_within_their_class() -> None:
    generator = np.random.default_rng(2)
    labels = generator.permutation(np.arange(22) % 4)
    values = (generator.normal(1, 1, (22, 3)) + labels[:, None]).astype(np.float32)
    found = class_spread_samples(values, labels, seed=3, resamples=3)
    again = np.random.default_rng(3)
    drawn: list[list[int]] = [[], [], []]
    for k in range(4):
        members = np.flatnonzero(labels == k)
        for sample, counts in enumerate(again.multinomial(len(members), [1 / len(members)] * len(members), 3)):
            drawn[sample] += np.repeat(members, counts).tolist()
    expected = [spread_of(values.astype(np.float64), labels, chosen) for chosen in drawn]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
