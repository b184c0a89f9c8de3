"""Runs of sets whose chosen rows are the same: they are measured together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from nlprobe.stats.masks import Rows


@dataclass(frozen=True)
class Run:
    """Sets that follow each other, and which of their rows are measured.

    Attributes:
        sets: How many sets.
        queries: Which queries, in this order; None for all as they are.
        leading: How many of them, which come first, a second measurement leaves out.
        keys: Which key vectors; None for all as they are.
        key_leading: As `leading`, of the key vectors.
    """

    sets: int
    queries: slice | Int64[Tensor, " n"] | None = None
    leading: int = 0
    keys: slice | Int64[Tensor, " m"] | None = None
    key_leading: int = 0


def runs_of_equal(rows: Sequence[Tensor | None]) -> Iterator[tuple[int, int]]:
    """The first set, and the number of sets, of each run of sets that agree in all of some tables (s, n)."""
    tables = [table for table in rows if table is not None]
    sets, first = len(tables[0]), 0
    for at in range(1, sets + 1):
        if at == sets or not all(torch.equal(table[at], table[first]) for table in tables):
            yield first, at - first
            first = at


def last_if(valid: Bool[Tensor, " n"]) -> tuple[Int64[Tensor, " n"] | None, int]:
    """An order of rows in which those that are valid come last, and how many come before; None where all are valid.

    What depends on no order is then known of all rows, and of the valid ones, from one pass.
    """
    if bool(valid.all()):
        return None, 0
    left, kept = (~valid).nonzero().flatten(), valid.nonzero().flatten()
    return torch.cat((left, kept)), len(left)


def padded_runs(queries: Bool[Tensor, "s n"], keys: Bool[Tensor, "s m"] | None) -> list[Run]:
    """For each run of equally padded sets: all rows, the padding first.

    Args:
        queries: False for queries in the padding.
        keys: The same of the key vectors; None where nobody knows.
    """
    found = []
    for first, sets in runs_of_equal((queries, keys)):
        order, leading = last_if(queries[first])
        key_order, key_leading = (None, 0) if keys is None else last_if(keys[first])
        found.append(Run(sets, order, leading, key_order, key_leading))
    return found


def chosen(tensor: Tensor, rows: Rows | None) -> Tensor:
    """Some of the rows (..., n, c) of a tensor, in the layout that it has."""
    if rows is None:
        return tensor
    if isinstance(rows, slice):
        return tensor[..., rows, :]
    if tensor.stride(-2) == 1 != tensor.stride(-1):
        return tensor.mT.index_select(-1, rows).mT
    return tensor.index_select(-2, rows)
