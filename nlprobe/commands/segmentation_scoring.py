"""How `nlprobe eval` scores networks for semantic segmentation."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nlprobe.commands.scoring import Effect, Scoring, refuse_other_classes
from nlprobe.commands.sources import Labelled
from nlprobe.data import Batch, ImageDataset, Joint, LabelMapDataset, whole
from nlprobe.data.label_maps import coloured
from nlprobe.data.part import Part
from nlprobe.errors import DataError
from nlprobe.files import atomic_path
from nlprobe.processes import ALONE, Processes
from nlprobe.stats.intervals import Estimate, bootstrap_of_sum
from nlprobe.tables import Cell, Column, Table
from nlprobe.training import (
    Inference,
    SegmentationRecipe,
    SegmentationScores,
    evaluate_segmentation,
    recipe_from_dict,
)
from nlprobe.training.confusion import intersection_over_union, mean_iou, pixel_accuracy
from nlprobe.training.segmentation import inference_of


class SegmentationScoring(Scoring):
    """Mean intersection over union, by class on request.

    Args:
        changes: What is other than the checkpoint's recipe says in the way in which pictures are scored.
        by_class: A line for each class in place of one for each network.
        predictions: A folder for pictures of the predicted classes.
    """

    batch_size = 1
    title = "Mean intersection over union"

    def __init__(self, changes: dict[str, Any], *, by_class: bool, predictions: Path | None) -> None:
        self.changes, self.by_class, self.predictions = changes, by_class, predictions
        self._dataset: LabelMapDataset | None = None
        self._classes: list[str] = []

    def check(self, one: Labelled, dataset: ImageDataset) -> None:
        """Make sure that there are maps, of the classes that the network knows."""
        maps = dataset.whole if isinstance(dataset, Part) else dataset
        if not isinstance(maps, LabelMapDataset) or not maps.has_maps:
            raise DataError(
                f"`{dataset.root}` ({dataset.kind}) has no maps of classes",
                "segmentation is scored on a data set like Cityscapes, with `leftImg8bit` and `gtFine`",
            )
        refuse_other_classes(one, dataset)
        self._dataset, self._classes = maps, list(dataset.classes or ())

    def transform(self, one: Labelled) -> Joint:
        """Whole pictures with their maps, as the checkpoint's recipe normalises them."""
        return whole(one.preprocessing)

    def describe(self, one: Labelled) -> str:
        """What pictures go through, in a line."""
        return f"{one.preprocessing}; {self.inference_of(one)}"

    def inference_of(self, one: Labelled) -> Inference:
        """What the checkpoint's recipe or the registry says, with what was asked for."""
        metadata = one.checkpoint.metadata
        if "recipe" not in metadata:  # a network of another project, or what was made of one
            published = Inference(**metadata.get("inference", {}))
        else:
            trained = recipe_from_dict(metadata["recipe"])
            assert isinstance(trained, SegmentationRecipe)
            published = inference_of(trained)
        return replace(published, **self.changes)

    def score(
        self,
        one: Labelled,
        batches: Iterable[Batch],
        device: torch.device,
        processes: Processes = ALONE,
        order: Sequence[str] = (),
    ) -> SegmentationScores:
        """Confusion matrices and losses; each process writes the predictions for its own images."""

        def keep(ids: Sequence[str], predicted: Tensor) -> None:
            if self.predictions is not None:
                self._write(self.predictions / one.label.replace("/", "_"), ids, predicted.cpu().numpy())

        scores = evaluate_segmentation(
            one.checkpoint.model.to(device),
            batches,
            device,
            inference=self.inference_of(one),
            keep=keep,
            processes=processes,
            order=order,
        )
        assert scores is not None
        return scores

    def effects(self, before: SegmentationScores, after: SegmentationScores, seed: int) -> list[Effect]:
        """Of the mean IoU and of the share of pixels that are right."""
        pairs = np.stack([before.confusion, after.confusion], 1)  # (images, 2, classes, classes)
        found = []
        for name, statistic in (("miou", mean_iou), ("pixel_accuracy", pixel_accuracy)):

            def three(summed: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = statistic) -> np.ndarray:
                old, new = statistic(summed)
                return np.array([old, new, new - old])

            numbers = zip(*bootstrap_of_sum(pairs, three, seed=seed), strict=True)
            estimates = [Estimate(float(mean), float(low), float(high), len(pairs)) for mean, low, high in numbers]
            found.append(Effect(name, *estimates))
        return found

    def table(self, rows: Sequence[tuple[str, Any, int]], title: str, seed: int) -> Table:
        """A line for each network, or for each class."""
        if self.by_class:
            return self._table_by_class(rows, title, seed)
        columns = [Column(name) for name in ("model", "miou", "pixel_accuracy", "loss", "images", "unreadable")]
        lines = []
        for label, scores, unreadable in rows:
            miou, accuracy = (_cells(scores, statistic, seed)[0] for statistic in (mean_iou, pixel_accuracy))
            lines.append([label, miou, accuracy, scores.means()["loss"], len(scores.ids), unreadable])
        return Table.of(title, columns, lines, notes=self.notes)

    def _table_by_class(self, rows: Sequence[tuple[str, Any, int]], title: str, seed: int) -> Table:
        columns = [Column("class"), *(Column(label) for label, _, _ in rows)]
        cells = [
            [*_cells(scores, intersection_over_union, seed), *_cells(scores, mean_iou, seed)] for _, scores, _ in rows
        ]
        lines = [[name, *each] for name, *each in zip([*self._classes, "mean"], *cells, strict=True)]
        return Table.of(f"{title}, by class", columns, lines, notes=self.notes)

    def _write(self, folder: Path, ids: Sequence[str], predicted: np.ndarray) -> None:
        """Write the classes of each image as grey values, and in the data set's colours."""
        assert self._dataset is not None
        for name, classes in zip(ids, predicted, strict=True):
            stem = (folder / name).with_suffix("")
            grey, colours = Image.fromarray(classes.astype(np.uint8)), coloured(classes, self._dataset.palette)
            for ending, picture in (("classes", grey), ("color", colours)):
                with atomic_path(stem.with_name(f"{stem.name}_{ending}.png")) as temporary:
                    picture.save(temporary, format="PNG")


def _cells(scores: SegmentationScores, statistic: Callable[[np.ndarray], np.ndarray], seed: int) -> list[Cell]:
    """A statistic of the summed confusion matrix, one cell for each of its numbers."""
    values = bootstrap_of_sum(scores.confusion, statistic, seed=seed)
    return [
        Cell(float(mean), float(low), float(high), len(scores.ids)) for mean, low, high in zip(*values, strict=True)
    ]
