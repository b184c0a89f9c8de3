"""The networks that the measuring commands take in, with their labels: checkpoints, and those of other libraries."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from nlprobe.checkpoints import (
    Checkpoint,
    Foreign,
    checkpoint_file,
    entry_of,
    initial_model,
    is_foreign,
    parse_answers,
    read_checkpoint,
    read_foreign,
)
from nlprobe.commands.options import Chosen
from nlprobe.data import Preprocessing
from nlprobe.data.clips import read_preprocessing
from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.libraries import Drawn, Loaded, Network, Pictures, Settings, default_name, is_python, open_network
from nlprobe.probe.adapters import Adapter
from nlprobe.suggestions import did_you_mean

_ADAPTER_METHODS = ("matches", "describe", "attach")


@dataclass(frozen=True)
class Labelled:
    """A checkpoint and the name that it has in tables."""

    label: str
    checkpoint: Checkpoint

    @property
    def preprocessing(self) -> Preprocessing:
        """What was done to the images that the network was trained for.

        Raises:
            CheckpointError: the file does not say.
        """
        settings = self.checkpoint.metadata.get("preprocessing")
        if not settings:
            raise CheckpointError(
                f"`{self.checkpoint.path}` does not say how its images are preprocessed",
                "write it again with `preprocessing` in its metadata",
            )
        return read_preprocessing(settings)


def read_checkpoints(paths: Sequence[Path], labels: Sequence[str], answers: Sequence[str] = ()) -> list[Labelled]:
    """Read checkpoints; each is called by its label, else by its zoo name, else by its path where two share one.

    Args:
        paths: Checkpoints of nlprobe and of other projects.
        labels: Their names in tables, or none.
        answers: What the weights of other projects do not tell, `KEY=VALUE`.

    Raises:
        ConfigError: as many labels as checkpoints, or none; no label twice.
    """
    opened = open_files(paths, labels, answers)
    for one in opened:
        if isinstance(one.file, Network):
            raise ConfigError(
                f"`{one.label}` is a network of {one.file.package}, which nlprobe measures and does not score",
                "score it with that library",
            )
    return [Labelled(one.label, one.file) for one in opened if isinstance(one.file, Checkpoint)]


def task_of_checkpoint(checkpoint: Checkpoint) -> str:
    """What a checkpoint was trained for, by its recipe, else by what kind of network it is."""
    metadata = checkpoint.metadata
    if "recipe" in metadata:
        return str(metadata["recipe"].get("task", "classification"))
    architecture = metadata["config"]["architecture"]
    return {"resnet": "classification"}.get(architecture, architecture)


@dataclass(frozen=True)
class Opened:
    """What a file of weights turned out to hold, and its name in tables."""

    label: str
    path: Path
    file: Checkpoint | Network


def open_files(
    paths: Sequence[Path], labels: Sequence[str] = (), answers: Sequence[str] = (), seed: int = 0
) -> list[Opened]:
    """Checkpoints of nlprobe and of other projects, in their order.

    Raises:
        ConfigError: as many labels as files, or none; no label twice; an answer that nobody asked for.
        CheckpointError: a file cannot be read, or does not fit.
    """
    if labels and len(labels) != len(paths):
        raise ConfigError(
            f"{len(paths)} checkpoints and {len(labels)} labels", "give one --label for each --ckpt, in the same order"
        )
    if len(set(labels)) != len(labels):
        raise ConfigError("two checkpoints have the same label", "give each a --label of its own")
    given = parse_answers(answers)
    found = [_opened(checkpoint_file(path), given, seed) for path in paths]
    if given and not any(isinstance(one, Foreign) for one in found):
        raise ConfigError("--set is for checkpoints of other projects, and none is given", "leave it out")
    names = list(labels) or [_short_name(one) for one in found]
    if len(set(names)) != len(names):
        names = [str(path) for path in paths]
    if len(set(names)) != len(names):
        raise ConfigError("the same checkpoint is given twice", "give it once, or give each a --label of its own")
    return [Opened(name, path, one) for name, path, one in zip(names, paths, found, strict=True)]


def _opened(path: Path, answers: Mapping[str, str], seed: int) -> Checkpoint | Network:
    if not is_foreign(path):
        return read_checkpoint(path)
    if (entry := entry_of(path)) is not None and entry.project == "timm":
        return open_network(f"timm:{entry.settings['model']}", path, Settings(seed))
    return read_foreign(path, answers)


def _short_name(one: Checkpoint | Network) -> str:
    if isinstance(one, Network):
        return default_name(one.source)
    return str(one.metadata.get("model") or one.path.stem)


@dataclass(frozen=True)
class Named:
    """A network to be measured and the name that it has in tables.

    Attributes:
        label: Its name.
        network: The network, with what it takes.
        checkpoint: What it was read from, if it is one of nlprobe's own.
    """

    label: str
    network: Network
    checkpoint: Checkpoint | None = None

    @property
    def model(self) -> nn.Module:
        """The network itself."""
        return self.network.model

    def untrained(self) -> nn.Module:
        """The network as it was before training: rebuilt from its seed, or drawn anew where nobody knows that.

        Raises:
            ConfigError: its weights are random as they are, or its own code gave them.
        """
        if self.network.redrawn is not None:
            return self.network.redrawn()
        if isinstance(self.network.weights, Drawn):
            raise ConfigError(
                f"`{self.label}` has random weights, so init-all would be the same network again",
                "give its trained weights by --weights, or leave out --baseline init-all",
            )
        raise ConfigError(
            f"nobody but `{self.network.source}` knows how to draw its weights anew",
            "let it return the untrained network and give the trained weights by --weights",
        )


def read_networks(chosen: Chosen, seed: int = 0) -> list[Named]:
    """The checkpoints and the networks of other libraries that a command line asks for.

    A network of another library is called by its label, else by its name, else by all of what was given.

    Args:
        chosen: What was asked for.
        seed: Seed of random weights.

    Raises:
        ConfigError: no network, or not as many labels or weights as networks, or a name twice.
    """
    count = len(chosen.checkpoints) + len(chosen.models)
    if not count:
        raise ConfigError("which network?", "give --ckpt CHECKPOINT, or --model LIBRARY:NAME such as timm:NAME")
    if chosen.labels and len(chosen.labels) != count:
        raise ConfigError(
            f"{count} networks and {len(chosen.labels)} labels",
            "give one --label for each --ckpt, then one for each --model, in the same order",
        )
    own, others = chosen.labels[: len(chosen.checkpoints)], chosen.labels[len(chosen.checkpoints) :]
    named = [_of_file(one) for one in open_files(chosen.checkpoints, own, chosen.answers, seed)]
    names = others or _names(chosen.models, [one.label for one in named])
    settings = _settings(chosen, seed)
    weights = _weights(chosen)
    for place, (name, source) in enumerate(zip(names, chosen.models, strict=True)):
        own_settings = settings if is_python(source) else replace(settings, preprocessing=None)
        named.append(Named(name, open_network(source, weights.get(place), own_settings)))
    if len({one.label for one in named}) != count:
        raise ConfigError("two networks have the same name", "give each a --label of its own")
    return named


def read_adapters(references: Sequence[str]) -> tuple[Adapter, ...]:
    """The adapters that `--adapter python:package.module:NAME` names, each one or a tuple of them.

    Raises:
        ConfigError: there is no such name, or it is no adapter.
    """
    found: list[Adapter] = []
    for reference in references:
        made = _named_object(reference)
        parts = tuple(made) if isinstance(made, tuple | list) else (made,)
        for part in parts or (None,):
            if isinstance(part, type) or not all(callable(getattr(part, name, None)) for name in _ADAPTER_METHODS):
                kind = f"the class `{part.__name__}`" if isinstance(part, type) else type(part).__name__
                inside = "holds" if isinstance(made, tuple | list) and parts else "is"
                raise ConfigError(
                    f"`--adapter {reference}` is no adapter: it {inside} {kind if parts else 'empty'}",
                    "name an `nlprobe.AttentionModule(...)`, or a tuple of them",
                )
        found += parts
    return tuple(found)


def _named_object(reference: str) -> Any:
    """What lies at `python:package.module:NAME`; the current folder can be imported from."""
    module_name, _, name = reference.removeprefix("python:").partition(":")
    if not (is_python(reference) and module_name and name):
        raise ConfigError(f"`--adapter {reference}` names no adapter", "write `--adapter python:package.module:NAME`")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"`--adapter {reference}`: {error}", "run nlprobe in the folder that the module lies in, or install it"
        ) from error
    if not hasattr(module, name):
        known = [other for other in dir(module) if not other.startswith("_")]
        raise ConfigError(
            f"`{module_name}` has no `{name}`", did_you_mean(name, known, otherwise="check the name behind the colon")
        )
    return getattr(module, name)


def _of_file(one: Opened) -> Named:
    if isinstance(one.file, Network):
        return Named(one.label, one.file)
    checkpoint = one.file
    network = Network(
        source=str(checkpoint.path),
        model=checkpoint.model,
        weights=Loaded(checkpoint.path),
        pictures=Pictures.of(Labelled(one.label, checkpoint).preprocessing),
        redrawn=checkpoint.redrawn if isinstance(checkpoint, Foreign) else partial(initial_model, checkpoint),
    )
    return Named(one.label, network, checkpoint)


def _names(sources: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Names that nobody else has: the short ones, or the whole of what was given."""
    short = [default_name(source) for source in sources]
    counts = Counter([*short, *taken])
    return [name if counts[name] == 1 else source for name, source in zip(short, sources, strict=True)]


