"""stdout carries the result, stderr all else."""

import io
import sys

import pytest

from nlprobe.commands import report
from nlprobe.commands.report import progress, result, say, terminal_width, wrote


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_the_result_goes_to_stdout_and_the_log_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    result("table\n")
    say("reading")
    wrote("a/b.csv")
    captured = capsys.readouterr()
    assert captured.out == "table\n"
    assert captured.err == "reading\nwrote a/b.csv\n"


def test_lines_are_as_long_as_they_need_to_be_where_stdout_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert terminal_width() is None
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert terminal_width() == 72


def test_without_a_terminal_progress_is_a_line_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(100), "probing")) == list(range(100))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "probing: 10/100 images, 0 s"
    assert lines[-1] == "probing: 100/100 images, 0 s"


def test_batches_are_counted_by_their_images(capsys: pytest.CaptureFixture[str]) -> None:
    batches = [[0] * 8, [0] * 8, [0] * 3]
    assert list(progress(batches, "probing", 19, count=len)) == batches
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["8/19", "16/19", "19/19"]


def test_a_slow_stream_of_unknown_length_reports_by_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(report.time, "monotonic", lambda: float(next(clock)))
    assert list(progress(iter("abcd"), "reading", unit="files")) == list("abcd")
    assert capsys.readouterr().err.splitlines() == ["reading: 2 files, 40 s", "reading: 4 files, 80 s"]


def test_an_empty_stream_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([], "probing")) == []
    assert capsys.readouterr().err == ""


def test_on_a_terminal_progress_is_a_bar_and_a_log_line_stands_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for item in progress(range(3), "probing"):
        if item == 1:
            say("a line")
    written = terminal.getvalue()
    assert "\rprobing:" in written
    assert "\ra line\n" in written


def test_an_exception_passes_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        sum(1 // item for item in progress(range(3), "probing"))
