"""Keeps what a run makes: checkpoints after each epoch, the log, and the state from which it goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlprobe.checkpoints import save_checkpoint
from nlprobe.training.engine import Engine, Observer
from nlprobe.training.state import BEST, LAST, save_state, write_log


class Keeper(Observer):
    """An observer that writes into a run's folder; every file is whole at any time.

    Args:
        folder: The run's folder.
        metadata: What every checkpoint of the run says of itself; epoch and metrics are added.
        settings: What has to be known when the run goes on; part of the state.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self._folder, self._metadata, self._settings = folder, metadata, settings

    def epoch_done(self, engine: Engine, row: Mapping[str, Any], best: bool) -> None:
        """Write checkpoints, then the log, then the state: a crash in between repeats the epoch, to the same bits."""
        metrics = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
        metadata = {**self._metadata, "epoch": row["epoch"], "metrics": metrics}
        save_checkpoint(self._folder / LAST, engine.model, metadata)
        if best:
            save_checkpoint(self._folder / BEST, engine.model, metadata)
        write_log(self._folder, engine.progress.history)
        self.interrupted(engine)

    def interrupted(self, engine: Engine) -> None:
        """Write the state."""
        save_state(self._folder, {**engine.state(), "settings": dict(self._settings)})
