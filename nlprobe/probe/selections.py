"""Which positions are measured: all or those that are not padding, with and without prefix tokens; a rectangle."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import PairwiseCapture
from nlprobe.stats.masks import Rows

Rectangle = tuple[slice, slice]


@dataclass(frozen=True)
class Part:
    """Some sets of a capture, with the chosen queries and keys.

    Attributes:
        capture: The capture, restricted; its keys are those of the product.
        keys: The key vectors at the chosen positions.
        prefix: How many of the chosen queries, which come first, are prefix tokens.
    """

    capture: PairwiseCapture
    keys: Tensor | None
    prefix: int


@dataclass(frozen=True)
class Selection:
    """A choice of queries and keys.

    Queries are left out, keys never (ω_i is the row that the model used), but in a rectangle.

    Attributes:
        positions: What its records say.
        prefix: How many of the first positions are not places in the image: the choice is measured without them too.
        queries: The queries of each run of sets, in their order; None for all.
        lengths: How many sets each run has.
        keys: A range of keys; None for all.
    """

    positions: str
    prefix: int = 0
    queries: tuple[slice | Tensor | None, ...] = (None,)
    lengths: tuple[int, ...] = (0,)
    keys: slice | None = None

    def of(self, capture: PairwiseCapture) -> Iterator[Part]:
        """The capture restricted to the choice, for each run of sets with the same queries."""
        first = 0
        for rows, length in zip(self.queries, self.lengths, strict=True):
            part = capture if length == capture.sets else _of_sets(capture, slice(first, first + length))
            first += length
            keys = part.key
            if rows is None:
                yield Part(part, keys, self.prefix)
                continue
            if self.keys is not None and keys is not None:
                keys = keys[:, :, self.keys]
            elif keys is not None and part.self_attention:
                keys = keys[:, :, rows]
            before = max(0, self.prefix - rows.start) if isinstance(rows, slice) else int((rows < self.prefix).sum())
            yield Part(_restricted(part, rows, self.keys), keys, before)


def selections(capture: PairwiseCapture, prefix: int, rectangle: Rectangle | None) -> list[Selection]:
    """The choices that are measured of a capture: all or valid positions, and a rectangle.

    Args:
        capture: What the adapter delivered.
        prefix: How many of the first positions are not places in the image.
        rectangle: Queries and keys that were asked for.

    Raises:
        ConfigError: the rectangle does not fit, or holds a key that a query does not see.
    """
    runs = _runs(capture)
    padded = any(rows is not None for rows, _ in runs)
    leading = prefix if prefix < capture.n_queries and capture.self_attention else 0
    queries, lengths = tuple(rows for rows, _ in runs), tuple(length for _, length in runs)
    found = [Selection("valid" if padded else "all", leading, queries, lengths)]
    if rectangle is not None:
        found.append(_rectangle(capture, rectangle))
    return found


def valid_queries(capture: PairwiseCapture) -> Tensor | None:
    """(s, n), False for padding: what the adapter says, else the positions whose keys no query sees; None where all."""
    if capture.valid is not None:
        return capture.valid
    if capture.mask is None or not capture.self_attention or capture.windows:
        return None
    seen = capture.mask.seen_keys()
    if seen is None or seen.shape[1] != capture.n_queries:
        return None
    return seen.expand(capture.sets, -1)


def _runs(capture: PairwiseCapture) -> list[tuple[Rows | None, int]]:
    """Runs of sets with the same queries: which (None for all), and how many sets."""
    valid = valid_queries(capture)
    if valid is None or bool(valid.all()):
        return [(None, capture.sets)]
    rows = valid.cpu()
    runs: list[tuple[Rows | None, int]] = []
    for pattern, sets in itertools.groupby(range(len(rows)), key=lambda at: tuple(rows[at].tolist())):
        chosen = torch.tensor(pattern).nonzero().flatten()
        if len(chosen) == 0:
            raise ConfigError("an image or text consists of padding only", "leave it out of the data")
        runs.append((_range_or_indices(chosen, valid.device), len(list(sets))))
    return runs


def _range_or_indices(chosen: Tensor, device: torch.device) -> Rows:
    first, last = int(chosen[0]), int(chosen[-1])
    return slice(first, last + 1) if last + 1 - first == len(chosen) else chosen.to(device)


def _rectangle(capture: PairwiseCapture, rectangle: Rectangle) -> Selection:
    sizes = (capture.n_queries, capture.n_keys)
    ranges = []
    for chosen, size, what in zip(rectangle, sizes, ("queries", "keys"), strict=True):
        start, stop, _ = chosen.indices(size)
        if start >= stop or (chosen.stop or 0) > size:
            raise ConfigError(
                f"the rectangle's {what} {chosen.start}:{chosen.stop} do not lie within the {size} there are",
                "give ranges START:STOP, counted from 0, that every site has",
            )
        ranges.append(slice(start, stop))
    queries, keys = ranges
    if capture.unary is not None:
        raise ConfigError(
            "a block with a unary map beside its pairwise maps cannot be measured on a rectangle",
            "leave out the rectangle, or this site (--site)",
        )
    if capture.mask is not None:
        part = capture.mask.restricted(queries, keys)
        if part.hides(queries.stop - queries.start, keys.stop - keys.start):
            raise ConfigError(
                f"a query of {queries.start}:{queries.stop} does not see every key of {keys.start}:{keys.stop}",
                "choose keys that all chosen queries see (causal attention: keys that end before the queries begin)",
            )
    return Selection("rectangle", 0, (queries,), (capture.sets,), keys)


def _of_sets(capture: PairwiseCapture, sets: slice) -> PairwiseCapture:
    return replace(
        capture,
        x=None if capture.x is None else capture.x[sets],
        output=None if capture.output is None else capture.output[sets],
        query=None if capture.query is None else capture.query[sets],
        key=None if capture.key is None else capture.key[sets],
        value=capture.value[sets],
        context=capture.context[sets],
        given=None if capture.given is None else capture.given[sets],
        mask=None if capture.mask is None else capture.mask.of_sets(sets),
        valid=None,
        unary=None if capture.unary is None else replace(capture.unary, map=capture.unary.map[sets]),
    )


def _restricted(capture: PairwiseCapture, queries: Rows, keys: slice | None) -> PairwiseCapture:
    every_key = keys if keys is not None else slice(0, capture.n_keys)
    logits = capture.logits.restricted(queries, every_key)
    return replace(
        capture,
        x=None if capture.x is None else capture.x[:, queries],
        output=None if capture.output is None else capture.output[:, queries],
        query=logits.query,
        key=logits.key,
        value=capture.value[:, :, every_key],
        context=capture.context[:, :, queries],
        mask=logits.mask,
        given=logits.given,
        valid=None,
    )
