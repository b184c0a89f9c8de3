"""What one forward call of a model has shown, on its way to records."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlprobe.probe.measurement import Measurement, Moments, Value
from nlprobe.stats.records import KEY_COLUMNS, VALUE_COLUMNS, typed

Columns = dict[str, np.ndarray]


@dataclass
class SiteBatch:
    """What one site showed during one forward of the model: the measurements of each call, and its moments."""

    images: int
    calls: list[list[Measurement]] = field(default_factory=list)
    moments: list[dict[str, Moments]] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """The measurements of one forward of the model, still on its device."""

    images: list[str]
    views: list[int]
    sites: dict[str, SiteBatch]

    def columns(self) -> Columns:
        """Its records, column by column: one transfer from the device for each."""
        keyed = list(self._by_head())
        keys, count = [key for key, _ in keyed], len(self.images)
        columns = {name: _column([one.get(name, math.nan) for _, one in keyed], count) for name in VALUE_COLUMNS}
        for at, name in enumerate(("site", "call", "head", "quantity", "positions")):
            columns[name] = np.repeat(np.array([key[at] for key in keys], dtype=object), count)
        columns["image"] = np.tile(np.array(self.images, dtype=object), len(keys))
        columns["view"] = np.tile(np.array(self.views), len(keys))
        return columns

    def _by_head(self) -> Iterator[tuple[tuple[str, int, str, str, str], dict[str, Value]]]:
        for name, site in self.sites.items():
            for call, measurements in enumerate(site.calls):
                for one in measurements:
                    for at, head in enumerate(one.heads):
                        yield (name, call, head, one.quantity, one.positions), one.of_head(at)


class RecordTable:
    """The records of all forward calls so far, in columns."""

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._parts: list[Columns] = []

    def __bool__(self) -> bool:
        return bool(self._batches or self._parts)

    def add(self, batch: Batch) -> None:
        """Take in a forward call; its values stay on their device."""
        self._batches.append(batch)

    def frame(self) -> pd.DataFrame:
        """All records."""
        return typed({name: np.concatenate(parts) for name, parts in self._by_column().items()})

    def state(self) -> dict[str, Any]:
        """The records as tensors and lists of strings."""
        state: dict[str, Any] = {}
        for name, parts in self._by_column().items():
            whole = np.concatenate(parts)
            state[name] = list(whole) if whole.dtype == object else torch.from_numpy(whole)
        return state

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Add the records that another table gave as its `state`."""
        self._fetch()
        self._parts.append({name: _restored(values) for name, values in state.items()})

    def _fetch(self) -> None:
        """Bring over what still lies on its device."""
        self._parts += [batch.columns() for batch in self._batches]
        self._batches = []

    def _by_column(self) -> dict[str, list[np.ndarray]]:
        self._fetch()
        names = (*KEY_COLUMNS, *VALUE_COLUMNS)
        empty: Sequence[np.ndarray] = () if self._parts else (np.empty(0),)
        return {name: list(itertools.chain((part[name] for part in self._parts), empty)) for name in names}


def _column(values: list[Any], count: int) -> np.ndarray:
    """Values of several measurements, each a number for all images or a tensor with one for each, one after another."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    column = np.empty((len(values), count))
    if tensors:
        known = torch.stack([tensor.double() if tensor.device.type != "mps" else tensor for tensor in tensors])
        column[[isinstance(value, Tensor) for value in values]] = known.cpu().numpy()
    for at, value in enumerate(values):
        if not isinstance(value, Tensor):
            column[at] = value
    return column.ravel()


def _restored(values: Any) -> np.ndarray:
    return values.numpy() if isinstance(values, Tensor) else np.array(values, dtype=object)
