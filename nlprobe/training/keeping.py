"""Keeps what a run makes: checkpoints after each epoch, the log, and the state from which it goes on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nlprobe.checkpoints import save_checkpoint
from nlprobe.training.engine import Engine, Observer
from nlprobe.training.state import BEST, LAST, save_state, write_log


class Keeper(Observer):
    """An observer that writes into a run's folder; every file is whole at any time.

    In several processes it looks on in all of them, and process 0 writes.

    Args:
        folder: The run's folder.
        metadata: What every checkpoint of the run says of itself; epoch and metrics are added.
        settings: What has to be known when the run goes on; part of the state.
        save_every: Write the state every so many steps, too, and not only after each epoch; 0 does not.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        save_every: int = 0,
    ) -> None:
        self._folder, self._metadata, self._settings = folder, metadata, settings
        self._save_every = save_every

    def step_done(self, engine: Engine) -> None:
        """Write the state when it is time."""
        at = engine.progress
        done = at.epoch * engine.steps_per_epoch + at.step
        if self._save_every and done % self._save_every == 0 and at.step < engine.steps_per_epoch:
            self._save(engine)

    def epoch_done(self, engine: Engine, row: Mapping[str, Any], best: bool) -> None:
        """Write checkpoints, then the log, then the state: a crash in between repeats the epoch, to the same bits."""
        metrics = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
        metadata = {**self._metadata, "epoch": row["epoch"], "metrics": metrics}

        def write() -> None:
            save_checkpoint(self._folder / LAST, engine.model, metadata)
            if best:
                save_checkpoint(self._folder / BEST, engine.model, metadata)
            write_log(self._folder, engine.progress.history)

        self._save(engine, write)

    def interrupted(self, engine: Engine) -> None:
        """Write the state."""
        self._save(engine)

    def _save(self, engine: Engine, before: Callable[[], None] = lambda: None) -> None:
        # Asking for the state makes sure that there is something worth keeping.
        state = {**engine.state(), "settings": dict(self._settings)}

        def write() -> None:
            before()
            save_state(self._folder, state)

        engine.processes.first(write)
