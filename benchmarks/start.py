"""How long a newcomer waits for `nlprobe --help`, against a Python that imports click."""

import subprocess
import sys
from pathlib import Path

from benchmarks.pairs import Row, main

NLPROBE = str(Path(sys.executable).with_name("nlprobe"))


def run(*command: str) -> None:
    """Run a command and wait for it."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


ROWS = [
    Row(
        "nlprobe --help",
        3.0,
        "at_most",
        lambda: run(NLPROBE, "--help"),
        lambda: run(sys.executable, "-c", "import click"),
    )
]

if __name__ == "__main__":
    raise SystemExit(main(ROWS))
