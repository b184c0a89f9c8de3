"""A learnable toy set in memory, and the training loop as a tutorial would write it."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.data import ImageDataset, derived_seed
from nlprobe.models import Insertion, ResNet, ResNetConfig
from nlprobe.training.run import Run

CONFIG = ResNetConfig(
    layers=(1, 1, 2, 1),
    block="basic",
    width=4,
    classes=2,
    insertions=(Insertion(NonLocalConfig(), "c3", blocks=(0,), place="after_add"),),
)

# No statistics over a batch once the trunk's norms are frozen, so that it does not matter how batches are cut.
GLOBAL_CONTEXT = replace(CONFIG, insertions=(Insertion(ContextConfig.gc(2), "c3", blocks=(0,)),))


class Stripes(ImageDataset):
    """Noisy pictures of 16×16 in two classes: upright stripes, or level ones."""

    kind = "stripes"

    def __init__(self, count: int, offset: int = 0, classes: tuple[str, ...] = ("level", "upright")) -> None:
        self.root = Path("stripes")
        self.classes = list(classes)
        self.labels = [index % len(classes) for index in range(count)]
        self.ids = [f"{offset + index:04d}" for index in range(count)]
        self._offset = offset

    def picture(self, index: int) -> Image.Image:
        rng = np.random.default_rng(self._offset + index)
        pixels = rng.integers(0, 100, (16, 16, 3), dtype=np.uint8)
        first = int(rng.integers(4))
        if self.labels[index]:
            pixels[:, first::4] += 150
        else:
            pixels[first::4] += 150
        return Image.fromarray(pixels)

    def size(self, index: int) -> int:
        return 768


def plain_training(run: Run) -> ResNet:
    """Train with nothing but torch: samples one by one, torch's optimiser, the cosine written out."""
    recipe = run.recipe
    model = run.build()
    optimiser = torch.optim.SGD(
        model.parameters(), lr=1.0, momentum=recipe.optimiser.momentum, weight_decay=recipe.optimiser.weight_decay
    )
    transform = recipe.augmentation.transform(recipe.preprocessing)
    steps, step = len(run.training) // recipe.batch_size, 0
    model.train()
    for epoch in range(recipe.epochs):
        order = torch.randperm(
            len(run.training), generator=torch.Generator().manual_seed(derived_seed(run.seed, epoch))
        ).tolist()
        for start in range(0, steps * recipe.batch_size, recipe.batch_size):
            images, labels = [], []
            for index in order[start : start + recipe.batch_size]:
                sample = run.training[index]
                torch.manual_seed(derived_seed(run.seed, epoch, index))
                images.append(transform(sample.image))
                labels.append(sample.label)
            warm_up = recipe.schedule.warmup_epochs * steps
            if step < warm_up:
                factor = (step + 1) / (warm_up + 1)
            else:
                factor = (1 + math.cos(math.pi * (step / steps - 1) / (recipe.epochs - 1))) / 2
            optimiser.param_groups[0]["lr"] = recipe.optimiser.learning_rate * factor
            loss = functional.cross_entropy(model(torch.stack(images)), torch.tensor(labels))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
    return model
