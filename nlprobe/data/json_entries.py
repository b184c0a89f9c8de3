"""The entries of the lists in a large JSON object, one at a time, each with its place in the file."""

import json
import mmap
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nlprobe.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_MARK = "\xef\xbb\xbf"  # the byte order mark of UTF-8, read as latin-1
_DECODE = json.JSONDecoder().raw_decode


class Entry(NamedTuple):
    """An entry of the list `key`, number `number` in it; its text is that of the bytes from `start` to `end`."""

    key: str
    number: int
    value: Any
    start: int
    end: int


def bytes_as_text(path: Path) -> str:
    """A file with a character for each of its bytes, so that places in the text are places in the file.

    Raises:
        DataError: it is empty or cannot be read.
    """
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise DataError(f"`{path}` is empty", "unpack the data set's annotations archive there once more")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return str(mapped, "latin-1")
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror or error}", "check the path") from error


def as_written(text: str) -> str:
    """A string of UTF-8 that was read with a character for each byte.

    Raises:
        UnicodeDecodeError: it was in another encoding.
    """
    return text.encode("latin-1").decode("utf-8") if not text.isascii() else text


def entries(text: str, keys: Collection[str]) -> Iterator[Entry]:
    """The entries of the lists of those names in the outermost object, in the order of the file.

    Whatever stands under another name is passed over, and so is what is no list.

    Args:
        text: The JSON, a character for each byte.
        keys: Names of the lists.

    Raises:
        json.JSONDecodeError: the text is no JSON object, or ends too early.
    """
    place = _expect(text, len(_MARK) if text.startswith(_MARK) else 0, "{")
    while text[place : place + 1] != "}":
        key, place = _DECODE(text, place)
        place = _expect(text, place, ":")
        if key in keys and text[place : place + 1] == "[":
            place = _skip(text, place + 1)
            number = 0
            while text[place : place + 1] != "]":
                value, end = _DECODE(text, place)
                yield Entry(key, number, value, place, end)
                number += 1
                place = _after_comma(text, end, "]")
            place += 1
        else:
            _, place = _DECODE(text, place)
        place = _after_comma(text, place, "}")


def _skip(text: str, place: int) -> int:
    """The next place that holds no white space."""
    return _SPACE.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing, too


def _expect(text: str, place: int, character: str) -> int:
    """The place behind `character` and the white space around it."""
    place = _skip(text, place)
    if text[place : place + 1] != character:
        raise json.JSONDecodeError(f"`{character}` is missing", text, place)
    return _skip(text, place + 1)


def _after_comma(text: str, place: int, closing: str) -> int:
    """The place of the next entry, or of the bracket that closes the list."""
    comma = _COMMA.match(text, place)
    if comma is None:
        place = _skip(text, place)
        if text[place : place + 1] != closing:
            raise json.JSONDecodeError(f"`,` or `{closing}` is missing", text, place)
        return place
    if text[comma.end() : comma.end() + 1] == closing:
        raise json.JSONDecodeError(f"`{closing}` follows on `,`", text, comma.end())
    return comma.end()
