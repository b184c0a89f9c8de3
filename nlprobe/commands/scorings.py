"""How the networks of each task are scored where nothing else is asked for."""

from collections.abc import Callable

from nlprobe.commands.scoring import ClassificationScoring, Scoring
from nlprobe.commands.segmentation_scoring import SegmentationScoring
from nlprobe.commands.sources import Named

SCORINGS: dict[str, Callable[[], Scoring]] = {
    "classification": ClassificationScoring,
    "segmentation": lambda: SegmentationScoring({}, by_class=False, predictions=None),
}
"""By task."""


def task_of(one: Named) -> str | None:
    """The task that a checkpoint was trained for; None for other networks, of which nobody says it."""
    if one.checkpoint is None:
        return None
    task: str = one.checkpoint.metadata.get("recipe", {}).get("task", "classification")
    return task
