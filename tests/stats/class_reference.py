"""Numbers about classes the slow, obvious way: loops over images, in float64."""

import math
from collections.abc import Sequence

import numpy as np


def class_means(values: np.ndarray, labels: Sequence[int], classes: int) -> list[list[float]]:
    """For each class the mean of each channel; NaN where the class has no image."""
    means = []
    for k in range(classes):
        own = [row for row, label in zip(values.tolist(), labels, strict=True) if label == k]
        means.append([math.fsum(column) / len(own) for column in zip(*own, strict=True)] if own else [math.nan])
    width = values.shape[1]
    return [row if len(row) == width else [math.nan] * width for row in means]


def selectivity_of(means: Sequence[float], epsilon: float) -> float:
    """The index of one channel; NaN where it is dead or negative at times."""
    known = [mean for mean in means if not math.isnan(mean)]
    if min(known) < 0 or max(known) == 0:
        return math.nan
    best = max(range(len(known)), key=lambda k: known[k])
    others = [mean for k, mean in enumerate(known) if k != best]
    mu_others = math.fsum(others) / len(others)
    return (known[best] - mu_others) / (known[best] + mu_others + epsilon)


def share_of(values: Sequence[float], labels: Sequence[int]) -> float:
    """Kelley's epsilon squared of one channel."""
    n, there = len(values), sorted(set(labels))
    grand = math.fsum(values) / n
    sst = math.fsum((value - grand) ** 2 for value in values)
    ssw = 0.0
    for k in there:
        own = [value for value, label in zip(values, labels, strict=True) if label == k]
        centre = math.fsum(own) / len(own)
        ssw += math.fsum((value - centre) ** 2 for value in own)
    return 1 - (ssw / (n - len(there))) / (sst / (n - 1))
