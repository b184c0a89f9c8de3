"""How the numbers of a network's sites move while it is trained: measured at a step, kept in `emergence.csv`.

A line of the table is one number of one site at one step: which (`quantity`, `measure`), its mean over the images of
the probe set and the 95 % bootstrap interval. `measure` is `avg_dist` for the six distances; else it is one of the
columns that stand beside a quantity's distance (`nlprobe.stats.records.ACCOMPANYING`), or a share of the output's
energy.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from nlprobe.errors import DataError
from nlprobe.files import atomic_path
from nlprobe.measuring import Inputs, Shown, measure_network
from nlprobe.stats.intervals import Estimate
from nlprobe.stats.records import ACCOMPANYING
from nlprobe.stats.summary import SiteSummary

EMERGENCE = "emergence.csv"

COLUMNS = (
    *("step", "epoch", "images_seen", "site", "quantity", "measure"),
    *("mean", "low", "high", "n", "n_keys", "by_construction"),
)
"""Finished steps, epochs (with a fraction) and training images; the number's names; its value over `n` images; the keys
that a map is spread over (the largest number where images differ), and whether the block's formula fixes the value."""

_NUMBERS = {"epoch", "mean", "low", "high"}


def measure_step(
    model: nn.Module,
    batches: Iterable[Shown | tuple[Inputs, Sequence[str]]],
    *,
    step: int,
    steps_per_epoch: int,
    images_per_step: int,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """The lines of one step, measured in evaluation mode and in the precision of the weights.

    The network computes and learns afterwards what it would have without: each module's mode and the state of torch's
    random generators are put back, and norms do not count what they have seen here.

    Args:
        model: The network, as the step left it.
        batches: One pass over the probe set.
        step: Finished steps.
        steps_per_epoch: Of the training.
        images_per_step: Of the training.
        device: Where the network is.

    Returns:
        A table with `COLUMNS`, site by site.

    Raises:
        DataError: no image can be read.
        CaptureError: the audit failed.
    """
    with _as_it_was(model, torch.device(device)):
        measured = measure_network(model, lambda _start, _step: batches, label="network", device=device)[0]
    place = {"step": step, "epoch": step / steps_per_epoch, "images_seen": step * images_per_step}
    lines = [{**place, **line} for site in measured.sites for line in _lines(site)]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def read_emergence(path: Path) -> pd.DataFrame:
    """Read what `write_emergence` wrote; floats come back to the bit.

    Raises:
        DataError: it cannot be read, or is no table of that kind.
    """
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(_NUMBERS, str))
        # pandas' own reading of a float may be off in the last bit, Python's is not.
        for name in _NUMBERS & set(frame):
            frame[name] = frame[name].map(float)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise DataError(f"`{path}` cannot be read: {reason}", "check the path, or train with --probe-every") from error
    if missing := [name for name in COLUMNS if name not in frame]:
        raise DataError(
            f"`{path}` is no table of emergence: it has no column `{missing[0]}`",
            f"give a run's folder, or the `{EMERGENCE}` that `nlprobe train --probe-every` wrote",
        )
    return frame


def write_emergence(path: Path, frame: pd.DataFrame) -> None:
    """Write the table, whole or not at all."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def rewind(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`: a run that goes on from there takes these steps again."""
    if not path.is_file():
        return
    frame = read_emergence(path)
    if (frame["step"] > step).any():
        write_emergence(path, frame[frame["step"] <= step])


def _lines(site: SiteSummary) -> Iterator[dict[str, object]]:
    for quantity, estimate in site.quantities.items():
        yield _line(site, quantity, "avg_dist", estimate)
        for column in ACCOMPANYING[quantity]:
            if column in site.columns:
                yield _line(site, quantity, column, site.columns[column])
    counted = site.quantities["output"].n if "output" in site.quantities else 0
    for share, value in site.energy.items():
        # One number of the whole set, which no interval over images belongs to.
        yield _line(site, "output", share, Estimate(value, math.nan, math.nan, counted))


def _line(site: SiteSummary, quantity: str, measure: str, estimate: Estimate) -> dict[str, object]:
    return {
        "site": site.site,
        "quantity": quantity,
        "measure": measure,
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "n_keys": site.n_keys[1],
        "by_construction": estimate.by_construction,
    }


@contextmanager
def _as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put back what measuring touches: each module's mode, and the random generators."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        # Module by module, since frozen norms stay in evaluation mode while the rest is trained.
        for module, training in modes:
            module.training = training
