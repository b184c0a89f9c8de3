"""The folder of a training run: its checkpoints, its log and the state from which it goes on."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nlprobe.errors import CheckpointError
from nlprobe.files import atomic_path, write_text

STATE = "state.pt"
LAST = "last.safetensors"
BEST = "best.safetensors"
LOG = "log.csv"
CURVES = "curves"
FILES = (STATE, LAST, BEST, LOG, *(f"{CURVES}.{ending}" for ending in ("csv", "png", "pdf", "svg")))
ON_REQUEST = ("emergence.csv",)
"""Files that only some runs have."""

FORMAT = "nlprobe training state"
FORMAT_VERSION = 1


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run, whole or not at all.

    Raises:
        DataError: the disk is full, or the folder cannot be written to; the state written before is still there.
    """
    # By way of memory: torch's own writer turns a full disk into an error of its inner workings.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **state}, buffer)
    with atomic_path(folder / STATE) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def clear(folder: Path) -> None:
    """Remove the files of a run, and what a killed one left half-written; other files stay."""
    for name in (*FILES, *ON_REQUEST):
        (folder / name).unlink(missing_ok=True)
    remove_partial(folder)


def remove_partial(folder: Path) -> None:
    """Remove what a killed run left half-written under a temporary name."""
    for name in (*FILES, *ON_REQUEST):
        for leftover in folder.glob(f".{name}.*.partial"):
            leftover.unlink(missing_ok=True)


def load_state(folder: Path) -> dict[str, Any]:
    """Read the state of a run; only tensors and plain values are ever unpickled.

    Raises:
        CheckpointError: there is none, it is damaged, or it is not one of ours.
    """
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(
            f"`{folder}` holds no run to go on with: there is no `{STATE}`",
            "check `--out`, or start a new run without `--resume`",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises RuntimeError, UnpicklingError, EOFError, … on damaged files.
    except Exception as error:
        raise CheckpointError(
            f"`{path}` is damaged or no training state: {(str(error) or type(error).__name__).splitlines()[0]}",
            "start anew, with `--force` in the same folder",
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"`{path}` is not a training state of nlprobe", "check `--out`")
    if state["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"`{path}` was written by a newer nlprobe (state version {state['format_version']})", "update nlprobe"
        )
    return state


def write_log(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `log.csv` anew: a line per finished epoch, floats with all their digits."""
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / LOG, text.getvalue())


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings (flat keys) that are not what they were: key -> (then, now); None stands for absent."""
    keys = [*then, *(key for key in now if key not in then)]
    return {key: (then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)}
