"""A learnable toy set in memory and a network of a few thousand parameters, so that a run takes a second."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from training_reference import CONFIG, Stripes

from nlprobe.data import Augmentation, ImageDataset, Preprocessing
from nlprobe.models import ResNetConfig
from nlprobe.training import Recipe
from nlprobe.training.run import Run
from nlprobe.training.schedules import Schedule

RECIPE = replace(
    Recipe("toy"),
    epochs=3,
    batch_size=8,
    schedule=Schedule("cosine", warmup_epochs=1.0),
    augmentation=Augmentation(area=(0.5, 1.0), flip=0.5),
    preprocessing=Preprocessing(32, 32),
)

MakeRun = Callable[..., Run]


@pytest.fixture
def make_run() -> MakeRun:
    """A function that makes a toy run; settings of the recipe can be overridden."""

    def make(
        seed: int = 0, training: ImageDataset | None = None, config: ResNetConfig = CONFIG, **settings: object
    ) -> Run:
        recipe = RECIPE.override({key.replace("__", "."): value for key, value in settings.items()})
        return Run(None, config, recipe, training or Stripes(40), Stripes(16, 1000), seed)

    return make
