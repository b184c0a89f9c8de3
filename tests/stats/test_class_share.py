"""The share of variation between classes, held to an analysis of variance in loops."""

import numpy as np
import pytest
import torch
from class_reference import share_of
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f_oneway

from nlprobe.errors import NlprobeError
from nlprobe.stats import ClassSums, class_share
from nlprobe.stats.class_share import mean_share_samples


def summed(values: np.ndarray, labels: np.ndarray, classes: int) -> ClassSums:
    sums = ClassSums(classes)
    sums.add(torch.from_numpy(np.asarray(values, dtype=np.float64)), torch.from_numpy(labels))
    return sums


def data(seed: int, n: int = 40, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % classes)
    effect = generator.normal(0, 1, (classes, 3)) * np.array([0, 1, 10])
    return effect[labels] + generator.normal(5, 1, (n, 3)), labels


@given(seed=st.integers(0, 200), offset=st.sampled_from([0.0, 1e3]))
def test_every_channel_has_the_share_of_its_definition(seed: int, offset: float) -> None:
    values, labels = data(seed)
    values = values + offset
    expected = [share_of(values[:, c].tolist(), labels.tolist()) for c in range(3)]
    np.testing.assert_allclose(class_share(summed(values, labels, 6)), expected, rtol=1e-6, atol=1e-7)


def test_it_is_the_effect_size_of_a_one_way_analysis_of_variance() -> None:
    values, labels = data(1)
    for c, share in enumerate(class_share(summed(values, labels, 4))):
        f = f_oneway(*(values[labels == k, c] for k in range(4))).statistic
        assert share == pytest.approx(1 - 39 / (39 + 3 * (f - 1)), rel=1e-9)


def test_labels_without_meaning_have_no_share_on_average_and_pure_ones_all() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(30) % 10
    assert abs(class_share(summed(generator.normal(size=(30, 4000)), labels, 10)).mean()) < 0.01
    pure = generator.normal(size=(10, 1))[labels]
    assert class_share(summed(pure, labels, 10)).item() == pytest.approx(1, abs=1e-12)


def test_a_constant_channel_has_no_share_even_when_it_is_rounded() -> None:
    labels = np.arange(40) % 4
    values = np.stack([np.full(40, 0.1), np.full(40, 3.0) * (1 + 1e-8 * labels), np.zeros(40)], 1)
    assert np.isnan(class_share(summed(values, labels, 4))).all()


def test_too_few_images_are_refused() -> None:
    with pytest.raises(NlprobeError, match="2 images of 2 classes"):
        class_share(summed(np.ones((2, 1)), np.arange(2), 2))
    with pytest.raises(NlprobeError, match="5 images of 1 classes"):
        class_share(summed(np.ones((5, 1)), np.zeros(5, dtype=np.int64), 2))


def test_bootstrap_samples_are_those_of_images_drawn_within_their_class() -> None:
    values, labels = data(5, n=21)
    values = values.astype(np.float32)
    found = mean_share_samples(values, labels, seed=2, resamples=4)
    generator = np.random.default_rng(2)
    drawn: list[list[int]] = [[], [], [], []]
    for k in range(4):
        members = np.flatnonzero(labels == k)
        for sample, counts in enumerate(generator.multinomial(len(members), [1 / len(members)] * len(members), 4)):
            drawn[sample] += np.repeat(members, counts).tolist()
    for sample, chosen in zip(found, drawn, strict=True):
        expected = [share_of(values[chosen, c].tolist(), labels[chosen].tolist()) for c in range(3)]
        assert sample == pytest.approx(np.mean(expected), rel=1e-5)
