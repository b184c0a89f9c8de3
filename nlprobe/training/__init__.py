"""Training: one engine, tasks, recipes and schedules."""

from nlprobe.training.classification import Classification, Scores, check_data, evaluate, rank_of_label
from nlprobe.training.engine import Engine, Observer
from nlprobe.training.optimisers import Optimiser
from nlprobe.training.progress import Progress
from nlprobe.training.recipes import Recipe, recipe, recipe_names
from nlprobe.training.schedules import Schedule
from nlprobe.training.task import Loss, Task

__all__ = [
    "Classification",
    "Engine",
    "Loss",
    "Observer",
    "Optimiser",
    "Progress",
    "Recipe",
    "Schedule",
    "Scores",
    "Task",
    "check_data",
    "evaluate",
    "rank_of_label",
    "recipe",
    "recipe_names",
]
