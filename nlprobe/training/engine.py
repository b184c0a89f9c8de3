"""The training loop, one for all tasks.

Nothing in it is random but what is seeded by (seed, epoch, step), and nothing depends on what came before but what
`state` holds; so a run that was stopped anywhere goes on to the same bits. In several processes each takes its part of
every batch, and all of them together do what one would do alone, but for dropout and for batch norm that is not
synchronised.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nlprobe.data import derived_seed
from nlprobe.errors import ConfigError, NlprobeError
from nlprobe.interruption import interruption_noted
from nlprobe.processes import ALONE, Processes
from nlprobe.training.freezing import freeze, hold
from nlprobe.training.optimisers import build_optimiser
from nlprobe.training.progress import Progress
from nlprobe.training.recipes import AMP, Recipe
from nlprobe.training.tally import Tally
from nlprobe.training.task import Task


class Observer:
    """Looks on: shows progress, writes checkpoints, measures the network every so often; here, does nothing.

    In several processes, one that takes part in what all do together (such as `Engine.state`) has to look on in all.
    """

    def started(self, engine: "Engine") -> None:
        """The training begins, or goes on, where `engine.progress` says."""

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
        processes: This process among those that train together.

    Raises:
        ConfigError: the recipe freezes or rules what the network does not have, or asks for norms that are
            synchronised between processes without GPUs.
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
        processes: Processes = ALONE,
    ) -> None:
        self.task, self.recipe, self.seed, self.device, self.observers = task, recipe, seed, device, list(observers)
        self.processes = processes
        self._still = freeze(model, recipe.frozen, norms=recipe.batch_norm == "frozen")
        if recipe.batch_norm == "sync" and processes.count > 1:
            model = _synchronised(model, device)
        self.model = model.to(device)
        if recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.steps_per_epoch = task.steps_per_epoch()
        self.optimiser = build_optimiser(self.model, recipe.optimiser)
        self.progress = Progress()
        self._network = self.model
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        self._tally = Tally(device, processes)
        self._waited = 0.0

    def train(self) -> None:
        """Train until the recipe's last epoch is done.

        Raises:
            NlprobeError: the loss is not finite any more, and nothing is saved from then on; or another process ended.
            KeyboardInterrupt: on Ctrl-C or SIGTERM, at the end of the current step and after the observers'
                `interrupted`; in several processes, a few steps later.
        """
        with interruption_noted() as interrupted, self.processes.watched(lambda: f"in {self._where()}"):
            if self.processes.count > 1:
                self._network = DistributedDataParallel(self.model)
            for observer in self.observers:
                observer.started(self)
            while self.progress.epoch < self.recipe.epochs:
                started, before, self._waited = time.perf_counter(), self.progress.images, 0.0
                finished = self._train_epoch(interrupted)
                seconds, images = time.perf_counter() - started, self.progress.images - before
                self.processes.share_buffers(self.model)
                scores = self.task.validate(self.model, interrupted) if finished else None
                if scores is None:
                    for observer in self.observers:
                        observer.interrupted(self)
                    raise KeyboardInterrupt
                self._end_epoch(scores, seconds, images)

    def learning_rate(self, step: int | None = None) -> float:
        """The learning rate of a step of the current epoch, from 0; of the next one if left out."""
        step = self.progress.step if step is None else step
        step += self.progress.epoch * self.steps_per_epoch
        factor = self.recipe.schedule.factor(step, self.steps_per_epoch, self.recipe.epochs)
        return self.recipe.optimiser.learning_rate * factor

    def state(self) -> dict[str, Any]:
        """Everything that going on needs, as tensors and plain values; all processes have to ask together.

        Raises:
            NlprobeError: a weight is not finite, so that nobody should go on from here.
        """
        self.refuse_broken()
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "progress": vars(self.progress).copy(),
        }

    def refuse_broken(self) -> None:
        """Make sure that losses and weights are finite; all processes have to ask together.

        Raises:
            NlprobeError: one is not.
        """
        self._read_losses(False)
        self.processes.together(self._refuse_broken_weights)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken; the optimiser's numbers stay those of the recipe."""
        self.model.load_state_dict(state["model"])
        own = [{key: group[key] for key in group if key != "params"} for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, numbers in zip(self.optimiser.param_groups, own, strict=True):
            group.update(numbers)
        if scaler := state.get("scaler"):
            self._scaler.load_state_dict(scaler)
        self.progress = Progress(**state["progress"])

    def _train_epoch(self, interrupted: Callable[[], bool]) -> bool:
        """Do the rest of the epoch; False if interrupted."""
        progress = self.progress
        self.model.train()
        hold(self._still)
        stopping = False
        batches = self._batches() if progress.step < self.steps_per_epoch else iter(())
        while progress.step < self.steps_per_epoch and not stopping:
            self._step(list(islice(batches, self.recipe.accumulate)))
            if self._tally.due():
                stopping = self._read_losses(interrupted())
            for observer in self.observers:
                observer.step_done(self)
            # Alone, there is nobody to agree with first.
            stopping = stopping or (self.processes.count == 1 and interrupted())
        return not self._read_losses(stopping or interrupted())

    def _batches(self) -> Iterator[Any]:
        """The rest of the epoch's batches; the time spent waiting for them is added up."""
        batches = iter(self.task.batches(self.progress.epoch, self.progress.step))
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def _step(self, parts: Sequence[Any]) -> None:
        """One step of the optimiser, on what this process takes of a batch, cut into `parts`."""
        progress, settings = self.progress, self.recipe.optimiser
        rate = self.learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimiser.zero_grad(set_to_none=True)
        for number, batch in enumerate(parts):
            self._backward(batch, number, last=number == len(parts) - 1)
        if settings.clip_norm:
            self._scaler.unscale_(self.optimiser)
            trained = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        self._scaler.step(self.optimiser)
        self._scaler.update()
        progress.step += 1

    def _backward(self, batch: Any, number: int, *, last: bool) -> None:
        """Add the gradient of one part of a batch; processes exchange gradients with the last part."""
        progress, processes = self.progress, self.processes
        piece = number * processes.count + processes.rank
        torch.manual_seed(derived_seed(self.seed, progress.epoch, progress.step, piece))
        with self._alone_until(last):
            with torch.autocast(self.device.type, AMP[self.recipe.amp], enabled=self.recipe.amp != "off"):
                loss = self.task.loss(self._network, batch)
            # Each image counts 1 / batch size, whoever has it and whether or not others could not be read; averaging
            # over the processes divides by their number.
            weight = loss.images * processes.count / self.recipe.batch_size
            mean = loss.mean if weight == 1 else loss.mean * weight
            self._scaler.scale(mean).backward()
        self._tally.add(loss, self.task.names(batch), progress.step + 1)

    def _alone_until(self, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self._network, DistributedDataParallel):
            return nullcontext()
        return self._network.no_sync()

    def _read_losses(self, stop: bool) -> bool:
        """Bring the losses of the last steps over and add them up; whether any process wants to stop."""
        steps, stop = self._tally.read(
            stop,
            self._where,
            f"lower the learning rate (now {self.recipe.optimiser.learning_rate:g}) or lengthen "
            "`schedule.warmup_epochs`; the last state that was saved is kept, and --resume goes on from it",
        )
        for each in steps:
            rate = self.learning_rate(each.step - 1)
            self.progress.add(each.sums, each.images, each.step, self.steps_per_epoch, rate)
        return stop

    def _end_epoch(self, scores: Mapping[str, float], seconds: float, images: int) -> None:
        progress = self.progress
        row = {
            "epoch": progress.epoch + 1,
            "learning_rate": self.learning_rate(self.steps_per_epoch - 1),
            **{f"train_{name}": value for name, value in progress.means().items()},
            **{f"val_{name}": value for name, value in scores.items()},
            "images_per_second": round(images / seconds, 1) if seconds else math.nan,
            "seconds": round(seconds, 1),
            "seconds_waiting_for_data": round(self._waited, 1),
        }
        best = progress.end_epoch(row, scores[self.task.monitor])
        for observer in self.observers:
            observer.epoch_done(self, row, best)

    def _where(self, step: int | None = None) -> str:
        step = self.progress.step if step is None else step
        return f"epoch {self.progress.epoch + 1}, step {step}/{self.steps_per_epoch}"

    def _refuse_broken_weights(self) -> None:
        tensors = {name: value for name, value in self.model.state_dict().items() if value.is_floating_point()}
        if torch.stack([value.isfinite().all() for value in tensors.values()]).all():
            return
        name = next(name for name, value in tensors.items() if not value.isfinite().all())
        raise NlprobeError(
            f"`{name}` of the network is not finite any more after {self._where()}, though the loss still was",
            "lower the learning rate or set `optimiser.clip_norm`; the last state that was saved is kept",
        )


def _synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch norms that share their statistics between processes.

    Raises:
        ConfigError: torch can do so on GPUs only.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"batch norm cannot be synchronised between processes on the device `{device}`: PyTorch does so on CUDA "
            "GPUs only",
            "use `--set batch_norm=plain` or `frozen`, or one process",
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
