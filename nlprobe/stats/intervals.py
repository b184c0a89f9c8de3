"""Bootstrap intervals over images."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its 95 % bootstrap interval.

    `n` counts the images on which the value is defined. The mean is NaN where it is defined on none ("undefined"); the
    interval is NaN where fewer than two images are left. `by_construction` marks a value that the block's formula
    fixes, whatever it has learnt.
    """

    mean: float
    low: float
    high: float
    n: int
    by_construction: bool = False


def bootstrap_mean(values: Float[np.ndarray, " n"], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean over images and its 95 % percentile bootstrap interval (images are drawn with replacement).

    The same seed draws the same images for the same `n`, so that the intervals of several quantities over the same
    images belong together.

    Args:
        values: One value for each image; NaN marks an image on which the value is undefined and is left out.
        seed: Seed of the resampling.
        resamples: Number of bootstrap samples.

    Returns:
        The estimate; the interval is NaN for fewer than two images. Cost: O(resamples · n) time, O(n) memory.
    """
    defined = values[~np.isnan(values)]
    n = len(defined)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = float(np.mean(defined))
    if n == 1:
        return Estimate(mean, np.nan, np.nan, 1)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for sample in range(resamples):
        means[sample] = defined[generator.integers(0, n, n)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, float(low), float(high), n)


def bootstrap_of_sum(
    values: Int64[np.ndarray, "n *k"],
    statistic: Callable[[Int64[np.ndarray, "*k"]], np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """Numbers computed from a sum over images, such as a mean IoU from confusion matrices, with 95 % intervals.

    Args:
        values: Whole numbers of each image; their sums are exact.
        statistic: From the sum over images to one number or several.
        seed: Seed of the resampling; draws the same images as `bootstrap_mean`.
        resamples: Number of bootstrap samples.

    Returns:
        The numbers of all images together, and the ends of their percentile intervals (NaN for fewer than two images,
        and where a number is undefined in every sample). Cost: O(resamples · n · k).
    """
    rows = values.reshape(len(values), -1)
    return bootstrap_of_counts(
        len(values), lambda drawn: statistic((drawn @ rows).reshape(values.shape[1:])), seed=seed, resamples=resamples
    )


def bootstrap_of_counts(
    n: int,
    statistic: Callable[[Int64[np.ndarray, " n"]], np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """Numbers that follow from how often each image counts, such as an average precision, with 95 % intervals.

    Args:
        n: Number of images.
        statistic: From how often each image counts to one number or several.
        seed: Seed of the resampling; draws the same images as `bootstrap_mean`.
        resamples: Number of bootstrap samples.

    Returns:
        The numbers where each image counts once, and the ends of their percentile intervals (NaN for fewer than two
        images, and where a number is undefined in every sample). Cost: O(resamples) times that of `statistic`.
    """
    found = np.atleast_1d(statistic(np.ones(n, dtype=np.int64)))
    if n < 2:
        return found, np.full_like(found, np.nan), np.full_like(found, np.nan)
    generator = np.random.default_rng(seed)
    samples = np.empty((resamples, len(found)))
    for sample in range(resamples):
        samples[sample] = statistic(np.bincount(generator.integers(0, n, n), minlength=n))
    low, high = np.full_like(found, np.nan), np.full_like(found, np.nan)
    defined = ~np.isnan(samples).all(0)
    low[defined], high[defined] = np.nanquantile(samples[:, defined], [0.025, 0.975], axis=0)
    return found, low, high


def paired_difference(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of `first − second` over the same images, with its 95 % bootstrap interval.

    Args:
        first: One value for each image.
        second: The values of the other checkpoint for the same images, in the same order.
        seed: Seed of the resampling.
        resamples: Number of bootstrap samples.

    Returns:
        The estimate of the difference over the images on which both are defined.
    """
    return bootstrap_mean(first - second, seed=seed, resamples=resamples)
