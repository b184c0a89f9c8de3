"""Interleaved timing of two functions: the median ratio with its 95 % interval, held against a target.

A benchmark module lists its rows and hands them to `main`:

    ROWS = [Row("avg_dist, 4 200x1024", target=50.0, kind="faster", ours=ours, peer=peer)]

    if __name__ == "__main__":
        raise SystemExit(main(ROWS))

`python -m benchmarks.<module>` then measures every row in a process of its own, prints the table and exits with 1 when
a row falls short; `--row TEXT` (repeatable) keeps the rows whose name contains the text.

`ours` and `peer` take no arguments. Each is called once before the clock runs, so what they need is best built on the
first call (`functools.cache` on a function that makes the data): listing rows then costs nothing, and the process that
measures one row never allocates the data of another.
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

PAIRS = 9
# Of nine sorted ratios the second and the eighth enclose the median with 96.1 %, whatever the distribution of the
# noise: 1 - 2 (C(9,0) + C(9,1)) / 2^9.
LOW, HIGH = 1, 7
SHORTEST = 0.02  # seconds; anything quicker is repeated until the clock's and the scheduler's grain no longer show


@dataclass(frozen=True)
class Row:
    """A claim about speed.

    Attributes:
        name: What is measured; unique within a module.
        target: The bound on the ratio.
        kind: "at_most": time(ours) / time(peer) must be at most `target`.
            "faster": time(peer) / time(ours) must be at least `target`.
        ours: What the library does.
        peer: What it is held against.
    """

    name: str
    target: float
    kind: Literal["at_most", "faster"]
    ours: Callable[[], Any]
    peer: Callable[[], Any]


@dataclass(frozen=True)
class Result:
    """What was measured for a row: medians in seconds, the median ratio in the row's direction and its interval."""

    name: str
    target: float
    kind: str
    ours: float
    peer: float
    ratio: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """False when the whole interval misses the target."""
        return self.low <= self.target if self.kind == "at_most" else self.high >= self.target


def synchronise() -> None:
    """Wait for the accelerator, so that a clock read afterwards has seen the work and not just its launch."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Mean time of one call over `repeats` calls in a row."""
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronise()
    return (time.perf_counter() - start) / repeats


def measure_row(row: Row, pairs: int = PAIRS) -> Result:
    """Time `ours` and `peer` in turn, swapping who goes first, and summarise the ratios of the pairs."""
    repeats = []
    for function in (row.ours, row.peer):
        function()
        repeats.append(max(1, round(SHORTEST / max(seconds(function, 1), 1e-9))))
    times = []
    for pair in range(pairs):
        if pair % 2 == 0:
            ours = seconds(row.ours, repeats[0])
            peer = seconds(row.peer, repeats[1])
        else:
            peer = seconds(row.peer, repeats[1])
            ours = seconds(row.ours, repeats[0])
        times.append((ours, peer))
    ratios = sorted(ours / peer if row.kind == "at_most" else peer / ours for ours, peer in times)
    middle = pairs // 2
    low, high = (ratios[LOW], ratios[HIGH]) if pairs == PAIRS else (ratios[0], ratios[-1])
    return Result(
        name=row.name,
        target=row.target,
        kind=row.kind,
        ours=sorted(ours for ours, _ in times)[middle],
        peer=sorted(peer for _, peer in times)[middle],
        ratio=ratios[middle],
        low=low,
        high=high,
    )


def measure(rows: Sequence[Row], pairs: int = PAIRS) -> list[Result]:
    """Measure every row in this process, one after the other."""
    return [measure_row(row, pairs) for row in rows]


def format_result(result: Result) -> str:
    """One line of the table."""
    bound = f"<= {result.target:.2f}x" if result.kind == "at_most" else f">= {result.target:.1f}x faster"
    verdict = "ok" if result.passed else "SHORT"
    return (
        f"{result.name:<58} {result.ours * 1e3:>10.2f} {result.peer * 1e3:>10.2f} "
        f"{result.ratio:>8.3f} [{result.low:>7.3f}, {result.high:>7.3f}]  {bound:<16} {verdict}"
    )


def environment() -> str:
    """The machine in one line, for a number means nothing without it."""
    processor = platform.processor() or platform.machine()
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()}, {processor}"


def measure_apart(row: Row) -> Result:
    """Measure one row in a fresh process that runs the same benchmark module."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        raise SystemExit("run a benchmark as a module: python -m benchmarks.<name>")
    command = [sys.executable, "-m", spec.name, "--in-process", row.name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def main(rows: Sequence[Row], arguments: Sequence[str] | None = None) -> int:
    """Measure the rows, each in a fresh process, and print the table.

    Returns:
        0 when every row holds, 1 when one falls short.
    """
    parser = argparse.ArgumentParser(description="Interleaved pairs: median ratio with its 95 % interval.")
    parser.add_argument("--row", action="append", default=[], metavar="TEXT", help="only rows whose name contains TEXT")
    parser.add_argument("--in-process", metavar="NAME", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)

    if chosen.in_process is not None:
        (row,) = [row for row in rows if row.name == chosen.in_process]
        print(json.dumps(dataclasses.asdict(measure_row(row))))
        return 0

    selected = [row for row in rows if not chosen.row or any(text in row.name for text in chosen.row)]
    if not selected:
        print(f"no row's name contains {', '.join(chosen.row)}", file=sys.stderr)
        return 2
    print(environment())
    print(f"{'':<58} {'ours, ms':>10} {'peer, ms':>10} {'ratio':>8} {'95 % interval':>18}   target")
    passed = True
    for row in selected:
        result = measure_apart(row)
        passed = passed and result.passed
        print(format_result(result), flush=True)
    return 0 if passed else 1
