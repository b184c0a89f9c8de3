"""The curves of a training, in its folder and for TensorBoard."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlprobe.errors import MissingExtraError
from nlprobe.training import Engine, Observer
from nlprobe.training.state import CURVES

SECONDS_BETWEEN_DRAWINGS = 60.0


class TrainingCurves(Observer):
    """Draws the curves of loss and scores: after an epoch, at most once a minute, and when the run stops.

    Args:
        folder: The run's folder; it gets `curves.csv`, and the figure in each format.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._drawn = time.monotonic()

    def epoch_done(self, engine: Engine, row: Mapping[str, Any], best: bool) -> None:
        """Draw when it is time."""
        if time.monotonic() - self._drawn >= SECONDS_BETWEEN_DRAWINGS:
            self.draw(engine)

    def interrupted(self, engine: Engine) -> None:
        """Draw what there is."""
        self.draw(engine)

    def draw(self, engine: Engine) -> None:
        """Draw what there is."""
        from nlprobe.plots import save_figure
        from nlprobe.plots.curves import curve_data, draw_curves

        if engine.progress.curve:
            data = curve_data(engine.progress.curve, engine.progress.history)
            save_figure(draw_curves(data), self._folder / CURVES, data=data)
        self._drawn = time.monotonic()


class TensorBoard(Observer):
    """Writes the same numbers as TensorBoard reads them.

    A run that goes on hides what it wrote before and writes all of it anew: a kill may have come after events of steps
    that are taken again, and before events of steps that are not had reached the disk.

    Args:
        folder: Where its event files go.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboard", "`--tensorboard`") from error
        self._writer = SummaryWriter(str(folder), purge_step=0)
        self._points = 0

    def started(self, engine: Engine) -> None:
        """Write what earlier parts of the run have measured."""
        self.step_done(engine)
        for row in engine.progress.history:
            self._write_scores(engine, row)
        self._writer.flush()

    def step_done(self, engine: Engine) -> None:
        """Write the points of the curves that are new."""
        curve = engine.progress.curve
        for point in curve[self._points :]:
            step = round(point["epoch"] * engine.steps_per_epoch)
            for name, value in point.items():
                if name != "epoch":
                    self._writer.add_scalar(f"train/{name}", value, step)
        self._points = len(curve)

    def epoch_done(self, engine: Engine, row: Mapping[str, Any], best: bool) -> None:
        """Write the scores."""
        self.step_done(engine)
        self._write_scores(engine, row)
        self._writer.flush()

    def interrupted(self, engine: Engine) -> None:
        """Write what is left."""
        self.step_done(engine)
        self._writer.flush()

    def _write_scores(self, engine: Engine, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name.startswith("val_"):
                step = row["epoch"] * engine.steps_per_epoch
                self._writer.add_scalar(f"val/{name.removeprefix('val_')}", value, step)
