"""The list of published checkpoints that `nlprobe zoo --published` prints."""

from fnmatch import fnmatch

from nlprobe.checkpoints import Entry, entries
from nlprobe.errors import ConfigError
from nlprobe.suggestions import did_you_mean
from nlprobe.tables import Cell, Column, Row, Table

COLUMNS = (
    Column("name"),
    Column("data"),
    Column("block"),
    Column("metric"),
    Column("flaw"),
    Column("note"),
    Column("project", show="data"),
    Column("url", show="data"),
    Column("sha256", show="data"),
    Column("settings", show="data"),
)


def published_table(patterns: tuple[str, ...], project: str | None, block: str | None, data: str | None) -> Table:
    """A line for each checkpoint that all filters let through.

    Raises:
        ConfigError: a filter that lets none through, with close matches.
    """
    chosen = list(entries().values())
    for wanted, field in ((project, "project"), (block, "block"), (data, "data")):
        if wanted is None:
            continue
        known = sorted({str(getattr(entry, field)) for entry in chosen})
        exact = [entry for entry in chosen if wanted.lower() == str(getattr(entry, field)).lower()]
        chosen = exact or [entry for entry in chosen if wanted.lower() in str(getattr(entry, field)).lower()]
        if not chosen:
            raise ConfigError(f"no published checkpoint has the {field} `{wanted}`", did_you_mean(wanted, known))
    names = [entry.name for entry in chosen]
    matching: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if fnmatch(name, pattern if set(pattern) & set("*?[") else f"*{pattern}*")]
        if not found:
            raise ConfigError(
                f"no published checkpoint has a name like `{pattern}`",
                did_you_mean(pattern, names, otherwise="take a part of a name, or a pattern"),
            )
        matching.update(found)
    rows = [_row(entry) for entry in chosen if not patterns or entry.name in matching]
    notes = [f"{len(rows)} checkpoints; `nlprobe fetch NAME` downloads one, and --ckpt FILE reads it."]
    return Table("Published checkpoints that nlprobe reads", COLUMNS, tuple(rows), tuple(notes), "tab:published")


def _row(entry: Entry) -> Row:
    settings = " ".join(f"{name}={value}" for name, value in entry.settings.items())
    flaw, note, sha256 = (text or None for text in (entry.flaw, entry.note, entry.sha256))
    return Row(
        tuple(
            Cell(value)
            for value in (
                *(entry.name, entry.data, entry.block, entry.metric or None, flaw, note),
                *(entry.project, entry.url, sha256, settings),
            )
        )
    )
