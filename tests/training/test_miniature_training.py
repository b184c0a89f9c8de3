"""What the miniature ImageNet is for: a non-local network learns it in minutes, and needs the whole scene to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from nlprobe.data import ImageDataset, Preprocessing, open_dataset, write_miniature_imagenet
from nlprobe.models import entry
from nlprobe.training import recipe
from nlprobe.training.run import Run

CONFIG = entry("miniature-imagenet/resnet-nl").config
RECIPE = recipe("miniature-imagenet")


class Objects(ImageDataset):
    """Every `step`-th object of a miniature ImageNet, cut out with its box and labelled with the class of its scene."""

    kind = "objects"

    def __init__(self, root: Path, split: str, step: int) -> None:
        self.root = root
        scenes = json.loads((root / "annotations" / f"{split}.json").read_text())
        self.classes = sorted({scene["class"] for scene in scenes})
        objects = [
            (scene["image"], number, scene["class"], seen["class"], seen["box"])
            for scene in scenes
            for number, seen in enumerate(scene["objects"])
        ][::step]
        self.ids = [f"{image}#{number}" for image, number, *_ in objects]
        self.labels = [self.classes.index(scene) for _, _, scene, _, _ in objects]
        self.own = [self.classes.index(own) for _, _, _, own, _ in objects]
        self._boxes = [box for *_, box in objects]
        self._folder = root / split

    def picture(self, index: int) -> Image.Image:
        with Image.open(self._folder / self.ids[index].split("#")[0]) as scene:
            return scene.crop(self._boxes[index])

    def size(self, index: int) -> int:
        return 0


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_imagenet(tmp_path_factory.mktemp("miniature"))


@pytest.mark.slow
def test_a_network_that_sees_the_scene_leaves_one_that_sees_an_object_far_behind(
    miniature: Path, device: torch.device
) -> None:
    scenes = Run(None, CONFIG, RECIPE, open_dataset(miniature, "train"), open_dataset(miniature)).engine(device)
    scenes.train()
    assert scenes.progress.best is not None
    assert scenes.progress.best >= 0.85

    training, validation = Objects(miniature, "train", 3), Objects(miniature, "val", 1)
    ceiling = sum(own == label for own, label in zip(validation.own, validation.labels, strict=True)) / len(validation)
    assert 0.5 < ceiling < 0.58
    small = replace(RECIPE, epochs=5, preprocessing=Preprocessing(48, 48))
    objects = Run(None, CONFIG, small, training, validation).engine(device)
    objects.train()
    assert objects.progress.best is not None
    # It learns what there is to learn from an object, and that is not enough.
    assert 0.4 < objects.progress.best < ceiling + 0.03
    assert scenes.progress.best - objects.progress.best > 0.25