def _weights(chosen: Chosen) -> dict[int, Path]:
    """The files of weights by the place of their network."""
    takers = [place for place, source in enumerate(chosen.models) if not source.startswith("hf:")]
    if chosen.weights and len(chosen.weights) != len(takers):
        raise ConfigError(
            f"{len(chosen.weights)} --weights and {len(takers)} --model that take them (hf: folders bring their own)",
            "give one for each in the same order, or none for random weights",
        )
    return dict(zip(takers, chosen.weights, strict=False))


def _settings(chosen: Chosen, seed: int) -> Settings:
    """How networks of other libraries are opened; flags that none of them would heed are refused."""
    preprocessing = _preprocessing(chosen)
    if preprocessing is not None and not any(is_python(source) for source in chosen.models):
        raise ConfigError(
            "--size, --mean and --std are given, but the networks bring their own preprocessing",
            "leave them out; they are for a --model python:package.module:callable that brings none",
        )
    if chosen.download and not any(source.startswith("hf:") for source in chosen.models):
        raise ConfigError(
            "--download fetches hf: networks only", "get the file of the weights and give it by --weights"
        )
    return Settings(seed, chosen.random_weights, chosen.download, preprocessing)


def _preprocessing(chosen: Chosen) -> Preprocessing | None:
    given = {"--size": chosen.size, "--mean": chosen.mean, "--std": chosen.std}
    if all(value is None for value in given.values()):
        return None
    if chosen.size is None or chosen.mean is None or chosen.std is None:
        missing = [flag for flag, value in given.items() if value is None]
        raise ConfigError(f"{' and '.join(missing)} is not given", "give --size, --mean and --std together")
    mean, std = _channels("--mean", chosen.mean), _channels("--std", chosen.std)
    return Preprocessing(chosen.size, chosen.size, mean, std)


def _channels(flag: str, text: str) -> tuple[float, float, float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise ConfigError(
            f"`{flag} {text}` is no mean or deviation", f"write `{flag} 0.5`, or `{flag} 0.485,0.456,0.406`"
        )
    return values[0], values[1], values[2]
