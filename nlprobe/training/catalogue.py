"""Recipes by name, and from their description."""

from collections.abc import Mapping
from typing import Any

from nlprobe.errors import ConfigError
from nlprobe.suggestions import did_you_mean
from nlprobe.training.action_recipes import (
    KINETICS,
    KINETICS_CHOICES,
    KINETICS_INFLATED,
    MINIATURE_KINETICS,
    ActionRecipe,
)
from nlprobe.training.detection_recipes import (
    COCO,
    COCO_2X,
    COCO_3X,
    COCO_CHOICES,
    COCO_SYNC,
    MINIATURE_COCO,
    DetectionRecipe,
)
from nlprobe.training.recipes import IMAGENET, IMAGENET_CHOICES, MINIATURE_IMAGENET, Recipe, flatten
from nlprobe.training.segmentation_recipes import (
    CITYSCAPES,
    CITYSCAPES_CHOICES,
    MINIATURE_CITYSCAPES,
    SegmentationRecipe,
)

RECIPE_CLASSES: dict[str, type[Recipe]] = {
    "classification": Recipe,
    "segmentation": SegmentationRecipe,
    "action_recognition": ActionRecipe,
    "detection": DetectionRecipe,
}
"""The class of recipes by task."""

CHOICES = {
    "imagenet": IMAGENET_CHOICES,
    "cityscapes": CITYSCAPES_CHOICES,
    **dict.fromkeys(("kinetics", "kinetics-inflated"), KINETICS_CHOICES),
    **dict.fromkeys(("coco", "coco-syncbn", "coco-2x", "coco-3x"), COCO_CHOICES),
}
"""What recipes do where the text that they follow leaves something open; `--dry-run` shows them."""

_KNOWN: tuple[Recipe, ...] = (
    *(IMAGENET, MINIATURE_IMAGENET, CITYSCAPES, MINIATURE_CITYSCAPES),
    *(KINETICS, KINETICS_INFLATED, MINIATURE_KINETICS),
    *(COCO, COCO_SYNC, COCO_2X, COCO_3X, MINIATURE_COCO),
)
_RECIPES = {known.name: known for known in _KNOWN}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: there is none, with close matches.
    """
    if name not in _RECIPES:
        raise ConfigError(f"unknown recipe `{name}`", did_you_mean(name, list(_RECIPES)))
    return _RECIPES[name]


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return list(_RECIPES)


def recipe_from_dict(settings: Mapping[str, Any]) -> Recipe:
    """The inverse of a recipe's `as_dict`.

    Raises:
        ConfigError: an unknown task or key, or a value that does not fit.
    """
    task = settings.get("task", "classification")
    if task not in RECIPE_CLASSES:
        raise ConfigError(f"a recipe for the unknown task `{task}`", did_you_mean(str(task), RECIPE_CLASSES))
    return RECIPE_CLASSES[task](name=str(settings.get("name", ""))).override(flatten(settings))
