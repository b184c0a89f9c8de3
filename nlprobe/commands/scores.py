"""Scores of `nlprobe eval` beside the distances of `nlprobe stats`, as in the paper's Tables 1 and 4."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlprobe.errors import ConfigError, DataError
from nlprobe.suggestions import did_you_mean
from nlprobe.tables import Cell

_LOW, _HIGH, _COUNT = "_low", "_high", "_n"


def read_scores(paths: Sequence[Path], labels: Sequence[str]) -> dict[str, dict[str, Cell]]:
    """The scores with an interval that `nlprobe eval --format json` printed, by network and name.

    Args:
        paths: Files of such output.
        labels: What the networks are called here; those that the files leave out have no scores.

    Raises:
        DataError: a file is missing or holds something else.
        ConfigError: a network of a file is none of these.
    """
    found: dict[str, dict[str, Cell]] = {}
    for path in paths:
        for row in _rows(path):
            label = row["model"]
            if label not in labels:
                raise ConfigError(
                    f"`{path}` has scores of `{label}`, which is not measured here",
                    f"{did_you_mean(label, labels)}; --label names a network, in `eval` as here",
                )
            names = [name.removesuffix(_LOW) for name in row if name.endswith(_LOW)]
            found.setdefault(label, {}).update({name: _cell(row, name) for name in names if row.get(name) is not None})
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror or error}", "check the path") from error
    except ValueError:
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "model" in row for row in rows):
        raise DataError(
            f"`{path}` holds no scores of networks",
            f"write it by `nlprobe eval … --format json > {path.name}` (without --by-class)",
        )
    return rows


def _cell(row: dict[str, Any], name: str) -> Cell:
    low, high = (row.get(f"{name}{end}") for end in (_LOW, _HIGH))
    interval = (math.nan, math.nan) if low is None or high is None else (float(low), float(high))
    return Cell(float(row[name]), *interval, row.get(f"{name}{_COUNT}"))
