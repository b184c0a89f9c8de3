"""What `--pretrained` takes: a file of weights, or weights that torchvision or timm publish, by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from nlprobe.commands.report import say
from nlprobe.data import Preprocessing
from nlprobe.errors import ConfigError
from nlprobe.libraries.published import is_published, published
from nlprobe.processes import Processes


class WeightsType(click.Path):
    """A file's path, or, as text, the name of published weights."""

    name = "weights"

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name as it is; anything else is a path."""
        if isinstance(value, str) and is_published(value):
            return value
        return super().convert(value, param, ctx)


@dataclass(frozen=True)
class Start:
    """The weights that a run begins with.

    Attributes:
        file: Their file, None without any, and where it is yet to be fetched.
        name: Their whole name if they are published ones.
        missing: From where they will be fetched.
    """

    file: Path | None = None
    name: str | None = None
    missing: str | None = None


def fetch(given: Path | str | None, processes: Processes) -> None:
    """Bring published weights onto this machine, in one process of each; the one use of the network in training.

    Raises:
        ConfigError: there are no weights of that name.
        CheckpointError: they cannot be fetched.
    """
    if not isinstance(given, str) or processes.local_rank:
        return
    weights = published(given)
    say(f"fetching {weights.url}")
    weights.fetch()


def found(given: Path | str | None, preprocessing: Preprocessing) -> Start:
    """The weights as far as they are on this machine.

    Args:
        given: A file, or the name of published weights.
        preprocessing: What the network is going to see; the weights have to belong to pictures of such colours.

    Raises:
        ConfigError: there are no weights of that name, or they are for pictures that were normalised otherwise.
    """
    if not isinstance(given, str):
        return Start(given)
    weights = published(given)
    for key in ("mean", "std"):
        theirs, ours = getattr(weights, key), getattr(preprocessing, key)
        if theirs is not None and theirs != ours:
            raise ConfigError(
                f"`{weights.source}` has learnt from pictures normalised by the {key} {list(theirs)}, "
                f"the recipe's is {list(ours)}",
                f'give --set "preprocessing.{key}={list(theirs)}"',
            )
    path = weights.cached()
    return Start(path, weights.source, None if path else weights.url)
