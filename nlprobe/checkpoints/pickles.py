"""What a pickle says of itself without being run: the names that it would call, and how much it claims to hold."""

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from pickle import PickleError
from typing import Any

from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from nlprobe.checkpoints.stand_ins import TENSOR_PARTS, stand_in
from nlprobe.errors import CheckpointError

_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_PUTS = {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"}
_GETS = {"BINGET", "LONG_BINGET", "GET"}
_INTEGERS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"}
_EXTENSIONS = {"EXT1", "EXT2", "EXT4"}

MOST_NESTED = 100
"""Tuples within tuples; checkpoints have three or four, and a million of them overflow the interpreter's stack."""

MOST_REMEMBERED = 1 << 24
"""Objects that a pickle may refer back to."""


@dataclass(frozen=True)
class Survey:
    """A pickle that was looked through.

    Attributes:
        names: The globals that it names, as `package.module.name` in Python 3's spelling.
        elements: Numbers that the storages it refers to claim to hold, in all.
    """

    names: frozenset[str]
    elements: int


def survey(file: BufferedIOBase, path: Path) -> Survey:
    """Look through one pickle up to its end, where `file` then stands; nothing is built and nothing called.

    Args:
        file: Open where the pickle begins.
        path: For messages.

    Raises:
        CheckpointError: it is damaged, nested beyond reason or hides the names that it uses.
    """
    names: set[str] = set()
    texts: dict[int, str] = {}
    pushed: list[str] = []
    text = ""
    integer, elements, nested = 0, 0, 0
    try:
        # typeshed asks for `IO`, which files and BytesIO are but which beartype does not see in them
        operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(file)  # type: ignore[arg-type]
        for operation, argument, _ in operations:
            kind = operation.name
            if kind in _STRINGS:
                text = str(argument)
                pushed = [*pushed[-1:], text]
            elif kind in _PUTS:
                place = len(texts) if argument is None else int(argument)
                if place > MOST_REMEMBERED:
                    raise _damaged(path, "it refers to more objects than it can hold")
                texts[place] = text
            elif kind in _GETS:
                text = texts.get(int(argument), "")
                pushed = [*pushed[-1:], text]
            elif kind in _INTEGERS:
                integer = int(argument)
            elif kind == "GLOBAL":
                names.add(_python3(*argument.split(" ", 1)))
            elif kind == "STACK_GLOBAL":
                if len(pushed) < 2 or "" in pushed:
                    raise _damaged(path, "it makes up names of functions while it is read")
                names.add(_python3(*pushed))
            elif kind == "INST" or kind in _EXTENSIONS:
                raise _damaged(path, f"it uses the instruction `{kind}`, which no checkpoint needs")
            elif kind in ("BINPERSID", "PERSID"):
                elements += max(integer, 0)
            if kind not in _STRINGS | _PUTS | _GETS:
                text = ""  # what is on top is no text
            nested = nested + 1 if kind == "TUPLE1" else nested if kind in _PUTS else 0
            if nested > MOST_NESTED:
                raise _damaged(path, "it is nested beyond reason")
    except (PickleError, ValueError, EOFError, IndexError, OverflowError, UnicodeError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    return Survey(frozenset(names), elements)


def refuse_unknown_names(names: frozenset[str], path: Path) -> frozenset[str]:
    """The names that need a stand-in, after all others were refused.

    Raises:
        CheckpointError: a name that is neither a part of a tensor nor of a known project.
    """
    for name in sorted(names - TENSOR_PARTS):
        if stand_in(name) is None:
            raise CheckpointError(
                f"`{path}` would call `{name}` while it is read, and is refused; nothing of it was run",
                "if you trust it, save the model's state_dict() alone where its project is installed",
            )
    return names - TENSOR_PARTS


def _python3(module: str, name: str) -> str:
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[(module, name)]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"`{path}` cannot be read: {reason}", "it is truncated, damaged or no checkpoint: get the file again"
    )
