"""The training loop, one for all tasks.

Nothing in it is random but what is seeded by (seed, step), and nothing depends on what came before but what `state`
holds; so a run that was stopped anywhere goes on to the same bits.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nlprobe.data import derived_seed
from nlprobe.errors import NlprobeError
from nlprobe.training.recipes import Recipe
from nlprobe.training.task import Task

# Losses stay on the device for so many steps; reading each would make an accelerator wait.
_STEPS_BETWEEN_READS = {"cpu": 1}
_STEPS_BETWEEN_READS_ELSEWHERE = 20


@dataclass
class Progress:
    """Where a run is: `step` batches of epoch `epoch` (both from 0) are done, with these sums over their images."""

    epoch: int = 0
    step: int = 0
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int | None = None

    def means(self) -> dict[str, float]:
        """Means over the images of the current epoch so far."""
        return {name: total / self.images for name, total in self.sums.items()} if self.images else {}


class Observer:
    """Looks on: shows progress, writes checkpoints, measures the network every so often; here, does nothing."""

    def step_done(self, engine: "Engine") -> None:
        """A step is done; the sums of `engine.progress` include it on a CPU, and lag a few steps elsewhere."""

    def epoch_done(self, engine: "Engine", row: Mapping[str, Any], best: bool) -> None:
        """An epoch and its validation are done; `row` is its line of the log, `best` whether it is the best so far."""

    def interrupted(self, engine: "Engine") -> None:
        """The run stops here on request; what `engine.state()` gives now is where it will go on."""


class Engine:
    """Trains a model on a task by a recipe.

    Args:
        model: The network; it is moved to `device`.
        task: Batches, loss and score.
        recipe: Epochs, optimiser and schedule.
        seed: Seed of everything random.
        device: Where to compute.
        observers: Called after each step and each epoch, in this order.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.model = model.to(device)
        if recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.task, self.recipe, self.seed, self.device, self.observers = task, recipe, seed, device, observers
        self.steps_per_epoch = task.steps_per_epoch()
        self.optimiser = _optimiser(model, recipe)
        self.progress = Progress()
        self._unread: list[tuple[Tensor, list[str], int, list[str], int]] = []

    def train(self) -> None:
        """Train until the recipe's last epoch is done.

        Raises:
            NlprobeError: the loss is not finite any more; nothing is saved from then on.
            KeyboardInterrupt: on Ctrl-C, at the end of the current step and after the observers' `interrupted`.
        """
        with _interrupt_noted() as interrupted:
            while self.progress.epoch < self.recipe.epochs:
                started, before = time.perf_counter(), self.progress.images
                finished = self._train_epoch(interrupted)
                seconds = time.perf_counter() - started
                scores = self.task.validate(self.model, interrupted) if finished else None
                if scores is None:
                    for observer in self.observers:
                        observer.interrupted(self)
                    raise KeyboardInterrupt
                self._end_epoch(scores, seconds, (self.progress.images - before) / seconds if seconds else math.nan)

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        step = self.progress.epoch * self.steps_per_epoch + self.progress.step
        factor = self.recipe.schedule.factor(step, self.steps_per_epoch, self.recipe.epochs)
        return self.recipe.optimiser.learning_rate * factor

    def state(self) -> dict[str, Any]:
        """Everything that going on needs, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": vars(self.progress).copy(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(**state["progress"])

    def _train_epoch(self, interrupted: Callable[[], bool]) -> bool:
        """Do the rest of the epoch; False if interrupted."""
        progress = self.progress
        self.model.train()
        if progress.step < self.steps_per_epoch:
            for batch in self.task.batches(progress.epoch, progress.step):
                self._step(batch)
                for observer in self.observers:
                    observer.step_done(self)
                if interrupted():
                    break
        self._read_losses()
        return not interrupted()

    def _step(self, batch: Any) -> None:
        progress = self.progress
        torch.manual_seed(derived_seed(self.seed, progress.epoch, progress.step))
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        loss = self.task.loss(self.model, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.mean.backward()
        self.optimiser.step()
        progress.step += 1
        row = torch.stack([loss.mean.detach(), *(value.detach().to(loss.mean.dtype) for value in loss.sums.values())])
        self._unread.append((row, ["loss", *loss.sums], loss.images, self.task.names(batch), progress.step))
        if len(self._unread) >= _STEPS_BETWEEN_READS.get(self.device.type, _STEPS_BETWEEN_READS_ELSEWHERE):
            self._read_losses()

    def _read_losses(self) -> None:
        """Bring the losses over from the device and add them up in double precision, in the order of the steps."""
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        rows = torch.stack([row for row, *_ in unread]).tolist()
        progress = self.progress
        for values, (_, names, images, ids, step) in zip(rows, unread, strict=True):
            if not math.isfinite(values[0]):
                first = ", ".join(f"`{name}`" for name in ids[:3])
                raise NlprobeError(
                    f"the loss is {values[0]} at epoch {progress.epoch + 1}, step {step}/{self.steps_per_epoch}, "
                    f"on the batch of {images} images that begins with {first}",
                    "lower the learning rate (now "
                    f"{self.recipe.optimiser.learning_rate:g}) or lengthen `schedule.warmup_epochs`; the checkpoints "
                    "of the epochs before are kept",
                )
            progress.images += images
            for name, value in zip(names, values, strict=True):
                total = value * images if name == "loss" else value
                progress.sums[name] = progress.sums.get(name, 0.0) + total

    def _end_epoch(self, scores: Mapping[str, float], seconds: float, speed: float) -> None:
        progress = self.progress
        row = {
            "epoch": progress.epoch + 1,
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            **{f"train_{name}": value for name, value in progress.means().items()},
            **{f"val_{name}": value for name, value in scores.items()},
            "images_per_second": round(speed, 1),
            "seconds": round(seconds, 1),
        }
        score = scores[self.task.monitor]
        best = progress.best is None or score > progress.best
        if best:
            progress.best, progress.best_epoch = score, progress.epoch + 1
        progress.history.append(row)
        progress.epoch += 1
        progress.step = progress.images = 0
        progress.sums = {}
        for observer in self.observers:
            observer.epoch_done(self, row, best)


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    settings = recipe.optimiser
    kept = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in kept if settings.decay_norms or parameter.ndim > 1]
    free = [parameter for parameter in kept if not settings.decay_norms and parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}]
    if free:
        groups.append({"params": free, "weight_decay": 0.0})
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.nesterov)


@contextmanager
def _interrupt_noted() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is only noted, so that the current step can end; a second one interrupts at once."""
    noted = threading.Event()

    def note(_signal: int, _frame: Any) -> None:
        if noted.is_set():
            raise KeyboardInterrupt
        noted.set()

    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, before)
