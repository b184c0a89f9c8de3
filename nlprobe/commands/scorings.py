"""How the networks of each task are scored where nothing else is asked for."""

from collections.abc import Callable

from nlprobe.commands.action_scoring import ActionScoring
from nlprobe.commands.detection_scoring import DetectionScoring
from nlprobe.commands.scoring import ClassificationScoring, Scoring
from nlprobe.commands.segmentation_scoring import SegmentationScoring
from nlprobe.commands.sources import Named, task_of_checkpoint

SCORINGS: dict[str, Callable[[], Scoring]] = {
    "classification": ClassificationScoring,
    "segmentation": lambda: SegmentationScoring({}, by_class=False, predictions=None),
    "action_recognition": ActionScoring,
    "detection": DetectionScoring,
}
"""By task."""


def task_of(one: Named) -> str | None:
    """The task that a checkpoint was trained for; None for other networks, of which nobody says it."""
    if one.checkpoint is None:
        return None
    return task_of_checkpoint(one.checkpoint)
