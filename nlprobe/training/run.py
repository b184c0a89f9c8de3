"""A training run: model, data, recipe and seed, and what becomes of them in an engine and in checkpoints."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nlprobe.checkpoints import fingerprint
from nlprobe.data import Batches, ImageDataset, data_fingerprint
from nlprobe.data.dataset import refuse_other_kind
from nlprobe.data.loading import Report, Share
from nlprobe.errors import ConfigError
from nlprobe.models import Config, Network, VideoConfig, build, load_backbone, trunk_of
from nlprobe.processes import ALONE, Processes
from nlprobe.training.engine import Engine, Observer
from nlprobe.training.recipes import Recipe, flatten
from nlprobe.training.tasks import TaskKind, task_kind

# The order of samples within an epoch follows from these; between epochs they may change.
_ORDER = ("recipe.batch_size", "data.images", "data.sha256")
# The optimiser's memory is laid out by these.
_LAYOUT = ("recipe.optimiser.kind", "recipe.optimiser.decay_norms", "recipe.optimiser.rules", "recipe.frozen")
_BEGINNING = ("pretrained.sha256", "pretrained.classifier", "pretrained.inflation")
_FIXED = ("model", "seed", *_BEGINNING, "recipe.batch_norm", *_LAYOUT)


@dataclass(frozen=True)
class Run:
    """What is trained, on what, how.

    Attributes:
        model: The model's name in the zoo, or None.
        config: The network; as many classes as the data have.
        recipe: Every number of the training.
        training: Images to learn from.
        validation: Images to score on.
        seed: Seed of everything random.
        pretrained: A file of weights to begin with; the inserted blocks, and without `classifier` the last layer, begin
            as the seed draws them.
        classifier: Take the last layer from that file as well.
        source: The name of those weights, if they were asked for by name.
        inflation: How a network for clips begins with weights of pictures, `mean` or `centre`.

    Raises:
        DataError: the data sets are none that the recipe's task can be learnt from.
    """

    model: str | None
    config: Config
    recipe: Recipe
    training: ImageDataset
    validation: ImageDataset
    seed: int = 0
    pretrained: Path | None = None
    classifier: bool = False
    source: str | None = None
    inflation: str = "mean"

    def __post_init__(self) -> None:
        taker = f"the recipe `{self.recipe.name}`"
        for dataset in (self.training, self.validation):
            refuse_other_kind(dataset, self.recipe.preprocessing.holds, taker)
        self.task.check(self.training, self.validation, self.recipe.batch_size)

    @property
    def task(self) -> TaskKind:
        """The recipe's task."""
        return task_kind(self.recipe.task)

    @cached_property
    def data(self) -> dict[str, Any]:
        """Name of the training set's folder, and its fingerprint."""
        return {"root": self.training.root.resolve().name, **data_fingerprint(self.training)}

    def build(self) -> Network:
        """The network as it is before training.

        Raises:
            CheckpointError: the pretrained weights are missing, damaged or do not fit.
        """
        model = build(self.config, seed=self.seed)
        if self.pretrained is not None:
            load_backbone(trunk_of(model), self.pretrained, classifier=self.classifier, inflation=self.inflation)
        return model

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Name, file and fingerprint of the pretrained weights, and for clips how they are inflated; None without."""
        if self.pretrained is None:
            return {"source": None, "file": None, "sha256": None, "classifier": False}
        with self.pretrained.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        named = {"source": self.source, "file": self.pretrained.name}
        clips = {"inflation": self.inflation} if isinstance(self.config, VideoConfig) else {}
        return {**named, "sha256": digest, "classifier": self.classifier, **clips}

    def settings(self) -> dict[str, Any]:
        """Everything the result follows from, with keys such as `recipe.optimiser.momentum`."""
        parts = {"config": self.config.as_dict(), "recipe": self.recipe.as_dict(), "data": self.data}
        parts["pretrained"] = self.origin
        return {"model": self.model, "seed": self.seed, **flatten(parts)}

    def metadata(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """What the run's checkpoints say of themselves, but for epoch and metrics."""
        return {
            "model": self.model,
            "config": self.config.as_dict(),
            "recipe": self.recipe.as_dict(),
            "preprocessing": self.recipe.preprocessing.as_dict(),
            "classes": self.training.classes,
            "data": self.data,
            "versions": dict(versions),
            "seed": self.seed,
            "pretrained": self.origin,
            "initial_fingerprint": fingerprint(self.build()),
        }

    def engine(
        self,
        device: torch.device,
        *,
        workers: int = 0,
        observers: Sequence[Observer] = (),
        report: Report = lambda error: None,
        processes: Processes = ALONE,
    ) -> Engine:
        """An engine at the beginning of the run.

        Args:
            device: Where to compute.
            workers: Processes that load data; the result does not depend on them.
            observers: They look on.
            report: Called for each image that cannot be read; it is left out of its batch.
            processes: This process among those that train together.

        Raises:
            ConfigError: the batch cannot be parted between the processes, or the recipe does not fit the network.
            CheckpointError: the pretrained weights do not fit.
        """
        recipe = self.recipe
        share = Share(processes.rank, processes.count)
        pin_memory = device.type == "cuda"
        training = Batches(
            self.training,
            recipe.training_transform(),
            recipe.batch_size,
            workers=workers,
            seed=self.seed,
            report=report,
            pin_memory=pin_memory,
            share=share,
            parts=recipe.accumulate,
            pad=recipe.preprocessing.pad,
            by_aspect=recipe.groups_by_aspect(),
        )
        validation = Batches(
            self.validation,
            recipe.validation_transform(),
            min(max(recipe.batch_size // recipe.accumulate, 1), self.task.validation_batch),
            workers=workers,
            report=report,
            pin_memory=pin_memory,
            share=share,
            pad=recipe.preprocessing.pad,
        )
        task = self.task.make(training, validation, recipe, device, processes)
        model = self.build()
        return Engine(model, task, recipe, seed=self.seed, device=device, observers=observers, processes=processes)


def refuse_incompatible(changed: Mapping[str, tuple[Any, Any]], step: int) -> None:
    """Make sure that a run can go on although these settings changed, `step` steps into an epoch.

    Raises:
        ConfigError: another network or seed; or, within an epoch, another order of samples.
    """
    for key, (then, now) in changed.items():
        if key in _FIXED or key.startswith("config."):
            raise ConfigError(
                f"the run was started with `{key}` {then}, not {now}", "start a new run in another folder"
            )
        if step and key in _ORDER:
            raise ConfigError(
                f"the run stopped within an epoch, whose order of images hangs on `{key}`: it was {then}, now {now}",
                "go on with the same until the epoch is over, or start a new run",
            )
