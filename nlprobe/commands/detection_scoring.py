"""How `nlprobe eval` scores networks for object detection and instance segmentation."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlprobe.commands.scoring import Effect, Scoring, refuse_other_classes
from nlprobe.commands.sources import Labelled
from nlprobe.data import Batch, ImageDataset, Joint, scored
from nlprobe.processes import ALONE, Processes
from nlprobe.stats.intervals import Estimate, bootstrap_of_counts
from nlprobe.tables import Cell, Column, Table
from nlprobe.training import DetectionScores, Found, detect, score_detections
from nlprobe.training.detection_results import Kind, write_results
from nlprobe.training.detection_scores import METRICS, AveragePrecision, whole_of

RESAMPLES = 300
"""Bootstrap samples of the pictures; each is as much work as scoring once without matching."""

SHOWN: tuple[tuple[Kind, str], ...] = (("box", "ap"), ("box", "ap50"), ("mask", "ap"), ("mask", "ap50"))
"""The scores that an intervention is judged by; the table of scores has all."""


class DetectionScoring(Scoring):
    """COCO's average precision of boxes and masks, by `pycocotools`.

    Args:
        by_class: A line for each class in place of one for each network.
        predictions: A folder for COCO's results JSON.
    """

    batch_size = 1
    title = "Average precision"
    notes = (
        "AP: mean over overlaps of .5 to .95; AP50, AP75: at one; S, M, L: of objects below 32² pixels, 96², above.",
        f"Intervals: 95 % bootstrap over images, {RESAMPLES} samples.",
    )

    def __init__(self, *, by_class: bool = False, predictions: Path | None = None) -> None:
        self.by_class, self.predictions = by_class, predictions
        self._dataset: ImageDataset | None = None

    def check(self, one: Labelled, dataset: ImageDataset) -> None:
        """Make sure that there are objects, of the classes that the network knows."""
        whole_of(dataset)
        refuse_other_classes(one, dataset)
        self._dataset = dataset

    def transform(self, one: Labelled) -> Joint:
        """Pictures in the size in which the checkpoint measures them."""
        return scored(one.preprocessing)

    def score(
        self,
        one: Labelled,
        batches: Iterable[Batch],
        device: torch.device,
        processes: Processes = ALONE,
        order: Sequence[str] = (),
    ) -> Found:
        """What is found in each image."""
        found = detect(one.checkpoint.model.to(device), batches, device, processes=processes, order=order)
        assert found is not None
        if self.predictions is not None and processes.leads:
            for kind in found.kinds:
                name = f"{one.label.replace('/', '_')}_{'bbox' if kind == 'box' else 'segm'}.json"
                write_results(self.predictions / name, found.detections, whole_of(self._data()).categories, kind)
        return found

    def effects(self, before: Found, after: Found, seed: int) -> list[Effect]:
        """Of AP and AP50, paired over images."""
        old, new = (score_detections(self._data(), found.detections, found.kinds) for found in (before, after))
        effects = []
        for kind in old.kinds:
            pair = [scores.kinds[kind] for scores in (old, new)]
            chosen = [METRICS.index(name) for own, name in SHOWN if own == kind]

            def three(
                counts: np.ndarray, pair: list[AveragePrecision] = pair, chosen: list[int] = chosen
            ) -> np.ndarray:
                first, second = (each.at(counts)[chosen] for each in pair)
                return np.concatenate([first, second, second - first])

            estimates = _estimates(len(old.image_ids), three, seed)
            for place, number in enumerate(chosen):
                name = f"{kind}_{METRICS[number]}"
                effects.append(Effect(name, *estimates[place :: len(chosen)]))
        return effects

    def table(self, rows: Sequence[tuple[str, Any, int]], title: str, seed: int) -> Table:
        """A line for each network, or for each class."""
        scores = [
            (label, score_detections(self._data(), found.detections, found.kinds), unreadable)
            for label, found, unreadable in rows
        ]
        if self.by_class:
            return _table_by_class(scores, title, self.notes[:1])
        kinds = list(dict.fromkeys(kind for _, each, _ in scores for kind in each.kinds))
        columns = [Column("model")]
        columns += [Column(f"{kind}_{name}", head=_HEADS[name], group=kind) for kind in kinds for name in METRICS]
        columns += [Column("images"), Column("unreadable")]
        lines: list[list[object]] = []
        for label, each, unreadable in scores:
            cells: list[object] = []
            for kind in kinds:
                cells += _cells(each, kind, seed) if kind in each.kinds else [None] * len(METRICS)
            lines.append([label, *cells, len(each.image_ids), unreadable])
        return Table.of(title, columns, lines, notes=self.notes)

    def _data(self) -> ImageDataset:
        assert self._dataset is not None
        return self._dataset


_HEADS = dict(zip(METRICS, ("AP", "AP50", "AP75", "S", "M", "L"), strict=True))


def _cells(scores: DetectionScores, kind: Kind, seed: int) -> list[object]:
    one, n = scores.kinds[kind], len(scores.image_ids)
    estimates = _estimates(n, lambda counts: one.at(counts), seed)
    return [
        None if np.isnan(value) else Cell(value, estimate.low, estimate.high, n)
        for value, estimate in zip(one.values.values(), estimates, strict=True)
    ]


def _estimates(n: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int) -> list[Estimate]:
    numbers = zip(*bootstrap_of_counts(n, statistic, seed=seed, resamples=RESAMPLES), strict=True)
    return [Estimate(float(mean), float(low), float(high), n) for mean, low, high in numbers]


def _table_by_class(scores: Sequence[tuple[str, DetectionScores, int]], title: str, notes: Sequence[str]) -> Table:
    """AP of every class; a column for each network and kind."""
    first = scores[0][1]
    columns = [Column("class")]
    columns += [Column(f"{label} {kind}") for label, each, _ in scores for kind in each.kinds]
    values = [each.kinds[kind].by_class for _, each, _ in scores for kind in each.kinds]
    means = [each.kinds[kind].values["ap"] for _, each, _ in scores for kind in each.kinds]
    lines: list[list[object]] = [
        [name, *(None if np.isnan(own[place]) else float(own[place]) for own in values)]
        for place, name in enumerate(first.classes)
    ]
    return Table.of(f"{title}, by class", columns, [*lines, ["mean", *means]], notes=notes)
