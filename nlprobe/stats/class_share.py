"""How much of a channel's variation over images is variation between classes (what Figure 6 of the paper shows).

With SSB the sum of squares between the classes and SST that of all images, η² = SSB / SST. Labels without any meaning
have (K − 1)/(n − 1) of it on average, so that is taken off (Kelley's ε²):

    share = 1 − (1 − η²) (n − 1)/(n − K)

0, and a little below or above, means that the channel does not tell the classes apart; 1 that nothing else moves it.
"""

import numpy as np
from jaxtyping import Float, Float64, Int64

from nlprobe.errors import NlprobeError
from nlprobe.stats.class_bootstrap import class_resamples, classes_of
from nlprobe.stats.class_sums import ClassSums
from nlprobe.stats.intervals import RESAMPLES

CONSTANT = 1e-12
"""A channel whose variance is at most this part of its mean square varies by rounding only."""


def class_share(sums: ClassSums) -> Float64[np.ndarray, " c"]:
    """The share of every channel; NaN for a channel that is the same for all images. Cost: O(K·C).

    Raises:
        NlprobeError: fewer than two classes have images, or there is one image of each.
    """
    there = sums.counts > 0
    counts = sums.counts[there].astype(np.float64)
    n, k = int(counts.sum()), len(counts)
    if k < 2 or n <= k:
        raise NlprobeError(
            f"{n} images of {k} classes cannot tell variation between classes from variation within",
            "use at least two classes, and several images of them",
        )
    means, squares = sums.means[there], sums.squares[there].sum(0)
    return _share(counts @ means, counts @ means**2, squares, n, k)


def mean_share_samples(
    values: Float[np.ndarray, "n c"], labels: Int64[np.ndarray, " n"], *, seed: int = 0, resamples: int = RESAMPLES
) -> Float64[np.ndarray, " r"]:
    """The mean share over channels in bootstrap samples of the images; see `nlprobe.stats.class_bootstrap`.

    Args:
        values: Every image's activations.
        labels: Class of each image.
        seed: Seed of the resampling.
        resamples: R, the number of samples.

    Returns:
        One number for each sample. Cost: O(R·n·C) time, O(R·C) memory.
    """
    total, between, squares = (np.zeros((resamples, values.shape[1])) for _ in range(3))
    # the share does not depend on where zero is, and near it less cancels
    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    for members, counts in class_resamples(labels, seed=seed, resamples=resamples):
        own = centred[members]
        sums = counts @ own
        total += sums
        between += sums**2 / len(members)
        squares += counts @ own**2
    share = _share(total, between, squares, len(labels), len(classes_of(labels)))
    defined = ~np.isnan(share)
    with np.errstate(invalid="ignore"):
        return np.where(defined, share, 0).sum(1) / defined.sum(1)


def _share(total: np.ndarray, between: np.ndarray, squares: np.ndarray, n: int, k: int) -> np.ndarray:
    """The share from Σx, Σ_k n_k μ_k² and Σx²."""
    centre = total**2 / n
    sst, ssb = squares - centre, between - centre
    with np.errstate(invalid="ignore", divide="ignore"):
        share = 1 - (1 - ssb / sst) * (n - 1) / (n - k)
    return np.where(sst <= CONSTANT * squares, np.nan, share)
