"""What a command says: its result on stdout, everything else on stderr."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

import click
from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 30.0


def use_colour(terminal: bool) -> bool:
    """Whether to colour what goes to a terminal, or elsewhere: not under `NO_COLOR` or `TERM=dumb`, never in a file."""
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width() -> int | None:
    """Characters in a line of the terminal that stdout is; None where it is none and lines may be of any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def result(text: str) -> None:
    """Write the command's result, and nothing else, to stdout."""
    click.echo(text.rstrip("\n"), color=use_colour(sys.stdout.isatty()))


def say(message: str) -> None:
    """Write one line of the log to stderr, above a progress bar where there is one."""
    with tqdm.external_write_mode(file=sys.stderr):
        click.echo(message, err=True, color=use_colour(sys.stderr.isatty()))


def wrote(path: Path | str) -> None:
    """Log that a file or folder was written."""
    say(f"wrote {path}")


def progress(
    iterable: Iterable[Item],
    label: str,
    total: int | None = None,
    *,
    unit: str = "images",
    count: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Item]:
    """Pass the items of `iterable` on and show how far they are, on stderr.

    On a terminal it is a bar; elsewhere (a log file, a batch system) it is a line at each tenth of `total` and whenever
    half a minute went by without one.

    Args:
        iterable: Where the items come from.
        label: What is going on, in a word or two.
        total: How many units there will be in all; the length of `iterable` where `count` is left alone.
        unit: What is counted.
        count: How many units an item holds, such as the images of a batch.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        yield from _bar(iterable, label, total, unit, count)
    else:
        yield from _lines(iterable, label, total, unit, count)


def _bar(
    iterable: Iterable[Item], label: str, total: int | None, unit: str, count: Callable[[Item], int]
) -> Iterator[Item]:
    ascii_only = not (sys.stderr.encoding or "").lower().startswith("utf")
    with tqdm(
        desc=label, total=total, unit=f" {unit}", file=sys.stderr, leave=False, dynamic_ncols=True, ascii=ascii_only
    ) as bar:
        for item in iterable:
            yield item
            bar.update(count(item))


def _lines(
    iterable: Iterable[Item], label: str, total: int | None, unit: str, count: Callable[[Item], int]
) -> Iterator[Item]:
    done, said, started = 0, 0, time.monotonic()
    spoke = started
    step = max(1, -(-total // 10)) if total else None
    for item in iterable:
        yield item
        done += count(item)
        now = time.monotonic()
        due = step is not None and (done // step > said // step or done == total)
        if due or now - spoke >= SECONDS_BETWEEN_LINES:
            of = f"/{total}" if total else ""
            say(f"{label}: {done}{of} {unit}, {now - started:.0f} s")
            said, spoke = done, now
