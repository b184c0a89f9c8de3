"""Anybody's own code: `python:package.module:callable` as a network or as data."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nlprobe.data.preprocessing import Preprocessing
from nlprobe.errors import ConfigError, DataError, NlprobeError
from nlprobe.libraries.network import Given, Network, Pictures, drawn
from nlprobe.libraries.weights import load_weights
from nlprobe.suggestions import did_you_mean

PREFIX = "python:"

_END = object()


def is_python(source: str) -> bool:
    """Whether a source is somebody's own code."""
    return source.startswith(PREFIX)


def python_network(
    reference: str, weights: Path | None = None, seed: int = 0, preprocessing: Preprocessing | None = None
) -> Network:
    """The network that a callable returns: a module, or a module and the transform of its pictures.

    The transform is a function from an RGB picture to a tensor, or an nlprobe `Preprocessing`; a `ClipPreprocessing`
    where the network takes videos.

    Args:
        reference: `package.module:callable`; the current folder can be imported from.
        weights: A file that is loaded into it; without, its weights are as the callable gives them.
        seed: Torch's generator is seeded with it while the callable runs.
        preprocessing: What is done to pictures, where the callable returns a module alone.

    Raises:
        ConfigError: there is no such callable, it fails, or returns something else.
        CheckpointError: the weights do not fit.
    """
    build = imported(reference)
    transforms: list[Any] = []

    def module() -> nn.Module:
        made = _called(build, reference)
        model, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(model, nn.Module) or not _is_transform(transform):
            kinds = ", ".join(type(part).__name__ for part in (made if isinstance(made, tuple) else (made,)))
            raise ConfigError(
                f"`{PREFIX}{reference}` returns {kinds}",
                "it has to return an nn.Module, or an nn.Module and the transform of its pictures",
            )
        transforms.append(transform)
        return model

    model = drawn(module, seed)
    loaded = load_weights(model, weights) if weights else None
    transform = transforms[0]
    if transform is not None and preprocessing is not None:
        raise ConfigError(
            f"`{PREFIX}{reference}` returns a transform, and --size, --mean or --std is given too", "leave one out"
        )
    pictures = Pictures.of(preprocessing) if preprocessing is not None else None
    if isinstance(transform, Preprocessing):
        pictures = Pictures.of(transform)
    elif transform is not None:
        written = " ".join(repr(transform).split())
        pictures = Pictures(transform, f"transform of `{PREFIX}{reference}`, {written}", {"transform": written})
    return Network(
        source=f"{PREFIX}{reference}",
        model=model.eval(),
        weights=loaded or Given(),
        pictures=pictures,
        redrawn=partial(drawn, module, seed) if loaded else None,
    )


def _is_transform(made: Any) -> bool:
    return made is None or isinstance(made, Preprocessing) or callable(made)


@dataclass
class PythonItems:
    """The inputs of forward calls that a callable's iterable yields: tensors, mappings by name, or tuples in order.

    A pass calls the callable anew and has to give the same again, or networks could not be compared.

    Args:
        reference: `package.module:callable`.
    """

    reference: str
    images: int = 0
    sha256: str | None = field(default=None, init=False)

    @property
    def source(self) -> str:
        """The reference as it is written on the command line."""
        return f"{PREFIX}{self.reference}"

    def first(self) -> Any:
        """The first item.

        Raises:
            DataError: there is none.
        """
        for item, _ in self.items():
            return item
        raise DataError(f"`{self.source}` yields nothing", "let it yield at least one item")

    def items(self, start: int = 0) -> Iterator[tuple[Any, list[str]]]:
        """The items from number `start` on, with the names of their images: numbers, counted over all items.

        Raises:
            ConfigError: there is no such callable, or it fails.
            DataError: an item holds no tensor, or this pass gives other inputs than the one before.
        """
        made = _called(imported(self.reference), self.reference)
        if not hasattr(made, "__iter__"):
            raise ConfigError(
                f"`{self.source}` returns {type(made).__name__}, which cannot be iterated over",
                "let it return an iterable, or be a generator",
            )
        digest = hashlib.sha256()
        passed = 0
        upcoming = partial(next, iter(made), _END)
        for number in count():
            if (item := _called(upcoming, self.reference)) is _END:
                break
            tensors = list(_tensors(item))
            if not tensors or tensors[0].dim() == 0:
                raise DataError(
                    f"item {number} of `{self.source}` is {type(item).__name__} without a batch of anything",
                    "yield a tensor, a dict or a tuple of tensors whose first size is the number of images",
                )
            for tensor in tensors:
                digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
                digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
            names = [str(passed + index) for index in range(tensors[0].shape[0])]
            passed += len(names)
            if number >= start:
                yield item, names
        if self.sha256 not in (None, digest.hexdigest()):
            raise DataError(
                f"`{self.source}` gave other inputs in this pass than in the one before",
                "let it seed what it draws, so that every pass is the same",
            )
        self.images, self.sha256 = passed, digest.hexdigest()


def imported(reference: str) -> Callable[[], Any]:
    """The callable at `package.module:callable`; the current folder can be imported from.

    Raises:
        ConfigError: it is not written so, or there is no such module or callable.
    """
    module_name, colon, path = reference.partition(":")
    if not (module_name and colon and path):
        raise ConfigError(f"`{PREFIX}{reference}` names no callable", "write `python:package.module:callable`")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        inside = "" if module_name.startswith(str(error.name)) else f"`{module_name}` imports `{error.name}`, and "
        raise ConfigError(
            f"`{PREFIX}{reference}`: {inside}there is no module `{error.name}`",
            "run nlprobe in the folder that the module lies in, or install it",
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            known = [other for other in dir(found) if callable(getattr(found, other)) and not other.startswith("_")]
            raise ConfigError(
                f"`{module_name}` has no `{path}`",
                did_you_mean(name, known, otherwise="check the name behind the colon"),
            )
        found = getattr(found, name)
    if not callable(found):
        raise ConfigError(f"`{PREFIX}{reference}` is no callable but {type(found).__name__}", "name a function")
    function: Callable[[], Any] = found
    return function


def _called(function: Callable[[], Any], reference: str) -> Any:
    try:
        return function()
    except NlprobeError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"`{PREFIX}{reference}` raised {type(error).__name__}{f': {reason}' if reason else ''}",
            "it is called without arguments; --debug shows where it fails",
        ) from error


def _tensors(item: Any) -> Iterator[Tensor]:
    """The tensors in an item, wherever they are."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _tensors(value)
    elif isinstance(item, list | tuple):
        for value in item:
            yield from _tensors(value)
