"""Which positions are measured: all or those that are not padding, with and without prefix tokens; a rectangle."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import PairwiseCapture
from nlprobe.probe.padding import Padding, valid_queries
from nlprobe.probe.runs import Run, chosen, padded_runs, runs_of_equal
from nlprobe.stats.masks import Rows

Rectangle = tuple[slice, slice]


@dataclass(frozen=True)
class Part:
    """Some sets of a capture, with the chosen queries and keys.

    Attributes:
        capture: The capture, restricted; its keys are those of the product.
        keys: The key vectors at the chosen positions.
        leading: How many of the chosen queries, which come first, a second measurement leaves out.
        key_leading: As `leading`, of the key vectors.
    """

    capture: PairwiseCapture
    keys: Tensor | None
    leading: int
    key_leading: int


@dataclass(frozen=True)
class Selection:
    """A choice of queries and keys.

    Queries are left out, keys never (ω_i is the row that the model used), but in a rectangle.

    Attributes:
        positions: What its records say.
        runs: The queries of each run of sets, in their order.
        beside: What the records of a second measurement say, which leaves out the queries that come first; "" for none.
        keys: A range of keys; None for all.
    """

    positions: str
    runs: tuple[Run, ...]
    beside: str = ""
    keys: slice | None = None

    @property
    def lengths(self) -> list[int]:
        """How many sets each run has."""
        return [run.sets for run in self.runs]

    def of(self, capture: PairwiseCapture) -> Iterator[Part]:
        """The capture restricted to the choice, for each run of sets with the same queries."""
        first = 0
        for run in self.runs:
            part = capture if run.sets == capture.sets else of_sets(capture, slice(first, first + run.sets))
            first += run.sets
            keys = None if part.key is None else chosen(part.key, self.keys if self.keys is not None else run.keys)
            if run.queries is not None:
                part = _restricted(part, run.queries, self.keys)
            yield Part(part, keys, run.leading, run.key_leading)


def selections(
    capture: PairwiseCapture, prefix: int, rectangle: Rectangle | None, padding: Padding | None = None
) -> list[Selection]:
    """The choices that are measured of a capture: all positions, those that are no padding, and a rectangle.

    The first one is that which sums over the data set are made of. Where a model leaves padding out by itself, as text
    models do, only its valid positions are measured; where pictures are padded, all and the valid ones.

    Args:
        capture: What the adapter delivered.
        prefix: How many of the first positions are not places in the image.
        rectangle: Queries and keys that were asked for.
        padding: Which positions lie in the pictures, where somebody has said so.

    Raises:
        ConfigError: the rectangle does not fit, or holds a key that a query does not see.
    """
    leading = prefix if prefix < capture.n_queries and capture.self_attention else 0
    found = [] if rectangle is None else [_rectangle(capture, rectangle)]
    if padding is not None and padding.any:
        if leading:
            valid = _without_padding(capture, padding.queries, padding.keys, leading)
            return [valid, Selection("all", (Run(capture.sets),)), *found]
        return [Selection("all", tuple(padded_runs(padding.queries, padding.keys)), "valid"), *found]
    masked = valid_queries(capture)
    if masked is not None and not bool(masked.all()):
        keys = masked if capture.self_attention else None
        return [_without_padding(capture, masked, keys, leading), *found]
    run = Run(capture.sets, leading=leading, key_leading=leading)
    return [Selection("all", (run,), "no_prefix" if leading else ""), *found]


def _without_padding(capture: PairwiseCapture, queries: Tensor, keys: Tensor | None, prefix: int) -> Selection:
    """The valid positions, and these without prefix tokens, for each run of sets with the same padding."""
    runs: list[tuple[Run, Tensor]] = []
    for first, sets in runs_of_equal((queries, keys)):
        rows, key_rows = (None if valid is None else _kept(valid[first]) for valid in (queries, keys))
        assert rows is not None
        run = Run(sets, _range_or_indices(rows), int((rows < prefix).sum()))
        if key_rows is not None:
            run = replace(run, keys=_range_or_indices(key_rows), key_leading=int((key_rows < prefix).sum()))
        runs.append((run, rows))
    beside = prefix > 0 and all(run.leading < len(rows) for run, rows in runs)
    return Selection("valid", tuple(run for run, _ in runs), "no_prefix" if beside else "")


def _kept(valid: Tensor) -> Tensor:
    """The indices of what is valid."""
    rows = valid.nonzero().flatten()
    if not len(rows):
        raise ConfigError("an image or text consists of padding only", "leave it out of the data")
    return rows


def _range_or_indices(rows: Tensor) -> Rows:
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last + 1 - first == len(rows) else rows


def _rectangle(capture: PairwiseCapture, rectangle: Rectangle) -> Selection:
    sizes = (capture.n_queries, capture.n_keys)
    ranges = []
    for asked, size, what in zip(rectangle, sizes, ("queries", "keys"), strict=True):
        start, stop, _ = asked.indices(size)
        if start >= stop or (asked.stop or 0) > size:
            raise ConfigError(
                f"the rectangle's {what} {asked.start}:{asked.stop} do not lie within the {size} there are",
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
    return Selection("rectangle", (Run(capture.sets, queries),), keys=keys)


def of_sets(capture: PairwiseCapture, sets: slice) -> PairwiseCapture:
    """The capture of a range of the sets."""
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
        x=None if capture.x is None else chosen(capture.x, queries),
        output=None if capture.output is None else chosen(capture.output, queries),
        query=logits.query,
        key=logits.key,
        value=capture.value[:, :, every_key],
        context=chosen(capture.context, queries),
        mask=logits.mask,
        given=logits.given,
        valid=None,
    )
