"""What is said of one module of one network: class selectivity of its channels, or their activations by class."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32, Float64, Int64

from nlprobe.errors import NlprobeError
from nlprobe.stats.class_bootstrap import centred_estimate, class_resamples, has_interval
from nlprobe.stats.class_share import class_share, mean_share_samples
from nlprobe.stats.class_spread import class_spread, class_spread_samples
from nlprobe.stats.class_sums import ClassSums
from nlprobe.stats.intervals import RESAMPLES, Estimate
from nlprobe.stats.selectivity import ClassSelectivity, class_selectivity, mean_index_samples, shuffled_index

NO_SAMPLES = np.empty(0)


@dataclass(frozen=True)
class SelectivitySummary:
    """The class selectivity at one module of one network.

    Attributes:
        model: Label of the network.
        module: Name of the module.
        channels: What was found of every channel.
        mean: Mean index over the channels that have one. Its interval is over images; how far the channels lie apart is
            another thing (`quartiles`).
        quartiles: Of the index over channels.
        shuffled: Mean index with the labels dealt out at random, and the range over draws in place of an interval.
        images: How many.
        difference: Mean index less that of the first network's module of this name, over the same images.
        samples: The mean index in bootstrap samples.
        shown: Tells the images and the seed of one summary from those of another.
    """

    model: str
    module: str
    channels: ClassSelectivity
    mean: Estimate
    quartiles: tuple[float, float, float]
    shuffled: Estimate
    images: int
    difference: Estimate | None = None
    samples: Float64[np.ndarray, " r"] = field(default_factory=lambda: NO_SAMPLES, repr=False, compare=False)
    shown: str = ""


@dataclass(frozen=True)
class ActivationSummary:
    """The activations of one module of one network by class.

    Attributes:
        model: Label of the network.
        module: Name of the module.
        what: What is read there: "transform", "gate", "block output", "output".
        means: Mean over the images of each class, (K, C); NaN for a class without images.
        counts: Images of each class, (K,).
        overall: Mean over classes of the same, (C,).
        chosen: The classes that have intervals.
        low: Lower ends of their 95 % intervals over images, (chosen, C); NaN where there is none.
        high: Upper ends.
        shares: Of each channel's variation over images, what is variation between classes (`class_share`); NaN for a
            channel that is the same for all images.
        share: Their mean over channels with its interval over images.
        spread: How far the class means lie apart, over how large they are (`class_spread`), with its interval.
        images: How many.
    """

    model: str
    module: str
    what: str
    means: Float64[np.ndarray, "k c"]
    counts: Int64[np.ndarray, " k"]
    overall: Float64[np.ndarray, " c"]
    chosen: tuple[int, ...]
    low: Float64[np.ndarray, "s c"]
    high: Float64[np.ndarray, "s c"]
    shares: Float64[np.ndarray, " c"]
    share: Estimate
    spread: Estimate
    images: int


def selectivity_summary(
    sums: ClassSums,
    values: Float32[np.ndarray, "n c"] | None,
    labels: Int64[np.ndarray, " n"],
    *,
    model: str,
    module: str,
    shown: str = "",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> SelectivitySummary:
    """The class selectivity at one module.

    Args:
        sums: By class and channel.
        values: Those of each image, from which intervals are drawn; without them there are none.
        labels: Class of each image.
        model: Label of the network.
        module: Name of the module.
        shown: Tells these images, in this order, and the seed from others.
        seed: Seed of the bootstrap and the shuffling.
        resamples: Bootstrap samples.

    Raises:
        NlprobeError: fewer than two classes have images.
    """
    channels = class_selectivity(sums.means)
    defined = ~np.isnan(channels.index)
    index = channels.index[defined]
    samples, shuffled = NO_SAMPLES, Estimate(np.nan, np.nan, np.nan, sums.images)
    if values is not None and len(index):
        own = values[:, defined]
        draws = shuffled_index(own, labels, seed=seed)
        shuffled = Estimate(float(draws.mean()), float(draws.min()), float(draws.max()), sums.images)
        if has_interval(labels):
            samples = mean_index_samples(own, labels, seed=seed, resamples=resamples)
    mean = float(index.mean()) if len(index) else np.nan
    low, middle, high = np.quantile(index, [0.25, 0.5, 0.75]) if len(index) else [np.nan] * 3
    return SelectivitySummary(
        model=model,
        module=module,
        channels=channels,
        mean=centred_estimate(mean, samples, sums.images),
        quartiles=(float(low), float(middle), float(high)),
        shuffled=shuffled,
        images=sums.images,
        samples=samples,
        shown=shown,
    )


def mean_difference(one: SelectivitySummary, first: SelectivitySummary) -> Estimate:
    """The difference `one − first` of the mean index over the same images, with its interval where both have samples.

    Raises:
        NlprobeError: they are of other images, or their samples of other seeds.
    """
    if one.shown != first.shown:
        raise NlprobeError(
            f"`{one.model}` and `{first.model}` were not shown the same images in the same order with the same seed",
            "measure them on the same data",
        )
    samples = one.samples - first.samples if len(one.samples) == len(first.samples) else NO_SAMPLES
    return centred_estimate(one.mean.mean - first.mean.mean, samples, one.images)


def activation_summary(
    sums: ClassSums,
    values: Float32[np.ndarray, "n c"] | None,
    labels: Int64[np.ndarray, " n"],
    chosen: Sequence[int],
    *,
    model: str,
    module: str,
    what: str,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ActivationSummary:
    """The activations of one module by class.

    Args:
        sums: By class and channel.
        values: Those of each image, from which intervals are drawn; without them there are none.
        labels: Class of each image.
        chosen: Classes whose means get intervals; those of all would take long.
        model: Label of the network.
        module: Name of the module.
        what: What is read there.
        seed: Seed of the bootstrap.
        resamples: Bootstrap samples.

    Raises:
        NlprobeError: fewer than two classes have images, or none has two.
    """
    shares = class_share(sums)
    varying = ~np.isnan(shares)
    samples = spreads = NO_SAMPLES
    low, high = (np.full((len(chosen), sums.channels), np.nan) for _ in range(2))
    if values is not None:
        if has_interval(labels) and varying.any():
            samples = mean_share_samples(values[:, varying], labels, seed=seed, resamples=resamples)
            spreads = class_spread_samples(values, labels, seed=seed, resamples=resamples)
        for members, counts in class_resamples(labels, seed=seed, resamples=resamples):
            label = int(labels[members[0]])
            if label in chosen and len(members) > 1:
                means = counts @ values[members].astype(np.float64) / len(members)
                low[list(chosen).index(label)], high[list(chosen).index(label)] = np.quantile(means, [0.025, 0.975], 0)
    share = float(shares[varying].mean()) if varying.any() else np.nan
    spread = centred_estimate(class_spread(sums), spreads, sums.images)
    means = sums.means
    return ActivationSummary(
        model=model,
        module=module,
        what=what,
        means=means,
        counts=sums.counts.copy(),
        overall=means[sums.counts > 0].mean(0),
        chosen=tuple(chosen),
        low=low,
        high=high,
        shares=shares,
        share=centred_estimate(share, samples, sums.images),
        spread=replace(spread, low=float(np.maximum(spread.low, 0))),  # moved samples may go below what it can be
        images=sums.images,
    )
