"""Published checkpoints by name: what `published.csv` says of each that its weights do not.

Columns: `name`, `project`, `data`, `block`, `metric`, `url`, `sha256` (the first digits, from the file's name),
`settings` (`key=value key=value`, in the words of `--set`), `flaw` (why a file is not to be used as what it is called),
`note`.
"""

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from nlprobe.errors import ConfigError
from nlprobe.suggestions import did_you_mean


@dataclass(frozen=True)
class Entry:
    """A published checkpoint.

    Attributes:
        name: `project/name`.
        project: Who reads it.
        data: What it was trained on.
        block: Its attention in a word or two.
        metric: The published score.
        url: Where it is.
        sha256: The first digits of the file's hash; empty where the name does not hold them.
        settings: What its weights do not tell, in the words of `--set`.
        flaw: Why it is not what it is called; empty for most.
        note: What else to know.
    """

    name: str
    project: str
    data: str
    block: str
    metric: str
    url: str
    sha256: str
    settings: Mapping[str, str]
    flaw: str
    note: str

    @property
    def file_name(self) -> str:
        """What the file is called where it is published; empty where the address does not tell."""
        last = self.url.rpartition("/")[2]
        return last if last.endswith((".pth", ".pkl", ".pt", ".pyth", ".safetensors")) else ""


@cache
def entries() -> dict[str, Entry]:
    """All published checkpoints by name, in the order of the file."""
    text = (files("nlprobe.checkpoints") / "published.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        settings = dict(pair.split("=", 1) for pair in row.pop("settings").split())
        found[row["name"]] = Entry(settings=settings, **row)
    return found


def published(name: str) -> Entry:
    """The published checkpoint of that name.

    Raises:
        ConfigError: there is none, with close matches.
    """
    if name not in entries():
        short = [full for full in entries() if full.partition("/")[2] == name]
        if len(short) == 1:
            return entries()[short[0]]
        raise ConfigError(
            f"no published checkpoint is called `{name}`",
            did_you_mean(name, list(entries()), otherwise="`nlprobe zoo --published` lists them"),
        )
    return entries()[name]


def entry_of(path: Path) -> Entry | None:
    """The entry whose file this is: told by the hash, and where an entry has none, by the file's name."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for entry in entries().values():
        if entry.sha256 and digest.startswith(entry.sha256):
            return entry
    unhashed = [entry for entry in entries().values() if not entry.sha256 and entry.file_name == path.name]
    return unhashed[0] if len(unhashed) == 1 else None
