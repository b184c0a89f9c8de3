"""`nlprobe train --probe-every`: the sites of a network measured on the way, on images that stay the same."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd
from torch import nn

from nlprobe.commands.options import Function
from nlprobe.commands.report import say
from nlprobe.data import Batches, data_fingerprint
from nlprobe.data.loading import Report
from nlprobe.data.part import Part, Unlabelled
from nlprobe.emergence import EMERGENCE, measure_step, read_emergence, write_emergence
from nlprobe.errors import ConfigError, NlprobeError
from nlprobe.measuring import Shown
from nlprobe.probe.sites import known_sites
from nlprobe.training import Engine, Observer
from nlprobe.training.run import Run

BATCH = 8
"""Images in a forward pass, as in `nlprobe stats`."""

SETTINGS = "probe."

_EVERY = click.option(
    "--probe-every",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="STEPS",
    help="Also measure the attention sites before the first step, every so many steps and at the end, into "
    "emergence.csv; 0 does not. The weights are the same with and without.",
)
_IMAGES = click.option(
    "--probe-images",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Validation images, spread evenly over the set, for --probe-every.",
)


def probe_options(command: Function) -> Function:
    """`--probe-every` and `--probe-images`."""
    return _EVERY(_IMAGES(command))


@dataclass(frozen=True)
class ProbeSet:
    """Some validation images, spread evenly over the set, as the run's checkpoints see them.

    Attributes:
        run: The run whose validation images they are.
        every: Steps between two measurements.
        count: How many images, at most.
    """

    run: Run
    every: int
    count: int

    def part(self) -> Part:
        """The images."""
        return Part(self.run.validation, self.count)

    def settings(self) -> dict[str, Any]:
        """What a run that goes on has to find again, with keys such as `probe.images`."""
        fingerprint = data_fingerprint(self.part())
        return {f"{SETTINGS}every": self.every, **{f"{SETTINGS}{key}": value for key, value in fingerprint.items()}}

    def batches(self, report: Report) -> Iterator[Shown]:
        """One pass over them."""
        preprocessing = self.run.recipe.preprocessing
        together = BATCH if preprocessing.crop else 1
        images, transform = Unlabelled(self.part()), preprocessing.transform()
        for batch in Batches(images, transform, together, report=report, pad=preprocessing.pad):
            yield Shown(batch.images, batch.ids, batch.sizes)

    def refuse_no_site(self, network: nn.Module) -> None:
        """Make sure that there is something to measure.

        Raises:
            ConfigError: the network has no attention site.
        """
        if not known_sites(network):
            raise ConfigError(
                f"`{self.run.model}` has no attention site, so `--probe-every` has nothing to measure",
                "choose a model with a block (`nlprobe zoo` lists them), or leave --probe-every out",
            )

    def __str__(self) -> str:
        return f"every {self.every} steps, on {len(self.part())} of {len(self.run.validation)} validation images"


class Emergence(Observer):
    """Measures before the first step, after every so many and after the last; looks on in every process.

    Process 0 measures, while the others wait. It has to stand in front of what saves the state: then the file holds at
    least the lines of every step that a state is of, and a run that goes on takes the later ones again.

    Args:
        folder: The run's folder.
        probed: The images, and how often.
        report: Called for each image that cannot be read.
    """

    def __init__(self, folder: Path, probed: ProbeSet, report: Report) -> None:
        self._path, self._probed, self._report = folder / EMERGENCE, probed, report
        self._lines = pd.DataFrame()

    def started(self, engine: Engine) -> None:
        """Go on with the lines that are there; measure the network before its first step."""
        done = _done(engine)
        if engine.processes.leads and self._path.is_file():
            self._lines = read_emergence(self._path)
        if done and self._lines.empty and engine.processes.leads:
            say(f"{EMERGENCE} begins after step {done}: nothing was measured before")
        if not done:
            self._measure(engine)

    def step_done(self, engine: Engine) -> None:
        """Measure when it is time."""
        done = _done(engine)
        if done % self._probed.every == 0 or done == engine.recipe.epochs * engine.steps_per_epoch:
            self._measure(engine)

    def _measure(self, engine: Engine) -> None:
        # In words of the training, and not as an audit that found NaN.
        engine.refuse_broken()
        engine.processes.first(lambda: self._add(engine))

    def _add(self, engine: Engine) -> None:
        started, done = time.perf_counter(), _done(engine)
        try:
            lines = measure_step(
                engine.model,
                self._probed.batches(self._report),
                step=done,
                steps_per_epoch=engine.steps_per_epoch,
                images_per_step=engine.recipe.batch_size,
                device=engine.device,
            )
        except NlprobeError as error:
            raise type(error)(
                f"measuring after step {done}: {error.cause}",
                f"{error.remedy}; to go on from the last state without measuring: --resume --probe-every 0",
            ) from error
        first = self._lines.empty
        self._lines = lines if first else pd.concat([self._lines, lines], ignore_index=True)
        write_emergence(self._path, self._lines)
        if first:
            say(f"probed after step {done}, in {time.perf_counter() - started:.1f} s; once more {self._probed}")


def refuse_other_images(changed: dict[str, tuple[Any, Any]]) -> None:
    """Make sure that a run goes on with the probe set that it had.

    Raises:
        ConfigError: it would be measured on other images.
    """
    for key, (then, now) in changed.items():
        if key.startswith(SETTINGS) and key != f"{SETTINGS}every" and None not in (then, now):
            raise ConfigError(
                f"the run was probed on other images: `{key}` was {then}, is now {now}",
                "go on with the same --probe-images and validation data, or without --probe-every",
            )


def _done(engine: Engine) -> int:
    return engine.progress.epoch * engine.steps_per_epoch + engine.progress.step
