"""A training step, and an epoch with its loading, against the loop of torchvision's classification references.

The peer is `train_one_epoch` of pytorch/vision's `references/classification/train.py` and what it calls, written out:
plain loop, loss and accuracy read after every step, smoothed meters, no mixed precision. Model, batch, transforms and
worker processes are the same on both sides.
"""

import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.pairs import Row, main
from nlprobe.data import Batch, Batches, open_dataset, write_miniature_imagenet
from nlprobe.models import build
from nlprobe.training import Classification, Engine, Progress, Recipe, recipe
from nlprobe.training.task import Stop

CPU = torch.device("cpu")
WORKERS = 1
STEPS = 2
STEP = Recipe("step", epochs=1, batch_size=8)
EPOCH = recipe("miniature-imagenet").override({"epochs": 1, "channels_last": False})


class Unvalidated(Classification):
    """Classification whose epochs end without a validation."""

    def validate(self, model: nn.Module, stop: Stop) -> dict[str, float] | None:
        return {"top1": 0.0}


class Fixed(Unvalidated):
    """The same batch, `STEPS` times."""

    def steps_per_epoch(self) -> int:
        return STEPS

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        images, labels = batch()
        for _ in range(STEPS):
            yield Batch(images, labels, [str(number) for number in range(len(labels))], [])


@dataclass
class SmoothedValue:
    """The reference's meter."""

    window: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    total: float = 0.0
    count: int = 0

    def update(self, value: float, n: int = 1) -> None:
        self.window.append(value)
        self.count += n
        self.total += value * n


def accuracy(output: Tensor, target: Tensor, topk: tuple[int, ...]) -> list[Tensor]:
    """The reference's top-k accuracy in per cent."""
    with torch.inference_mode():
        _, pred = output.topk(max(topk), 1, largest=True, sorted=True)
        correct = pred.t().eq(target[None])
        return [correct[:k].flatten().sum(dtype=torch.float32) * (100.0 / len(target)) for k in topk]


def train_one_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: Iterable[tuple[Tensor, Tensor]]
) -> None:
    """The reference's epoch."""
    model.train()
    meters = {name: SmoothedValue() for name in ("loss", "lr", "acc1", "acc5", "img/s")}
    for image, target in loader:
        start = time.time()
        image, target = image.to(CPU), target.to(CPU)
        output = model(image)
        loss = functional.cross_entropy(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        acc1, acc5 = accuracy(output, target, (1, 5))
        meters["loss"].update(loss.item())
        meters["lr"].update(optimizer.param_groups[0]["lr"])
        meters["acc1"].update(acc1.item(), len(image))
        meters["acc5"].update(acc5.item(), len(image))
        meters["img/s"].update(len(image) / (time.time() - start))


def reference_optimiser(model: nn.Module, settings: Recipe) -> torch.optim.Optimizer:
    own = settings.optimiser
    return torch.optim.SGD(
        model.parameters(),
        lr=own.learning_rate,
        momentum=own.momentum,
        weight_decay=own.weight_decay,
        nesterov=own.nesterov,
    )


@cache
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(STEP.batch_size, 3, 224, 224, generator=generator), torch.arange(STEP.batch_size)


@cache
def step_engine() -> Engine:
    nothing = Batches.__new__(Batches)
    return Engine(build("imagenet/resnet50", seed=0), Fixed(nothing, nothing, STEP, CPU), STEP, seed=0, device=CPU)


@cache
def step_peer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build("imagenet/resnet50", seed=0)
    return model, reference_optimiser(model, STEP)


@cache
def data() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """The folder goes with the process."""
    folder = tempfile.TemporaryDirectory()
    return folder, write_miniature_imagenet(folder.name, train=256, val=20)


@cache
def epoch_engine() -> Engine:
    transform = EPOCH.augmentation.transform(EPOCH.preprocessing)
    batches = Batches(open_dataset(data()[1], "train"), transform, EPOCH.batch_size, workers=WORKERS, seed=0)
    task = Unvalidated(batches, batches, EPOCH, CPU)
    return Engine(build("miniature-imagenet/resnet-nl", seed=0), task, EPOCH, seed=0, device=CPU)


@cache
def epoch_peer() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[tuple[Tensor, Tensor]]]:
    dataset = ImageFolder(data()[1] / "train", EPOCH.augmentation.transform(EPOCH.preprocessing))
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        dataset, EPOCH.batch_size, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True
    )
    model = build("miniature-imagenet/resnet-nl", seed=0)
    return model, reference_optimiser(model, EPOCH), loader


def run(engine: Engine) -> None:
    """One more epoch, the first again."""
    engine.progress = Progress()
    engine.train()


ROWS = [
    Row(
        f"training step, ResNet-50, {STEP.batch_size} images of 224²",
        1.03,
        "at_most",
        lambda: run(step_engine()),
        lambda: train_one_epoch(*step_peer(), [batch()] * STEPS),
    ),
    Row(
        f"epoch with loading, 256 images of 128², {WORKERS} worker",
        1.03,
        "at_most",
        lambda: run(epoch_engine()),
        lambda: train_one_epoch(*epoch_peer()),
    ),
]


if __name__ == "__main__":
    raise SystemExit(main(ROWS))
