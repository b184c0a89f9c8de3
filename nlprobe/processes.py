"""The processes that `torchrun` starts to work on one thing, and how they stay in step."""

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nlprobe.errors import ConfigError, NlprobeError
from nlprobe.interruption import interruption_noted

Item = TypeVar("Item")
Result = TypeVar("Result")

CPU = torch.device("cpu")

# Longer than any validation or checkpoint that the others wait for; a process that dies is noticed at once.
_TIMEOUT = timedelta(minutes=60)
_RESUME = "the run can go on from its last state by --resume"
_END = object()
_LOST = re.compile(r"gloo|nccl|connection (reset|closed|refused)|socket|store->get", re.IGNORECASE)


class ElsewhereError(NlprobeError):
    """An error that another process of the group has and tells; this one ends with it, and need not tell it again."""

    def __init__(self, cause: str, remedy: str, exit_code: int) -> None:
        super().__init__(cause, remedy)
        self.exit_code = exit_code


class StoppedError(KeyboardInterrupt):
    """An interruption that all processes have agreed on, between two rounds and not anywhere."""


@dataclass(frozen=True)
class Processes:
    """This process, and how many there are; by default it is alone, and then nothing here costs anything.

    Attributes:
        rank: The number of this process, from 0.
        count: How many there are, on all machines together.
        local_rank: The number of this process on its machine, which is the number of its GPU.
        local_count: How many there are on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def of_environment(cls) -> "Processes":
        """What `torchrun` says in the environment; alone without it."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(name in os.environ for name in names):
            return cls()
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: torch.device = CPU) -> Iterator[None]:
        """Inside, the processes can reach each other: by gloo on a CPU, and by NCCL too where each has a GPU.

        Raises:
            ConfigError: the device has no way for processes to reach each other.
        """
        if self.count == 1:
            yield
            return
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(
                f"{self.count} processes cannot train on the device `{device}`", "use `--device cpu`, or one process"
            )
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        yield
        # Only on the good way out: where a process is missing, taking the group down waits for it.
        dist.destroy_process_group()

    def first(self, function: Callable[[], Result]) -> Result:
        """Call `function` in process 0 only; every process gets its result, or ends with its error.

        Raises:
            NlprobeError: `function` raised it; in the other processes it is an ElsewhereError.
        """
        if self.count == 1:
            return function()
        outcome: list[Any] = [None]
        error: Exception | None = None
        if self.leads:
            try:
                outcome = [(function(), None)]
            except Exception as raised:
                error = raised
                outcome = [(None, _told(raised))]
        dist.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        result, told = outcome[0]
        if told is not None:
            raise ElsewhereError(*told)
        return result

    def together(self, function: Callable[[], Result]) -> Result:
        """Call `function` in every process; where it fails in some, all end, and only the first of those tells why.

        The others learn of it when they next `gather`, inside `function` or at its end.

        Raises:
            NlprobeError: `function` raised it here; an ElsewhereError if another process is the one to tell.
        """
        if self.count == 1:
            return function()
        try:
            result = function()
        except ElsewhereError:
            raise
        except Exception as error:
            if not _is_loss(error):
                self._exchange(None, error)
            raise
        self._exchange(None)
        return result

    def gather(self, value: Any) -> list[Any]:
        """What every process has for `value`, in the order of ranks, in every process.

        Raises:
            ElsewhereError: a process failed in `together` before it came to this.
        """
        return [value] if self.count == 1 else self._exchange(value)

    def gather_first(self, value: Any) -> list[Any]:
        """The same in process 0 only; in the others nothing.

        Raises:
            ElsewhereError: a process failed in `together` before it came to this.
        """
        if self.count == 1:
            return [value]
        self._exchange(None)
        values: list[Any] | None = [None] * self.count if self.leads else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def in_step(self, items: Iterable[Item]) -> Generator[Item | None]:
        """Pass on the items of this process, and None while only others have some left; to be used inside `together`.

        Before each item all processes meet. So they go through as many rounds, none is more than an item ahead, and
        where one fails or is interrupted all end after the item in hand.

        Raises:
            StoppedError: Ctrl-C or SIGTERM reached one of several processes; alone, it interrupts at once as ever.
            ElsewhereError: another process failed.
        """
        if self.count == 1:
            yield from items
            return
        own = iter(items)
        with interruption_noted() as interrupted:
            while True:
                found = next(own, _END)
                rounds = self._exchange((found is not _END, interrupted()))
                if any(stopping for _, stopping in rounds):
                    raise StoppedError
                if not any(more for more, _ in rounds):
                    return
                yield None if found is _END else found  # type: ignore[misc]

    def _exchange(self, value: Any, error: Exception | None = None) -> list[Any]:
        """Meet all processes: they tell their values, unless there is an error to tell.

        Raises:
            Exception: `error`, where this process is the first to have one; an ElsewhereError where another is.
        """
        messages: list[Any] = [None] * self.count
        dist.all_gather_object(messages, (value, None if error is None else _told(error)))
        failed = [rank for rank, (_, told) in enumerate(messages) if told is not None]
        if not failed:
            return [value for value, _ in messages]
        if error is not None and failed[0] == self.rank:
            raise error
        raise ElsewhereError(*messages[failed[0]][1]) from error

    def total(self, table: Tensor) -> Tensor:
        """The sum over all processes of a CPU tensor."""
        if self.count > 1:
            dist.all_reduce(table)
        return table

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the buffers of process 0, such as the running statistics of its norms."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def watched(self, where: Callable[[], str], remedy: str = _RESUME) -> Iterator[None]:
        """Put the loss of another process into words.

        Args:
            where: Says how far this process had come.
            remedy: What can be done about it, beside looking for the reason.

        Raises:
            NlprobeError: another process ended or cannot be reached any more.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_loss(error):
                raise
            raise NlprobeError(
                f"process {self.rank} of {self.count} lost another one {where()}: {str(error).splitlines()[0][:200]}",
                f"the first process that failed tells why; {remedy}",
            ) from error


ALONE = Processes()


def _is_loss(error: Exception) -> bool:
    """Whether an error is that another process cannot be reached."""
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or bool(_LOST.search(str(error))))


def _told(error: Exception) -> tuple[str, str, int]:
    if isinstance(error, NlprobeError):
        return error.cause, error.remedy, error.exit_code
    return f"{type(error).__name__}: {error}", "", 1
