"""How `nlprobe eval` scores networks for action recognition."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from nlprobe.commands.scoring import Effect, Scoring, refuse_other_classes
from nlprobe.commands.sources import Labelled
from nlprobe.data import Batch, ClipPreprocessing, ImageDataset
from nlprobe.data.preprocessing import Transform
from nlprobe.errors import DataError
from nlprobe.processes import ALONE, Processes
from nlprobe.stats.intervals import Estimate, bootstrap_mean, paired_difference
from nlprobe.tables import Cell, Column, Table
from nlprobe.training import ActionRecipe, ActionScores, evaluate_videos, recipe_from_dict


class ActionScoring(Scoring):
    """Top-1 and top-5 by video and by clip.

    Args:
        clips: Clips of a video; by default as many as the checkpoint's recipe says.
        crops: Crops of a clip; the same.
    """

    batch_size = 1
    title = "Accuracy"
    notes = (
        "By video: the mean of the softmax over its views. By clip: each view by itself.",
        "Intervals: 95 % bootstrap over videos.",
    )

    def __init__(self, clips: int | None = None, crops: int | None = None) -> None:
        self.clips, self.crops = clips, crops

    def check(self, one: Labelled, dataset: ImageDataset) -> None:
        """Make sure that class k means the same to the network and the data set."""
        if dataset.holds != "videos" or dataset.classes is None or dataset.labels is None:
            raise DataError(
                f"`{dataset.root}` ({dataset.kind}) is without classes of videos",
                "accuracy needs a data set like Kinetics, or a folder of videos for each class",
            )
        refuse_other_classes(one, dataset)

    def views(self, one: Labelled) -> tuple[int, int]:
        """Clips and crops."""
        metadata = one.checkpoint.metadata
        trained = recipe_from_dict(metadata["recipe"]) if metadata.get("recipe") else ActionRecipe("")
        assert isinstance(trained, ActionRecipe)
        return self.clips or trained.clips, self.crops or trained.crops

    def transform(self, one: Labelled) -> Transform:
        """All views of a video, (views, 3, T, H, W)."""
        preprocessing = one.preprocessing
        assert isinstance(preprocessing, ClipPreprocessing)
        return preprocessing.views(*self.views(one))

    def describe(self, one: Labelled) -> str:
        """What videos go through, in a line."""
        clips, crops = self.views(one)
        return f"{one.preprocessing}; {clips} clips of {crops} crops, without the crop above"

    def score(
        self,
        one: Labelled,
        batches: Iterable[Batch],
        device: torch.device,
        processes: Processes = ALONE,
        order: Sequence[str] = (),
    ) -> ActionScores:
        """Ranks by video and by view."""
        model = one.checkpoint.model.to(device)
        scores = evaluate_videos(model, batches, device, processes=processes, order=order)
        assert scores is not None
        return scores

    def effects(self, before: ActionScores, after: ActionScores, seed: int) -> list[Effect]:
        """Of top-1 and, where there are more than five classes, top-5, by video."""
        found = []
        for k in (1, 5) if before.classes > 5 else (1,):
            old, new = before.hits(k), after.hits(k)
            estimates = bootstrap_mean(old, seed=seed), bootstrap_mean(new, seed=seed)
            found.append(Effect(f"top{k}", *estimates, paired_difference(new, old, seed=seed)))
        return found

    def table(self, rows: Sequence[tuple[str, Any, int]], title: str, seed: int) -> Table:
        """A line for each network."""
        columns = [Column("model"), *(Column(name) for name in ("top1", "top5", "clip_top1", "clip_top5"))]
        columns += [Column("videos"), Column("unreadable")]
        lines: list[list[object]] = []
        for label, scores, unreadable in rows:
            cells: list[object] = []
            for values in (scores.hits, scores.clip_hits):
                for k in (1, 5):
                    known = scores.classes > k or k == 1
                    cells.append(_cell(bootstrap_mean(values(k), seed=seed)) if known else None)
            lines.append([label, *cells, len(scores.ids), unreadable])
        return Table.of(title, columns, lines, notes=self.notes)


def _cell(estimate: Estimate) -> Cell:
    return Cell(estimate.mean, estimate.low, estimate.high, estimate.n)
