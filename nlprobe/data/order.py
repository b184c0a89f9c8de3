"""Which samples come together, and in what order: a function of (seed, epoch), whoever asks and from wherever on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nlprobe.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of the batches: number `index` of `of`; by default everything."""

    index: int = 0
    of: int = 1


ALL = Share()


class BatchOrder:
    """The batches of an epoch, as a batch sampler of keys (epoch, index); set `epoch` and `start` before iterating.

    With a seed, samples are shuffled anew each epoch, an incomplete last batch is left out, and each batch is cut into
    equal parts: `parts` for each process. Without, samples come in their own order, all of them, and whole batches are
    dealt out to the processes in turn.

    With groups, a batch holds samples of one group only, but for those few at the end of the epoch that are left when
    each group has filled as many batches as it can. Batches come in the order in which the shuffled samples fill them.

    Args:
        count: Number of samples.
        batch_size: Samples in a batch, over all processes.
        seed: Seed of the order.
        share: What this process takes.
        parts: Into how many parts this process cuts what it takes of a batch.
        groups: With a seed, the group of each sample.

    Raises:
        ConfigError: a batch cannot be cut into equal parts.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int | None = None,
        *,
        share: Share = ALL,
        parts: int = 1,
        groups: Sequence[int] | None = None,
    ) -> None:
        self.count, self.batch_size, self.seed, self.share, self.parts = count, batch_size, seed, share, parts
        self.groups = groups
        self.epoch = 0
        self.start = 0
        if seed is not None and batch_size % (share.of * parts):
            pieces = share.of * parts
            below = batch_size // pieces * pieces
            raise ConfigError(
                f"a batch of {batch_size} cannot be cut into equal parts for {share.of} "
                f"process{'es' if share.of > 1 else ''}{f', {parts} parts each' if parts > 1 else ''}",
                f"use a batch size that {pieces} divides, such as {f'{below} or ' if below else ''}{below + pieces}",
            )

    def __len__(self) -> int:
        """Number of batches in a whole epoch, over all processes."""
        return self.count // self.batch_size if self.seed is not None else -(-self.count // self.batch_size)

    def before(self, batch: int) -> int:
        """How many samples of an epoch come before a batch."""
        return min(batch * self.batch_size, self.count)

    def indices(self, epoch: int) -> list[int]:
        """All samples in the order of that epoch."""
        if self.seed is None:
            return list(range(self.count))
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
        order: list[int] = torch.randperm(self.count, generator=generator).tolist()
        return order if self.groups is None else self._grouped(order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.indices(self.epoch)
        for batch in range(self.start, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            for piece in self._own(batch, chosen):
                yield [(self.epoch, index) for index in piece]

    def _grouped(self, order: Sequence[int]) -> list[int]:
        """The same samples so that those of a group stand together, a batch at a time."""
        assert self.groups is not None
        open_batches: dict[int, list[int]] = {}
        together: list[int] = []
        for index in order:
            batch = open_batches.setdefault(self.groups[index], [])
            batch.append(index)
            if len(batch) == self.batch_size:
                together += batch
                open_batches[self.groups[index]] = []
        rest = {index for batch in open_batches.values() for index in batch}
        return together + [index for index in order if index in rest]

    def _own(self, batch: int, chosen: list[int]) -> Iterator[list[int]]:
        """What this process takes of a batch."""
        if self.seed is None:
            if batch % self.share.of == self.share.index:
                yield chosen
            return
        size = self.batch_size // (self.share.of * self.parts)
        for part in range(self.parts):
            first = (part * self.share.of + self.share.index) * size
            yield chosen[first : first + size]


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed that depends on every one of the numbers, and differently on their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
