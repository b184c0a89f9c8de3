"""Training: one engine, tasks, recipes and schedules."""

from nlprobe.training.action import ActionScores, evaluate_videos
from nlprobe.training.action_recipes import ActionRecipe
from nlprobe.training.catalogue import recipe, recipe_from_dict, recipe_names
from nlprobe.training.classification import Classification, Scores, check_data, evaluate, rank_of_label
from nlprobe.training.confusion import SegmentationScores
from nlprobe.training.detection import Found, detect
from nlprobe.training.detection_recipes import DetectionRecipe
from nlprobe.training.detection_scores import DetectionScores, score_detections
from nlprobe.training.engine import Engine, Observer
from nlprobe.training.optimisers import Optimiser
from nlprobe.training.progress import Progress
from nlprobe.training.recipes import Recipe
from nlprobe.training.schedules import Schedule
from nlprobe.training.segmentation import evaluate_segmentation
from nlprobe.training.segmentation_inference import Inference
from nlprobe.training.segmentation_recipes import SegmentationRecipe
from nlprobe.training.task import Loss, Task

__all__ = [
    "ActionRecipe",
    "ActionScores",
    "Classification",
    "DetectionRecipe",
    "DetectionScores",
    "Engine",
    "Found",
    "Inference",
    "Loss",
    "Observer",
    "Optimiser",
    "Progress",
    "Recipe",
    "Schedule",
    "Scores",
    "SegmentationRecipe",
    "SegmentationScores",
    "Task",
    "check_data",
    "detect",
    "evaluate",
    "evaluate_segmentation",
    "evaluate_videos",
    "rank_of_label",
    "recipe",
    "recipe_from_dict",
    "recipe_names",
    "score_detections",
]
