"""From the names of another project to ours, one to one, with a report of what was not taken over and why."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from nlprobe.errors import CheckpointError

COUNTERS = ".num_batches_tracked"
"""What norms count in training and do not use after; files from before torch 0.4.1 lack it."""


@dataclass(frozen=True)
class LeftOut:
    """Instead of a name of ours: why a tensor of the file has no place in the network."""

    reason: str


Rename = Callable[[str], str | LeftOut | None]
"""From a name in the file to ours, or why it is left out; None for a name that nobody knows."""

Rules = Sequence[tuple[str, str | LeftOut]]
"""Patterns that a whole name has to match, the first that does counting, and what becomes of it."""


@dataclass(frozen=True)
class Mapped:
    """A state dict under our names.

    Attributes:
        weights: The tensors in the shapes of our network.
        left_out: Reason to the number of tensors of the file that were left out for it.
    """

    weights: dict[str, Tensor]
    left_out: dict[str, int]


def by_rules(rules: Rules) -> Rename:
    r"""A renaming by patterns: `(r"decode_head\.convs\.0\.(.*)", r"head.reduce.\1")`."""
    compiled = [(re.compile(pattern), found) for pattern, found in rules]

    def rename(name: str) -> str | LeftOut | None:
        for pattern, found in compiled:
            if (match := pattern.fullmatch(name)) is not None:
                return found if isinstance(found, LeftOut) else match.expand(found)
        return None

    return rename


def mapped(weights: Mapping[str, Tensor], rename: Rename, wanted: Mapping[str, Tensor], source: str) -> Mapped:
    """The tensors of a file as our network names and shapes them.

    A 1x1 convolution is a linear layer here, and a norm or a gate may have axes of length 1 there: a tensor fits if
    the shapes are equal without their axes of length 1. Where a file has one weight under two names, both have to be
    the same to the bit.

    Args:
        weights: By the file's names.
        rename: What becomes of each name.
        wanted: The network's state dict; its tensors may be on the meta device.
        source: Where the weights come from, for messages.

    Raises:
        CheckpointError: names that nobody knows, names of ours that are missing, or shapes that do not fit; it says
            which.
    """
    found: dict[str, Tensor] = {}
    left_out: Counter[str] = Counter()
    unknown: list[str] = []
    for name, tensor in weights.items():
        ours = rename(name)
        if isinstance(ours, LeftOut):
            left_out[ours.reason] += 1
        elif ours is None or ours not in wanted:
            unknown.append(name)
        elif ours in found:
            if not torch.equal(found[ours], fitted(name, tensor, wanted[ours], source)):
                raise CheckpointError(
                    f"{source} has two weights for the one `{ours}`, and `{name}` is not as the other",
                    "the file was changed after training: get it again",
                )
            left_out["the same weight under a second name"] += 1
        else:
            found[ours] = fitted(name, tensor, wanted[ours], source)
    missing = [name for name in wanted if name not in found and not name.endswith(COUNTERS)]
    if unknown or missing:
        raise CheckpointError(*_misfit(source, unknown, missing, rename, weights))
    return Mapped(found, dict(left_out))


def fitted(name: str, tensor: Tensor, wanted: Tensor, source: str) -> Tensor:
    """The tensor in the wanted shape.

    Raises:
        CheckpointError: it differs by more than axes of length 1.
    """
    if [size for size in tensor.shape if size != 1] != [size for size in wanted.shape if size != 1]:
        raise CheckpointError(
            f"`{name}` has the shape {tuple(tensor.shape)} in {source}, {tuple(wanted.shape)} in the network",
            "the file belongs to a network of another width, reduction or number of classes",
        )
    return tensor.reshape(wanted.shape)


def _misfit(
    source: str, unknown: list[str], missing: list[str], rename: Rename, weights: Mapping[str, Tensor]
) -> tuple[str, str]:
    parts = [f"holds {_some(unknown)} that the network has no place for"] if unknown else []
    parts += [f"lacks {_some(missing)} of the network"] if missing else []
    if missing and unknown:
        ours = [str(rename(name)) for name in unknown]
        close = get_close_matches(missing[0], ours, n=1)
        near = f"nearest to `{missing[0]}`: `{unknown[ours.index(close[0])]}`; " if close else ""
        return f"{source} {' and '.join(parts)}", f"{near}its settings are those of another network"
    if missing:
        return f"{source} {parts[0]}", "the file is a part of the network, or its settings are those of another one"
    return f"{source} {parts[0]}", "its settings are those of a network without them; answer with --set"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
