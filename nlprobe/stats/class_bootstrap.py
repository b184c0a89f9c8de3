"""Bootstrap intervals over images where classes are compared.

Images are drawn with replacement within their class, so that every sample has as many of each class as the data. What
compares class means (the highest of them, their variance) is lifted by their noise, and a resampled data set has that
noise twice. So samples are moved back by their mean excess over the estimate before their quantiles are taken. The
interval is for the number that as many images give: what few images add to it is in the estimate, and stays there.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64

from nlprobe.stats.intervals import RESAMPLES, Estimate


def classes_of(labels: Int64[np.ndarray, " n"]) -> list[np.ndarray]:
    """The images of each class that has some, in the order of the labels."""
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    return np.split(order, starts[1:])


def class_resamples(
    labels: Int64[np.ndarray, " n"], *, seed: int = 0, resamples: int = RESAMPLES
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each class its images, and how often each of them is drawn in each sample: (n_k,) and float64 (R, n_k).

    The same seed draws the same images for the same labels, so that samples of several networks belong together.
    """
    generator = np.random.default_rng(seed)
    for members in classes_of(labels):
        count = len(members)
        yield members, generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def has_interval(labels: Int64[np.ndarray, " n"]) -> bool:
    """Whether every class that has images has two at least: one image alone tells nothing of its spread."""
    return all(len(members) > 1 for members in classes_of(labels))


def centred_estimate(value: float, samples: Float64[np.ndarray, " r"], n: int) -> Estimate:
    """An estimate with the 95 % interval of its samples, moved to lie around it.

    Args:
        value: The number, of the data themselves.
        samples: The number, of bootstrap samples of them; none where there is no interval.
        n: Images.
    """
    defined = samples[~np.isnan(samples)]
    if np.isnan(value) or not len(defined):
        return Estimate(value, np.nan, np.nan, n)
    low, high = np.quantile(defined, [0.025, 0.975]) + (value - defined.mean())
    return Estimate(value, float(low), float(high), n)
