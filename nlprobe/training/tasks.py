"""The tasks by name: how their data are checked, and what trains and scores a network on them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nlprobe.data import Batches, ImageDataset
from nlprobe.errors import ConfigError
from nlprobe.processes import Processes
from nlprobe.suggestions import did_you_mean
from nlprobe.training.action import Action, check_videos
from nlprobe.training.classification import Classification, check_data
from nlprobe.training.detection import Detection, check_instances
from nlprobe.training.recipes import Recipe
from nlprobe.training.segmentation import Segmentation, check_label_maps
from nlprobe.training.task import Task


@dataclass(frozen=True)
class TaskKind:
    """What a run has to know of a task before there is an engine.

    Attributes:
        check: Raises a DataError where a training and a validation set are none that the task can be learnt from in
            batches of so many images.
        make: The task itself, from training batches, validation batches, recipe, device and this process among others.
        validation_batch: Images scored at a time, at most; scores are computed on the same batches whatever the number
            of processes, so it does not grow with it.
    """

    check: Callable[[ImageDataset, ImageDataset, int], None]
    make: Callable[[Batches, Batches, Recipe, torch.device, Processes], Task]
    validation_batch: int


TASKS = {
    "classification": TaskKind(check_data, Classification, validation_batch=64),
    "segmentation": TaskKind(check_label_maps, Segmentation, validation_batch=1),
    "action_recognition": TaskKind(check_videos, Action, validation_batch=16),
    "detection": TaskKind(check_instances, Detection, validation_batch=1),
}


def task_kind(name: str) -> TaskKind:
    """The task of that name.

    Raises:
        ConfigError: there is none, with close matches.
    """
    if name not in TASKS:
        raise ConfigError(f"nlprobe trains no task `{name}`", did_you_mean(name, TASKS))
    return TASKS[name]
