"""A network and labelled images → class selectivity, or activations by class, of each module that is read."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from nlprobe.activations.collect import Collected, collect
from nlprobe.activations.readings import Reading
from nlprobe.errors import ConfigError, DataError
from nlprobe.measuring import Inputs, Shown
from nlprobe.stats.class_summaries import (
    ActivationSummary,
    SelectivitySummary,
    activation_summary,
    mean_difference,
    selectivity_summary,
)

Shows = Iterable[Shown | tuple[Inputs, Sequence[str]]]
"""Inputs of forward calls with the names of their images."""


def measure_selectivity(
    model: nn.Module,
    readings: Sequence[Reading],
    batches: Shows,
    labels: Mapping[str, int],
    classes: int,
    *,
    label: str,
    device: torch.device | str = "cpu",
    channels_last: bool | None = None,
    seed: int = 0,
) -> list[SelectivitySummary]:
    """The class selectivity of each module that is read, from one pass over the images.

    Args:
        model: The network.
        readings: What to read.
        batches: What the network is shown.
        labels: Class of each image by its name.
        classes: How many classes there are.
        label: What the network is called.
        device: Where to compute.
        channels_last: As for `collect`.
        seed: Seed of the bootstrap and the shuffling.

    Raises:
        ConfigError: of a module no channel has an index, because all are negative at times.
        DataError: fewer than two classes have images.
        CaptureError: as `collect`.
    """
    found = collect(model, readings, batches, labels, classes, device=device, channels_last=channels_last)
    _refuse_one_class(found)
    shown = hashlib.sha256("\n".join((str(seed), *found.ids)).encode()).hexdigest()
    summaries = [
        selectivity_summary(one.sums, one.values, found.labels, model=label, module=one.name, shown=shown, seed=seed)
        for one in found.readings
    ]
    for one in summaries:
        if (one.channels.signed | one.channels.dead).all() and one.channels.signed.any():
            raise ConfigError(
                f"no channel of `{one.module}` has a class selectivity index, which is made for activations that are "
                f"never negative: {int(one.channels.signed.sum())} of {len(one.channels.signed)} have negative means",
                "choose modules behind a ReLU",
            )
    return summaries


def with_differences(networks: Sequence[Sequence[SelectivitySummary]]) -> list[list[SelectivitySummary]]:
    """The summaries of several networks, all but the first with their differences from it of modules of the same name.

    Raises:
        NlprobeError: the networks were not shown the same images in the same order, with the same seed.
    """
    first = {one.module: one for one in networks[0]}
    compared = [list(networks[0])]
    for network in networks[1:]:
        compared.append(
            [
                replace(one, difference=mean_difference(one, first[one.module])) if one.module in first else one
                for one in network
            ]
        )
    return compared


def measure_class_activations(
    model: nn.Module,
    readings: Sequence[Reading],
    batches: Shows,
    labels: Mapping[str, int],
    classes: int,
    chosen: Sequence[int],
    *,
    label: str,
    device: torch.device | str = "cpu",
    channels_last: bool | None = None,
    seed: int = 0,
) -> list[ActivationSummary]:
    """The activations of each module that is read by class, from one pass over the images.

    Args:
        model: The network.
        readings: What to read.
        batches: What the network is shown.
        labels: Class of each image by its name.
        classes: How many classes there are.
        chosen: The classes whose means get intervals.
        label: What the network is called.
        device: Where to compute.
        channels_last: As for `collect`.
        seed: Seed of the bootstrap.

    Raises:
        DataError: fewer than two classes have images, or none has two.
        CaptureError: as `collect`.
    """
    found = collect(model, readings, batches, labels, classes, device=device, channels_last=channels_last)
    _refuse_one_class(found)
    if len(found.ids) == len(set(found.labels.tolist())):
        raise DataError(
            f"there is one image of each of {len(found.ids)} classes, which tells nothing of variation within a class",
            "use more images",
        )
    return [
        activation_summary(
            one.sums, one.values, found.labels, chosen, model=label, module=one.name, what=one.what, seed=seed
        )
        for one in found.readings
    ]


def _refuse_one_class(found: Collected) -> None:
    if len(there := set(found.labels.tolist())) < 2:
        raise DataError(
            f"the {len(found.ids)} images are of {len(there)} class, and classes are to be compared",
            "use images of several classes",
        )
