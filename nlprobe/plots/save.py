"""A figure as files: PNG, PDF and SVG, with the data that it shows beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nlprobe.errors import ConfigError
from nlprobe.files import atomic_path
from nlprobe.plots.style import style

FORMATS = ("png", "pdf", "svg")

# Without these, every file holds the second in which it was written.
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": "nlprobe"},
    "pdf": {"Creator": "nlprobe", "Producer": None, "CreationDate": None},
    "svg": {"Creator": "nlprobe", "Date": None},
}


def save_figure(
    figure: Figure,
    path: Path | str,
    *,
    formats: Sequence[str] = FORMATS,
    data: pd.DataFrame | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> list[Path]:
    """Write a figure in each format, and its data as `.csv` and `.npz` under the same name.

    The same figure gives the same bytes, on every run.

    Args:
        figure: The figure.
        path: Path without extension; one of the known extensions at its end is dropped.
        formats: Any of `FORMATS`.
        data: What the figure shows, in long form.
        arrays: The arrays that it shows.

    Returns:
        The paths written, data last.

    Raises:
        ConfigError: a format is not known.
        DataError: a file cannot be written.
    """
    if unknown := [format for format in formats if format not in FORMATS]:
        raise ConfigError(f"`{unknown[0]}` is not a format of figures", f"known: {', '.join(FORMATS)}")
    stem = Path(path)
    stem = stem.with_suffix("") if stem.suffix.lstrip(".") in FORMATS else stem
    written = []
    for format in formats:
        target = stem.with_name(f"{stem.name}.{format}")
        with atomic_path(target) as temporary, style():
            figure.savefig(temporary, format=format, metadata=_METADATA[format])
        written.append(target)
    if data is not None:
        target = stem.with_name(f"{stem.name}.csv")
        with atomic_path(target) as temporary:
            data.to_csv(temporary, index=False, lineterminator="\n")
        written.append(target)
    if arrays is not None:
        target = stem.with_name(f"{stem.name}.npz")
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        written.append(target)
    return written
