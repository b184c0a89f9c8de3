"""What the engine asks of a task: batches, a loss, and a score."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Loss:
    """The outcome of one forward pass, all on the device.

    Attributes:
        mean: What is minimised: the mean over the batch's images.
        images: How many images there were.
        sums: Further measures, each summed over the images; the log shows their means.
    """

    mean: Tensor
    images: int
    sums: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """Data, loss and score of one task; the engine knows no more about any.

    Attributes:
        monitor: The score by which the best epoch is chosen; higher is better.
    """

    monitor: str

    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch."""

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """What this process takes of the batches of an epoch, from step `start` on; a function of (seed, epoch) alone.

        For each step these are as many as the recipe's `accumulate` says.
        """

    def names(self, batch: Any) -> list[str]:
        """Names of the images in a batch, for messages."""

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Forward pass and loss of one of these; `model` is called once and may be the network of all processes."""

    def validate(self, model: nn.Module, stop: Stop) -> dict[str, float] | None:
        """Scores on the validation set; None as soon as `stop()` says so. In all processes the same."""
