"""How far the mean activations of classes lie apart, beside how large they are (what Figure 6 of the paper shows).

Of each channel, the variance of the class means over classes, less the part that is noise of few images:

    between = Σ_k (μ_k − μ)² / (K − 1) − mean_k s_k² / n_k

with μ the plain mean of the class means and s_k² the variance within class k. Over all channels of a module

    spread = √(Σ_c between_c / Σ_c μ_c²)

is the size of what depends on the class over the size of what does not. A channel may vary with the class only and
still hardly vary: then its `class_share` is near 1, and the spread near 0.
"""

import numpy as np
from jaxtyping import Float, Float64, Int64

from nlprobe.stats.class_bootstrap import class_resamples, classes_of
from nlprobe.stats.class_sums import ClassSums
from nlprobe.stats.intervals import RESAMPLES


def class_spread(sums: ClassSums) -> float:
    """The spread over all channels; 0 where noise alone would spread as much, NaN where all class means are 0.

    Classes with a single image say nothing of their noise and are taken to have the mean noise of the others; where all
    have one, no noise is taken off. Cost: O(K·C).
    """
    there = sums.counts > 0
    counts = sums.counts[there].astype(np.float64)[:, None]
    means, squares = sums.means[there], sums.squares[there]
    several = counts[:, 0] > 1
    n = counts[several]
    within = np.maximum(squares[several] - n * means[several] ** 2, 0) / (n - 1)
    noise = (within / n).mean(0) if several.any() else np.zeros(sums.channels)
    return float(_spread(means.sum(0), (means**2).sum(0), noise, len(means)))


def class_spread_samples(
    values: Float[np.ndarray, "n c"], labels: Int64[np.ndarray, " n"], *, seed: int = 0, resamples: int = RESAMPLES
) -> Float64[np.ndarray, " r"]:
    """The spread in bootstrap samples of the images; see `nlprobe.stats.class_bootstrap`.

    Args:
        values: Every image's activations; each class has two images at least.
        labels: Class of each image.
        seed: Seed of the resampling.
        resamples: R, the number of samples.

    Returns:
        One number for each sample. Cost: O(R·n·C) time, O(R·C) memory.
    """
    total, squared, noise = (np.zeros((resamples, values.shape[1])) for _ in range(3))
    wide = values.astype(np.float64)
    classes = len(classes_of(labels))
    for members, counts in class_resamples(labels, seed=seed, resamples=resamples):
        own, n = wide[members], len(members)
        means = counts @ own / n
        total += means
        squared += means**2
        noise += np.maximum(counts @ own**2 / n - means**2, 0) / (n - 1) / classes
    return _spread(total, squared, noise, classes)


def _spread(total: np.ndarray, squared: np.ndarray, noise: np.ndarray, classes: int) -> np.ndarray:
    """The spread from Σ_k μ_k, Σ_k μ_k² and the mean of s_k² / n_k, over the last axis."""
    centre = total / classes
    between = (squared - classes * centre**2) / (classes - 1) - noise
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(np.maximum(between.sum(-1), 0)) / np.sqrt((centre**2).sum(-1)))
