"""Checkpoints of other projects as networks of ours: recognised, matched with the registry, mapped name by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nlprobe.checkpoints.answers import LIKE, Answers, refuse_open
from nlprobe.checkpoints.cbam import AttentionModule
from nlprobe.checkpoints.ccnet import CCNet
from nlprobe.checkpoints.configurations import configuration
from nlprobe.checkpoints.containers import Container, read_container
from nlprobe.checkpoints.danet import DANet
from nlprobe.checkpoints.mapping import Mapped, mapped
from nlprobe.checkpoints.mmaction import MMAction
from nlprobe.checkpoints.mmdet import MMDetection
from nlprobe.checkpoints.mmseg import MMSegmentation
from nlprobe.checkpoints.native import FORMAT, Checkpoint, checkpoint_file, read_checkpoint
from nlprobe.checkpoints.project import Project, Weights
from nlprobe.checkpoints.registry import Entry, entry_of, published
from nlprobe.checkpoints.slowfast import SlowFast
from nlprobe.checkpoints.torchvision import TorchvisionDetectors
from nlprobe.errors import CheckpointError
from nlprobe.models import build, load_strictly
from nlprobe.models.build import Config

PROJECTS: tuple[Project, ...] = (
    MMSegmentation(),
    MMDetection(),
    TorchvisionDetectors(),
    MMAction(),
    SlowFast(),
    CCNet(),
    DANet(),
    AttentionModule(),
)


@dataclass(frozen=True)
class Foreign(Checkpoint):
    """A checkpoint of another project, as a network of ours.

    Attributes:
        container: The file.
        project: Whose it is.
        entry: What the registry says of it; None where its questions were answered by hand.
        settings: What its weights do not tell, in the words of `--set`.
        left_out: Reason to the number of tensors of the file that are not in the network.
        config: The network.
    """

    container: Container
    project: Project
    entry: Entry | None
    settings: Mapping[str, str]
    left_out: Mapping[str, int]
    config: Config

    def sentence(self) -> str:
        """Whose it is, what the registry says, and what was left out, in a line."""
        given = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        known = (
            f"{self.entry.name}, published {self.entry.metric}" if self.entry else f"not in the registry, with {given}"
        )
        flaw = f"; FLAWED: {self.entry.flaw}" if self.entry and self.entry.flaw else ""
        left = "".join(f"; left out: {count} tensors, {reason}" for reason, count in self.left_out.items())
        return f"{self.project.title}, {known}{flaw}{left}"

    def redrawn(self, seed: int = 0) -> torch.nn.Module:
        """The same network with weights drawn anew by our own initialisation."""
        return build(self.config, seed=seed).eval()


def load(
    path: Path | str, device: torch.device | str = "cpu", settings: Mapping[str, str] | None = None
) -> torch.nn.Module:
    """The network of a checkpoint, of nlprobe's own or of another project, in evaluation mode.

    Args:
        path: The file, or a run's folder.
        device: Where the network goes.
        settings: What the weights of another project do not tell, in the words of `--set`: `{"scale": "inv_sqrt"}`, or
            `{"like": "NAME"}` for all of a published checkpoint.

    Raises:
        CheckpointError: as `read_checkpoint` and `read_foreign`.
        ConfigError: a question is open, or an answer is not understood.
    """
    file = checkpoint_file(path)
    return read_foreign(file, settings, device).model if is_foreign(file) else read_checkpoint(file, device).model


def is_foreign(path: Path) -> bool:
    """Whether a file is no checkpoint of nlprobe's own: not safetensors, or without our header.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1 << 20)
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror or error}", "check its permissions") from error
    return start[8:9] != b"{" or f'"{FORMAT}":'.encode() not in start


def project_of(container: Container) -> Project:
    """The project whose names a file has.

    Raises:
        CheckpointError: none, with the first names.
    """
    for project in PROJECTS:
        if project.recognises(container.weights):
            return project
    shown = ", ".join(f"`{name}`" for name in list(container.weights)[:3])
    raise CheckpointError(
        f"`{container.path}` names its weights as no project does that nlprobe reads: {shown}, …",
        f"these are read: {', '.join(project.title for project in PROJECTS)}, and any timm or torchvision network by "
        "`--model timm:NAME --weights FILE`",
    )


def read_foreign(path: Path, given: Mapping[str, str] | None = None, device: torch.device | str = "cpu") -> Foreign:
    """Read a checkpoint of another project.

    Args:
        path: The file.
        given: Answers to what its weights do not tell; they go before those of the registry.
        device: Where the network goes.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the network that it should be of.
        ConfigError: a question is open, or an answer is not understood.
    """
    container = read_container(path)
    project = project_of(container)
    entry = entry_of(path)
    settings = settings_of(project, container, entry, given or {})
    answers = Answers(settings, f"`{path}`")
    config = project.config(container.weights, answers)
    model = build(config, seed=0)
    found = map_weights(project, config, container.weights, model.state_dict(), answers)
    if answers.reversed_channels:
        first = project.first_convolution(config)
        found.weights[first] = found.weights[first].flip(1)
    load_strictly(model, found.weights, f"`{path}`", lambda name: name.endswith(".num_batches_tracked"))
    return Foreign(
        model.to(device).eval(),
        _metadata(container, project, entry, settings, answers, config),
        path,
        container,
        project,
        entry,
        settings,
        found.left_out,
        config,
    )


def settings_of(
    project: Project, container: Container, entry: Entry | None, given: Mapping[str, str]
) -> dict[str, str]:
    """All answers: those given by hand before the registry's for this file, or for the one that `like` names.

    Where there is neither of the two, what stands in the configuration beside the weights is taken.

    Raises:
        ConfigError: one is missing, or answers what nobody asks.
    """
    model = published(given[LIKE]) if LIKE in given else entry
    weights, source = container.weights, f"`{container.path}`"
    configured = {} if model is not None else project.configured(configuration(container), weights)
    known = configured if model is None else dict(model.settings)
    own = {name: value for name, value in given.items() if name != LIKE}
    refuse_open(project.questions(weights), {**known, **own}, source, project.describe(weights))
    return {**known, **own}


def map_weights(
    project: Project, config: Config, weights: Weights, wanted: Mapping[str, torch.Tensor], answers: Answers
) -> Mapped:
    """The file's tensors under our names, in our shapes.

    Raises:
        CheckpointError: as `mapped`.
    """
    return mapped(project.prepared(weights, config, answers), project.rename(config), wanted, answers.source)


def _metadata(
    container: Container,
    project: Project,
    entry: Entry | None,
    settings: Mapping[str, str],
    answers: Answers,
    config: Config,
) -> dict[str, Any]:
    """As one of our own files has them, as far as they are known."""
    classes = container.meta.get("CLASSES")
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return {
        "model": entry.name if entry is not None else f"{project.name}/{container.path.stem}",
        "config": config.as_dict(),
        "preprocessing": {**answers.preprocessing(), **(answers.clip() if "frames" in settings else {})},
        "classes": list(classes) if named and classes is not None else project.classes(container.weights),
        "project": project.title,
        "published": entry.metric if entry is not None else None,
        "inference": answers.inference(),
        "settings": dict(settings),
    }
