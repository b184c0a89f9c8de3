"""What `nlprobe eval` knows of a task: how a network is scored, and what its table says; classification."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nlprobe.commands.sources import Labelled
from nlprobe.data import Batch, ImageDataset, Joint
from nlprobe.data.preprocessing import Transform
from nlprobe.errors import DataError
from nlprobe.processes import ALONE, Processes
from nlprobe.stats.intervals import Estimate, bootstrap_mean, paired_difference
from nlprobe.tables import Cell, Column, Table
from nlprobe.training import Scores, evaluate


@dataclass(frozen=True)
class Effect:
    """A score of a network before and after a change, and the difference after − before over the same images."""

    metric: str
    before: Estimate
    after: Estimate
    difference: Estimate


class Scoring(ABC):
    """How the networks of one task are scored.

    Attributes:
        batch_size: Images at a time where nothing else is asked for.
        title: What the table is of.
        notes: What its reader needs to know.
    """

    batch_size: int
    title: str
    notes: tuple[str, ...] = ("Intervals: 95 % bootstrap over images.",)

    def describe(self, one: Labelled) -> str:
        """What pictures go through, in a line."""
        return str(one.preprocessing)

    @abstractmethod
    def check(self, one: Labelled, dataset: ImageDataset) -> None:
        """Raise a DataError where the network cannot be scored on the data set."""

    @abstractmethod
    def transform(self, one: Labelled) -> Transform | Joint:
        """What pictures and their labels go through for the network."""

    @abstractmethod
    def score(
        self,
        one: Labelled,
        batches: Iterable[Batch],
        device: torch.device,
        processes: Processes = ALONE,
        order: Sequence[str] = (),
    ) -> Any:
        """The scores of one network; of several processes each has its own batches, and all get the scores of all.

        Args:
            one: The network.
            batches: Those of this process.
            device: Where to compute.
            processes: Those that score together.
            order: Names of all images in their order.
        """

    @abstractmethod
    def effects(self, before: Any, after: Any, seed: int) -> list["Effect"]:
        """What a change of a network does to its scores on the same images, with paired intervals."""

    @abstractmethod
    def table(self, rows: Sequence[tuple[str, Any, int]], title: str, seed: int) -> Table:
        """The table of all networks: label, scores, number of images that could not be read."""


class ClassificationScoring(Scoring):
    """Single-crop top-1 and top-5."""

    batch_size = 64
    title = "Single-crop accuracy"

    def check(self, one: Labelled, dataset: ImageDataset) -> None:
        """Make sure that label k means the same to the network and the data set."""
        if dataset.classes is None or dataset.labels is None:
            raise DataError(
                f"`{dataset.root}` ({dataset.kind}) is without labels for whole images",
                "accuracy needs a folder for each class",
            )
        refuse_other_classes(one, dataset)

    def transform(self, one: Labelled) -> Transform:
        """The checkpoint's own preprocessing."""
        return one.preprocessing.transform()

    def score(
        self,
        one: Labelled,
        batches: Iterable[Batch],
        device: torch.device,
        processes: Processes = ALONE,
        order: Sequence[str] = (),
    ) -> Scores:
        """Ranks and losses."""
        scores = evaluate(one.checkpoint.model.to(device), batches, device, processes=processes, order=order)
        assert scores is not None
        return scores

    def effects(self, before: Scores, after: Scores, seed: int) -> list[Effect]:
        """Of top-1 and, where there are more than five classes, of top-5; of the loss."""
        shares = [("top1", 1), ("top5", 5)] if before.classes > 5 else [("top1", 1)]
        values = [(name, before.hits(k), after.hits(k)) for name, k in shares]
        values.append(("loss", before.losses, after.losses))
        return [
            Effect(
                name,
                bootstrap_mean(old, seed=seed),
                bootstrap_mean(new, seed=seed),
                paired_difference(new, old, seed=seed),
            )
            for name, old, new in values
        ]

    def table(self, rows: Sequence[tuple[str, Any, int]], title: str, seed: int) -> Table:
        """A line for each network."""
        columns = [Column(name) for name in ("model", "top1", "top5", "loss", "images", "unreadable")]
        lines = []
        for label, scores, unreadable in rows:
            top5 = _cell(bootstrap_mean(scores.hits(5), seed=seed)) if scores.classes > 5 else None
            top1 = _cell(bootstrap_mean(scores.hits(1), seed=seed))
            lines.append([label, top1, top5, float(scores.losses.mean()), len(scores.ids), unreadable])
        return Table.of(title, columns, lines, notes=self.notes)


def _cell(estimate: Estimate) -> Cell:
    return Cell(estimate.mean, estimate.low, estimate.high, estimate.n)


def refuse_other_classes(one: Labelled, dataset: ImageDataset) -> None:
    """Make sure that class k means the same to the network and the data set.

    Raises:
        DataError: the data set has other classes than the network was trained on.
    """
    trained = one.checkpoint.metadata.get("classes")
    if trained is not None and list(trained) != dataset.classes:
        known = dataset.classes or []
        odd = sorted(set(trained) ^ set(known)) or ["their order"]
        raise DataError(
            f"`{one.label}` was trained on {len(trained)} classes, `{dataset.root}` has {len(known)}, "
            f"and they differ, for one in `{odd[0]}`",
            "score it on the data set that it was trained on",
        )
