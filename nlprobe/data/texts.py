"""Texts in a file, one a line."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from nlprobe.errors import DataError

WORDS = 4
"""How many words of a line are part of its name."""


@dataclass(frozen=True)
class Line:
    """A text with its name: the number of its line, counted from 1, and its first words."""

    id: str
    text: str


@dataclass(frozen=True)
class TextFile:
    """The lines of a file that hold more than blanks, in their order.

    Attributes:
        path: The file.
        lines: Its texts.
    """

    path: Path
    lines: tuple[Line, ...]

    def part(self, count: int | None) -> "TextFile":
        """`count` of the lines, spread evenly over them; all where there are fewer, or for None."""
        whole = len(self.lines)
        taken = whole if count is None else min(count, whole)
        return TextFile(self.path, tuple(self.lines[position * whole // taken] for position in range(taken)))

    def fingerprint(self) -> dict[str, object]:
        """How many texts there are, and a SHA-256 over them and their names."""
        digest = hashlib.sha256()
        for line in self.lines:
            digest.update(f"{line.id}\t{line.text}\n".encode())
        return {"images": len(self.lines), "sha256": digest.hexdigest()}


def is_text(path: Path) -> bool:
    """Whether the name is that of a file of texts."""
    return path.suffix.lower() == ".txt"


def read_texts(path: Path) -> TextFile:
    """Read a file of texts in UTF-8.

    Raises:
        DataError: it is not there, no UTF-8, or holds no text.
    """
    try:
        whole = path.expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` is not UTF-8 text: byte {error.start} is none", "save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror or error}", "check the path") from error
    lines = [
        Line(f"{number} {' '.join(text.split()[:WORDS])}", text.strip())
        for number, text in enumerate(whole.split("\n"), 1)
        if text.strip()
    ]
    if not lines:
        raise DataError(f"`{path}` holds no text", "write one text a line")
    return TextFile(path, tuple(lines))
