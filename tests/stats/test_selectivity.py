"""The class selectivity index, held to its definition in loops."""

import numpy as np
import pytest
from class_reference import class_means, selectivity_of
from hypothesis import given
from hypothesis import strategies as st

from nlprobe.errors import NlprobeError
from nlprobe.stats import class_selectivity
from nlprobe.stats.selectivity import EPSILON, mean_index_samples, shuffled_index


def data(seed: int, n: int = 60, channels: int = 7, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Activations behind a ReLU, some of which follow the class; the first channel is dead."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % classes)
    preferred = generator.integers(0, classes, channels)
    strength = generator.uniform(0, 3, channels)
    values = np.maximum(generator.normal(0.5, 1, (n, channels)) + strength * (labels[:, None] == preferred), 0)
    values[:, 0] = 0
    return values, labels


@given(seed=st.integers(0, 200), epsilon=st.sampled_from([0.0, EPSILON, 0.1]))
def test_every_channel_has_the_index_of_its_definition(seed: int, epsilon: float) -> None:
    values, labels = data(seed)
    means = np.array(class_means(values, labels.tolist(), 6))
    found = class_selectivity(means, epsilon=epsilon)
    expected = [selectivity_of(means[:, c].tolist(), epsilon) for c in range(values.shape[1])]
    np.testing.assert_allclose(found.index, expected, rtol=1e-12)
    assert found.dead.tolist() == [True, *[False] * 6]
    assert found.preferred[0] == -1
    assert found.preferred[1:].tolist() == np.nanargmax(means[:, 1:], 0).tolist()
    assert found.classes == 5


def test_the_index_goes_from_no_class_to_one_class_only() -> None:
    means = np.array([[1.0, 4.0, 3.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    found = class_selectivity(means, epsilon=0.0)
    assert found.index.tolist() == [0, 1, 0.5]
    assert (found.highest[2], found.others[2]) == (3, 1)


@given(seed=st.integers(0, 100), factor=st.floats(1e-3, 1e3))
def test_scaling_channels_and_renaming_classes_change_nothing(seed: int, factor: float) -> None:
    values, labels = data(seed)
    means = np.array(class_means(values, labels.tolist(), 5))
    order = np.random.default_rng(seed).permutation(5)
    found, other = class_selectivity(means, epsilon=0.0), class_selectivity(factor * means[order], epsilon=0.0)
    np.testing.assert_allclose(found.index, other.index, rtol=1e-10)
    assert [order[k] for k in other.preferred[1:]] == found.preferred[1:].tolist()


def test_others_are_averaged_by_class_and_not_by_image() -> None:
    values = np.array([[6.0]] + [[1.0]] * 9 + [[3.0]])
    labels = [0] + [1] * 9 + [2]
    found = class_selectivity(np.array(class_means(values, labels, 3)), epsilon=0.0)
    assert found.index.item() == pytest.approx((6 - 2) / (6 + 2))


def test_epsilon_keeps_faint_channels_low_and_touches_no_other() -> None:
    found = class_selectivity(np.array([[1e-10, 1.0], [0.0, 0.0]]))
    assert found.index[0] == pytest.approx(1e-3, rel=1e-2)
    assert found.index[1] == pytest.approx(1, abs=1e-6)


def test_a_channel_with_a_negative_mean_has_no_index() -> None:
    found = class_selectivity(np.array([[1.0, 2.0, -1.0], [-1e-3, 1.0, -2.0]]))
    assert found.signed.tolist() == [True, False, True]
    assert np.isnan(found.index).tolist() == [True, False, True]
    assert found.preferred.tolist() == [-1, 0, -1]


def test_one_class_cannot_be_compared() -> None:
    with pytest.raises(NlprobeError, match="1 of 2 classes have images"):
        class_selectivity(np.array([[1.0], [np.nan]]))


@given(seed=st.integers(0, 20))
def test_bootstrap_samples_are_those_of_images_drawn_within_their_class(seed: int) -> None:
    values, labels = data(seed, n=23, channels=4)
    values = values[:, 1:].astype(np.float32)
    found = mean_index_samples(values, labels, epsilon=1e-3, seed=seed, resamples=3)
    generator = np.random.default_rng(seed)
    drawn: list[list[int]] = [[], [], []]
    for k in range(5):
        members = np.flatnonzero(labels == k)
        for sample, counts in enumerate(generator.multinomial(len(members), [1 / len(members)] * len(members), 3)):
            drawn[sample] += np.repeat(members, counts).tolist()
    for sample, chosen in zip(found, drawn, strict=True):
        means = np.array(class_means(values[chosen].astype(np.float64), labels[chosen].tolist(), 5))
        expected = [selectivity_of(means[:, c].tolist(), 1e-3) for c in range(3)]
        assert sample == pytest.approx(np.nanmean(expected), rel=1e-10)


def test_a_channel_that_is_dead_in_a_sample_is_left_out_of_it() -> None:
    values = np.array([[1.0, 0.0]] * 6 + [[1.0, 1.0]] + [[3.0, 0.0]] * 5, dtype=np.float32)
    found = mean_index_samples(values, np.array([0] * 7 + [1] * 5), epsilon=0.0, seed=0, resamples=50)
    assert set(np.round(found, 6)) == {0.5, 0.75}


def test_shuffled_labels_tell_what_chance_gives() -> None:
    values, labels = data(3, n=400, channels=40)
    values = values[:, 1:].astype(np.float32)
    own = np.nanmean(class_selectivity(np.array(class_means(values, labels.tolist(), 5))).index)
    draws = shuffled_index(values, labels, seed=1, draws=4)
    assert len(draws) == 4
    assert 0 < draws.min() < draws.max() < 0.3 * own
    order = np.random.default_rng(1).permutation(400)
    means = np.array(class_means(values[order].astype(np.float64), labels.tolist(), 5))
    assert draws[0] == pytest.approx(np.mean([selectivity_of(means[:, c].tolist(), EPSILON) for c in range(39)]))
