"""Class selectivity (Morcos et al. 2018): how much more a channel answers to one class than to all others.

Figure 7 of the paper. With μ_k the mean over the images of class k of a channel's mean over positions, μ_max the
highest of them and μ_-max the plain mean of all others,

    index = (μ_max − μ_-max) / (μ_max + μ_-max + ε)

lies between 0 (all classes alike) and 1 (one class only). It is made for activations that are never negative, as
behind a ReLU.

The highest of K noisy means lies above the highest of the true ones, so the index is lifted by having few images of a
class: even a channel that knows nothing of the classes has one. `shuffled_index` tells how high.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from nlprobe.errors import NlprobeError
from nlprobe.stats.class_bootstrap import class_resamples, classes_of
from nlprobe.stats.intervals import RESAMPLES

EPSILON = 1e-7
"""Keeps the index finite; it lowers that of a channel by the factor 1 − ε / (μ_max + μ_-max), which is nothing but for
channels that hardly ever answer."""

SHUFFLES = 5


@dataclass(frozen=True)
class ClassSelectivity:
    """The class selectivity of every channel.

    Attributes:
        index: NaN for a channel that has none.
        preferred: The class with the highest mean, the first of several; -1 for a channel without index.
        highest: μ_max.
        others: μ_-max.
        dead: Channels that no image activates: all their means are 0, and they have no index.
        signed: Channels with a negative mean: they have no index, as it would be unbounded.
        classes: Classes with images; others are left out of everything.
    """

    index: Float64[np.ndarray, " c"]
    preferred: Int64[np.ndarray, " c"]
    highest: Float64[np.ndarray, " c"]
    others: Float64[np.ndarray, " c"]
    dead: Bool[np.ndarray, " c"]
    signed: Bool[np.ndarray, " c"]
    classes: int


def class_selectivity(means: Float64[np.ndarray, "k c"], *, epsilon: float = EPSILON) -> ClassSelectivity:
    """The class selectivity of every channel from its class means.

    Args:
        means: μ, as `ClassSums.means` gives them: NaN for a class without images.
        epsilon: ε.

    Returns:
        The index and what belongs to it. Cost: O(K·C).

    Raises:
        NlprobeError: fewer than two classes have images.
    """
    there = np.flatnonzero(~np.isnan(means).any(1))
    if len(there) < 2:
        raise NlprobeError(
            f"{len(there)} of {len(means)} classes have images, and selectivity compares at least two",
            "use more images of more classes",
        )
    known = means[there]
    highest = known.max(0)
    index, others = _index(highest, known.sum(0), len(there), epsilon)
    dead, signed = np.all(known == 0, axis=0), np.any(known < 0, axis=0)
    without = dead | signed
    return ClassSelectivity(
        index=np.where(without, np.nan, index),
        preferred=np.where(without, -1, there[known.argmax(0)]),
        highest=highest,
        others=others,
        dead=dead,
        signed=signed,
        classes=len(there),
    )


def mean_index_samples(
    values: Float[np.ndarray, "n c"],
    labels: Int64[np.ndarray, " n"],
    *,
    epsilon: float = EPSILON,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Float64[np.ndarray, " r"]:
    """The mean index over channels in bootstrap samples of the images; see `nlprobe.stats.class_bootstrap`.

    Args:
        values: Every image's mean over positions, of the channels that have an index.
        labels: Class of each image.
        epsilon: ε.
        seed: Seed of the resampling.
        resamples: R, the number of samples.

    Returns:
        One number for each sample; channels that are dead in a sample are left out of it. Cost: O(R·n·C) time,
        O(R·C) memory.
    """
    highest = np.full((resamples, values.shape[1]), -np.inf)
    total = np.zeros_like(highest)
    for members, counts in class_resamples(labels, seed=seed, resamples=resamples):
        means = counts @ values[members].astype(np.float64) / len(members)
        np.maximum(highest, means, out=highest)
        total += means
    index, _ = _index(highest, total, len(classes_of(labels)), epsilon)
    return _mean_of_defined(np.where(highest > 0, index, np.nan))


def shuffled_index(
    values: Float[np.ndarray, "n c"],
    labels: Int64[np.ndarray, " n"],
    *,
    epsilon: float = EPSILON,
    seed: int = 0,
    draws: int = SHUFFLES,
) -> Float64[np.ndarray, " d"]:
    """The mean index over channels with the labels dealt out at random: what chance alone gives.

    Args:
        values: As for `mean_index_samples`.
        labels: Class of each image.
        epsilon: ε.
        seed: Seed of the shuffling.
        draws: How many times.
    """
    generator = np.random.default_rng(seed)
    found = np.empty(draws)
    members = classes_of(labels)
    wide = values.astype(np.float64)
    for draw in range(draws):
        order = generator.permutation(len(labels))
        means = np.stack([wide[order[own]].mean(0) for own in members])
        index, _ = _index(means.max(0), means.sum(0), len(members), epsilon)
        found[draw] = index.mean() if len(index) else np.nan
    return found


def _index(highest: np.ndarray, total: np.ndarray, classes: int, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """The index and μ_-max from the highest and the sum of the class means."""
    others = (total - highest) / (classes - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (highest - others) / (highest + others + epsilon), others


def _mean_of_defined(index: np.ndarray) -> np.ndarray:
    """The mean over channels of each row; NaN where no channel has an index."""
    defined = ~np.isnan(index)
    with np.errstate(invalid="ignore"):
        return np.where(defined, index, 0).sum(1) / defined.sum(1)
