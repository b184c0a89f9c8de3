"""Recipes: the paper's numbers, and strict overriding."""

import pytest

from nlprobe.errors import ConfigError
from nlprobe.models import entry, names
from nlprobe.training import recipe, recipe_from_dict, recipe_names
from nlprobe.training.catalogue import RECIPE_CLASSES
from nlprobe.training.recipes import flatten, parse_override


def test_imagenet_is_section_5_2_of_the_paper() -> None:
    paper = recipe("imagenet")
    assert (paper.epochs, paper.batch_size, paper.label_smoothing) == (120, 256, 0.0)
    assert (paper.optimiser.learning_rate, paper.optimiser.momentum) == (0.1, 0.9)
    assert (paper.schedule.kind, paper.schedule.warmup_epochs) == ("cosine", 0.0)
    augmentation = paper.augmentation
    assert (augmentation.rotation, augmentation.area, augmentation.aspect) == (10.0, (0.08, 1.0), (3 / 4, 4 / 3))
    assert (augmentation.flip, augmentation.hsv, augmentation.pca) == (0.5, (0.6, 1.4), 0.1)
    assert (paper.preprocessing.resize, paper.preprocessing.crop) == (256, 224)


def test_cityscapes_is_section_5_4_of_the_paper() -> None:
    paper = recipe("cityscapes")
    assert (paper.task, paper.epochs, paper.batch_size, paper.batch_norm) == ("segmentation", 160, 8, "sync")
    assert (paper.optimiser.kind, paper.optimiser.learning_rate, paper.optimiser.momentum) == ("sgd", 0.01, 0.9)
    assert (paper.schedule.kind, paper.schedule.power, paper.schedule.warmup_epochs) == ("polynomial", 0.9, 0.0)
    assert (paper.augmentation.scale, paper.augmentation.crop, paper.augmentation.flip) == ((0.5, 2.0), 769, 0.5)
    assert (paper.auxiliary, paper.ohem, paper.inference) == (0.4, 0.0, "whole")
    steps = paper.epochs * (2975 // paper.batch_size)
    assert round(steps, -4) == 60_000
    halfway = paper.schedule.factor(steps // 2, 2975 // paper.batch_size, paper.epochs)
    assert halfway == pytest.approx(0.5**0.9, rel=1e-3)


def test_digits_are_never_mirrored() -> None:
    assert recipe("miniature-imagenet").augmentation.flip == 0
    assert recipe("miniature-cityscapes").augmentation.flip == 0


@pytest.mark.parametrize("name", [name for name in names() if entry(name).task in RECIPE_CLASSES])
def test_every_model_of_the_zoo_has_a_recipe_that_fits_it(name: str) -> None:
    known = entry(name)
    fitting = recipe(known.recipe)
    assert fitting.task == known.task
    if known.task == "detection":  # whose pictures come in sizes of their own
        assert known.input_shape[1] % fitting.preprocessing.pad == 0
        return
    seen = fitting.augmentation.crop if known.task == "segmentation" else fitting.preprocessing.crop
    assert seen == known.input_shape[-1 if known.task == "action_recognition" else 1]


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_survive_json(name: str) -> None:
    assert recipe_from_dict(recipe(name).as_dict()) == recipe(name)


def test_an_override_changes_one_number() -> None:
    changed = recipe("imagenet").override({"optimiser.momentum": 0.8, "epochs": 2})
    before, after = flatten(recipe("imagenet").as_dict()), flatten(changed.as_dict())
    assert {key for key in before if before[key] != after[key]} == {"optimiser.momentum", "epochs"}


def test_settings_that_only_go_together_are_set_together() -> None:
    changed = recipe("imagenet").override({"schedule.kind": "step", "schedule.milestones": [30, 60]})
    assert changed.schedule.milestones == (30.0, 60.0)


def test_lists_of_texts_are_taken() -> None:
    changed = recipe("imagenet").override({"frozen": ["c1", "c2"], "optimiser.rules": ["fc.* lr=10"]})
    assert changed.frozen == ("c1", "c2")
    assert changed.optimiser.rules == ("fc.* lr=10",)
    assert recipe_from_dict(changed.as_dict()) == changed


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.momentum", 0.8, "did you mean `optimiser`"),
        ("optimiser.momentun", 0.8, "unknown setting `optimiser.momentun`"),
        ("optimiser", 0.8, "it has parts: `optimiser.kind`"),
        ("epochs.x", 1, "has no part `x`"),
        ("epochs", 1.5, "give a whole number"),
        ("epochs", True, "give a whole number"),
        ("epochs", 0, "use 1 or more"),
        ("optimiser.nesterov", 1, "give true or false"),
        ("optimiser.learning_rate", "fast", "give a number"),
        ("optimiser.learning_rate", -1, "the learning rate is positive"),
        ("augmentation.area", "all", "give a list of numbers"),
        ("augmentation.area", ["a", 1], "give a list of numbers"),
        ("preprocessing.interpolation", 3, "give text"),
        ("label_smoothing", 1.0, "less than 1"),
        ("accumulate", 0, "use 1 or more"),
        ("amp", "fp61", "did you mean `fp16`"),
        ("batch_norm", "synced", "did you mean `sync`"),
        ("frozen", "c1", "give a list of texts"),
        ("frozen", [1], "give a list of texts"),
        ("optimiser.rules", [3], "give a list of texts"),
        ("optimiser.betas", [0.9, 1.0], "two numbers"),
    ],
)
def test_wrong_overrides_are_named(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe("imagenet").override({key: value})


def test_an_unknown_recipe_comes_with_close_names() -> None:
    with pytest.raises(ConfigError, match="did you mean `imagenet`"):
        recipe("imagnet")


def test_overrides_are_read_as_toml() -> None:
    assert parse_override("optimiser.momentum=0.8") == ("optimiser.momentum", 0.8)
    assert parse_override("augmentation.area = [0.5, 1]") == ("augmentation.area", [0.5, 1])
    assert parse_override("optimiser.nesterov=true") == ("optimiser.nesterov", True)
    assert parse_override("schedule.kind=step") == ("schedule.kind", "step")
    with pytest.raises(ConfigError, match="is not `key=value`"):
        parse_override("epochs 3")


def test_a_recipe_for_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown task `clasification`") as caught:
        recipe_from_dict({"name": "mine", "task": "clasification"})
    assert "classification" in caught.value.remedy
