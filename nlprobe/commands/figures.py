"""Where a figure goes: the flags that every figure has, and the files that they mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from nlprobe.commands.options import Function
from nlprobe.files import refuse_existing
from nlprobe.plots import FORMATS

_OUT = click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Path of the figure; the ending is optional."
)
_FORMATS = click.option(
    "--figure-format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    help="png, pdf or svg; repeatable. By default all, or the ending of --out.",
)


def figure_options(command: Function) -> Function:
    """`--out` and `--figure-format`."""
    return _OUT(_FORMATS(command))


@dataclass(frozen=True)
class Target:
    """The files of a figure: a path without ending, and the formats."""

    stem: Path
    formats: tuple[str, ...]

    @classmethod
    def of(cls, out: Path, formats: tuple[str, ...]) -> "Target":
        """What `--out` and `--figure-format` mean."""
        ending = out.suffix.lstrip(".")
        known = ending in FORMATS
        return cls(out.with_suffix("") if known else out, formats or ((ending,) if known else FORMATS))

    def path(self, ending: str) -> Path:
        """The file with that ending."""
        return self.stem.with_name(f"{self.stem.name}.{ending}")

    def beside(self, suffix: str) -> Path:
        """A file beside the figure, whose name goes on with that: `_numbers.csv`."""
        return self.stem.with_name(f"{self.stem.name}{suffix}")

    def refuse_existing(self, beside: Sequence[str], *, force: bool, others: Sequence[Path] = ()) -> None:
        """Raise a ConfigError where the figure, or a file that goes with it, is already there.

        Args:
            beside: Endings of files of data.
            force: What is there may be replaced.
            others: Further files.
        """
        for path in (*map(self.path, (*self.formats, *beside)), *others):
            refuse_existing(path, force=force)
