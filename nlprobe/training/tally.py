"""Losses on their way from the device to the log: summed over processes, and checked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.processes import Processes
from nlprobe.training.task import Loss

# Losses stay on the device for so many steps; reading each would make an accelerator wait.
_STEPS_BETWEEN_READS = {"cpu": 1}
_STEPS_BETWEEN_READS_ELSEWHERE = 20


@dataclass(frozen=True)
class StepTotals:
    """One step over all processes: its number within the epoch, from 1, its images, and the sums over them."""

    step: int
    images: int
    sums: dict[str, float]


@dataclass(frozen=True)
class _Part:
    """One backward pass of this process: mean loss and further sums as they lie on the device."""

    row: Tensor
    names: tuple[str, ...]
    images: int
    ids: Sequence[str]
    step: int


class Tally:
    """Collects the losses of a few steps and reads them together.

    Args:
        device: Where the losses are.
        processes: Those that train together; all of them read at the same steps.
    """

    def __init__(self, device: torch.device, processes: Processes) -> None:
        self._processes = processes
        self._interval = _STEPS_BETWEEN_READS.get(device.type, _STEPS_BETWEEN_READS_ELSEWHERE)
        self._parts: list[_Part] = []

    def add(self, loss: Loss, ids: Sequence[str], step: int) -> None:
        """Note one backward pass of step `step`, without waiting for the device."""
        mean = loss.mean.detach()
        row = torch.stack([mean, *(value.detach().to(mean.dtype) for value in loss.sums.values())])
        self._parts.append(_Part(row, ("loss", *loss.sums), loss.images, ids, step))

    def due(self) -> bool:
        """Whether so many steps are waiting that they should be read."""
        return bool(self._parts) and self._parts[-1].step - self._parts[0].step + 1 >= self._interval

    def read(self, flag: bool, where: Callable[[int], str], remedy: str) -> tuple[list[StepTotals], bool]:
        """Bring everything noted over, in double precision and in the order of the steps.

        Args:
            flag: Something that this process has to say.
            where: Names a step of the epoch, for an error.
            remedy: What to do about a loss that is not finite.

        Returns:
            The steps, and whether any process raised its flag.

        Raises:
            NlprobeError: a loss is not finite, in whatever process.
        """
        parts, self._parts = self._parts, []
        if not parts:
            return [], self._processes.total(torch.tensor([float(flag)])).item() > 0
        names = parts[0].names
        rows = torch.stack([part.row for part in parts]).cpu().double()
        rows[:, 0] *= torch.tensor([part.images for part in parts], dtype=torch.float64)
        first, last = parts[0].step, parts[-1].step
        table = torch.zeros(last - first + 1, len(names) + 2, dtype=torch.float64)
        for part, row in zip(parts, rows, strict=True):
            table[part.step - first, :-2] += row
            table[part.step - first, -2] += part.images
        table[:, -1] = float(flag)
        lines = self._processes.total(table).tolist()
        totals = []
        for step, (*sums, images, _) in enumerate(lines, first):
            if not math.isfinite(sums[0]):
                wrong = [part for part, row in zip(parts, rows, strict=True) if part.step == step and _broken(row)]
                self._complain(wrong, where(step), remedy)
            totals.append(StepTotals(step, int(images), dict(zip(names, sums, strict=True))))
        return totals, lines[-1][-1] > 0

    def _complain(self, wrong: Sequence[_Part], where: str, remedy: str) -> None:
        """Raise the error of the first process whose loss is not finite."""

        def explain() -> None:
            if wrong:
                first = ", ".join(f"`{name}`" for name in wrong[0].ids[:3])
                raise NlprobeError(
                    f"the loss is {wrong[0].row[0].item()} at {where}, on the batch of {wrong[0].images} images that "
                    f"begins with {first}",
                    remedy,
                )

        self._processes.together(explain)


def _broken(row: Tensor) -> bool:
    return not math.isfinite(row[0].item())
