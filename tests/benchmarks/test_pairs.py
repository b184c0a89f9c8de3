"""The harness of the benchmarks: who wins, by how much, and when a row falls short."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.memory import peak_extra_bytes
from benchmarks.pairs import Result, Row, main, measure

ROOT = Path(__file__).parents[2]


def result(kind: str, target: float, low: float, high: float) -> Result:
    return Result("row", target, kind, 1.0, 1.0, (low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("kind", "target", "low", "high", "passed"),
    [
        ("at_most", 1.0, 0.8, 0.9, True),
        ("at_most", 1.0, 0.9, 1.3, True),
        ("at_most", 1.0, 1.01, 1.3, False),
        ("faster", 3.0, 3.5, 4.0, True),
        ("faster", 3.0, 2.5, 3.1, True),
        ("faster", 3.0, 2.5, 2.9, False),
    ],
)
def test_a_row_fails_only_when_its_whole_interval_misses(
    kind: str, target: float, low: float, high: float, passed: bool
) -> None:
    assert result(kind, target, low, high).passed is passed


def test_both_directions_of_a_ratio() -> None:
    quick, slow = (lambda: time.sleep(0.002)), (lambda: time.sleep(0.02))
    at_most, faster = measure([Row("a", 1.0, "at_most", quick, slow), Row("b", 1.0, "faster", quick, slow)])
    assert at_most.low <= at_most.ratio <= at_most.high < 1
    assert 1 < faster.low <= faster.ratio <= faster.high
    assert at_most.ours < at_most.peer


def test_the_calls_are_interleaved_and_the_first_is_not_measured() -> None:
    calls: list[str] = []

    def record(name: str) -> None:
        calls.append(name)
        time.sleep(0.021 if len(calls) > 4 else 0.1)  # warm-up and the call that sets the repeats

    measure([Row("a", 1.0, "at_most", lambda: record("ours"), lambda: record("peer"))])
    assert calls[:4] == ["ours", "ours", "peer", "peer"]
    pairs = [tuple(calls[start : start + 2]) for start in range(4, len(calls), 2)]
    assert pairs == [("ours", "peer"), ("peer", "ours")] * 4 + [("ours", "peer")]


def test_a_name_that_fits_no_row_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([Row("a", 1.0, "at_most", int, int)], ["--row", "zebra"]) == 2
    assert "no row's name contains zebra" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_run_in_fresh_processes_and_decide_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(
        "import os, time\n"
        "from benchmarks.pairs import Row, main\n"
        "print('process', os.getpid(), flush=True)\n"
        "quick, slow = (lambda: time.sleep(0.002)), (lambda: time.sleep(0.02))\n"
        "rows = [Row('holds', 1.0, 'at_most', quick, slow), Row('falls short', 1.0, 'at_most', slow, quick)]\n"
        "if __name__ == '__main__':\n"
        "    raise SystemExit(main(rows))\n"
    )
    command = [sys.executable, "-m", "sample"]
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    both = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert both.returncode == 1, both.stderr
    assert "falls short" in both.stdout
    assert "SHORT" in both.stdout
    one = subprocess.run([*command, "--row", "holds"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr


def test_the_peak_of_a_call_is_seen_even_when_it_is_freed_before_the_end() -> None:
    program = (
        "import torch\n"
        "from benchmarks.memory import peak_extra_bytes\n"
        "def call():\n"
        "    torch.ones(64 * 2**20)\n"
        "print(peak_extra_bytes(call), peak_extra_bytes(lambda: None))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    peak, nothing = (int(number) for number in done.stdout.split())
    assert 250 * 2**20 < peak < 300 * 2**20
    assert nothing < 8 * 2**20
    assert peak_extra_bytes(lambda: torch.ones(1)) >= 0
