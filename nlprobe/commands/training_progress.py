"""How a training is shown: a bar on a terminal, else a line every half a minute, and a line for each epoch."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from nlprobe.commands.report import SECONDS_BETWEEN_LINES, say
from nlprobe.data import UnreadableImageError
from nlprobe.training import Engine, Observer

NOTEWORTHY_WAIT = 0.1
"""Share of an epoch's time spent waiting for data from which on it is mentioned: more `--workers` would help."""


class TrainingProgress(Observer):
    """An observer of the engine that writes to stderr; used as a context manager it takes its bar away at the end."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._started = self._spoke = time.monotonic()
        self._steps = 0

    def __enter__(self) -> "TrainingProgress":
        self._started = self._spoke = time.monotonic()
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()

    def step_done(self, engine: Engine) -> None:
        """Move the bar, or say a line when it is time."""
        self._steps += 1
        now = time.monotonic()
        if sys.stderr.isatty():
            self._move(engine)
        elif now - self._spoke >= SECONDS_BETWEEN_LINES:
            at = engine.progress
            say(f"{_epoch(engine, at.epoch)}, step {at.step}/{engine.steps_per_epoch}: {self._numbers(engine)}")
            self._spoke = now

    def epoch_done(self, engine: Engine, row: Mapping[str, Any], best: bool) -> None:
        """Say what the epoch came to."""
        self._close()
        scores = f"{_measures(row, 'train_')}; validation: {_measures(row, 'val_')}{' (best so far)' if best else ''}"
        speed = f"; {row['images_per_second']:.0f} images/s" if row["images_per_second"] else ""
        waited = row["seconds_waiting_for_data"] / max(row["seconds"], 1e-9)
        speed += f", {waited:.0%} of the time waiting for data" if waited > NOTEWORTHY_WAIT else ""
        say(f"{_epoch(engine, row['epoch'] - 1)}: {scores}{speed}{self._left(engine)}")
        self._spoke = time.monotonic()

    def interrupted(self, engine: Engine) -> None:
        """Take the bar away."""
        self._close()

    def _move(self, engine: Engine) -> None:
        if self._bar is None:
            self._bar = _new_bar(engine)
        self._bar.set_postfix_str(self._numbers(engine), refresh=False)
        self._bar.update(1)

    def _numbers(self, engine: Engine) -> str:
        speed = self._steps * engine.recipe.batch_size / max(time.monotonic() - self._started, 1e-9)
        return f"{_measures(engine.progress.means())}, {speed:.0f} images/s{self._left(engine)}"

    def _left(self, engine: Engine) -> str:
        """Time left, by the steps of this session with the validations between them."""
        at = engine.progress
        steps = (engine.recipe.epochs - at.epoch) * engine.steps_per_epoch - at.step
        if not self._steps or not steps:
            return ""
        return f", {_duration(steps * (time.monotonic() - self._started) / self._steps)} left"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Unreadable:
    """Names each image that cannot be read once, the first few at once and all of them by number at the end."""

    _NAMED = 5

    def __init__(self) -> None:
        self._names: set[str] = set()

    def __call__(self, error: UnreadableImageError) -> None:
        """Note one."""
        if error.image not in self._names and len(self._names) < self._NAMED:
            say(f"left out: {error.cause}")
        self._names.add(error.image)

    def summarise(self) -> None:
        """Say how many there were."""
        if self._names:
            say(f"images that could not be read and were left out: {len(self._names)}")


def _new_bar(engine: Engine) -> "tqdm[Any]":
    return tqdm(
        desc=_epoch(engine, engine.progress.epoch),
        total=engine.steps_per_epoch,
        initial=engine.progress.step - 1,
        unit=" steps",
        file=sys.stderr,
        leave=False,
        dynamic_ncols=True,
        ascii=not (sys.stderr.encoding or "").lower().startswith("utf"),
        bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}",
    )


def _measures(row: Mapping[str, Any], prefix: str = "") -> str:
    """Losses as they are, scores in per cent."""
    own = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
    return ", ".join(f"{name} {value:{'.3f' if name.startswith('loss') else '.1%'}}" for name, value in own.items())


def _epoch(engine: Engine, epoch: int) -> str:
    return f"epoch {epoch + 1}/{engine.recipe.epochs}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
