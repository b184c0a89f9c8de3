"""`nlprobe viz emergence`, in process."""

import json
from pathlib import Path

import pandas as pd
import pytest

from nlprobe.cli import run
from nlprobe.emergence import COLUMNS, write_emergence


def viz(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Run the command and return its stdout; on failure, its stderr."""
    returned = run(["viz", "emergence", *map(str, arguments)])
    captured = capsys.readouterr()
    assert returned == code, captured.err
    return captured.err if code else captured.out


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two folders with records, of two sites each."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, factor in zip(folders, (1, 2), strict=True):
        lines = [
            (step, step / 10, 8 * step, site, "att", measure, factor * value, 0.01, 0.9, 5, 64, False)
            for site in ("layer2.0:after_add", "layer3.0:after_add")
            for step, value in ((0, 0.01), (10, 0.1))
            for measure in ("avg_dist", "entropy", "n_eff")
        ]
        write_emergence(folder / "emergence.csv", pd.DataFrame(lines, columns=list(COLUMNS)))
    return folders


def test_a_figure_in_three_formats_with_its_data_and_the_first_and_last_values(runs, tmp_path, capsys) -> None:
    rows = json.loads(viz(capsys, *runs, "--out", tmp_path / "figure", "--format", "json"))
    assert {path.suffix for path in tmp_path.glob("figure.*")} == {".png", ".pdf", ".svg", ".csv"}
    assert (rows[0]["run"], rows[0]["first"], rows[0]["last_step"], rows[0]["last"]) == ("first", 0.01, 10, 0.1)
    data = pd.read_csv(tmp_path / "figure.csv")
    assert set(data["run"]) == {"first", "second"}
    assert set(data["measure"]) == {"avg_dist", "entropy", "n_eff/N"}


def test_labels_sites_overlay_and_format_are_heeded(runs, tmp_path, capsys) -> None:
    arguments = [runs[0], runs[1] / "emergence.csv", "--label", "EG", "--label", "G", "--site", "layer3*", "--overlay"]
    table = viz(capsys, *arguments, "--out", tmp_path / "both.svg")
    assert "layer2" not in table
    assert "EG" in table
    assert {path.name for path in tmp_path.glob("both.*")} == {"both.svg", "both.csv"}


def test_the_records_themselves_are_never_overwritten(runs, tmp_path, capsys) -> None:
    before = (runs[0] / "emergence.csv").read_bytes()
    err = viz(capsys, runs[0], "--out", runs[0] / "emergence", "--force", code=2)
    assert "holds the records" in err
    assert (runs[0] / "emergence.csv").read_bytes() == before
    viz(capsys, runs[0], "--out", tmp_path / "f.png")
    assert "is already there" in viz(capsys, runs[0], "--out", tmp_path / "f.png", code=2)


def test_what_cannot_be_drawn_is_refused_in_words(runs, tmp_path, capsys) -> None:
    out = ("--out", tmp_path / "f")
    (tmp_path / "empty").mkdir()
    err = viz(capsys, tmp_path / "empty", *out, code=4)
    assert "holds no `emergence.csv`" in err
    assert "--probe-every" in err
    assert "is not there" in viz(capsys, tmp_path / "nothing", *out, code=4)
    assert "two runs are called `first`" in viz(capsys, runs[0], runs[0], *out, code=2)
    assert "2 runs and 1 labels" in viz(capsys, *runs, "--label", "a", *out, code=2)
    assert "matches `layer9*`" in viz(capsys, runs[0], "--site", "layer9*", *out, code=2)
    assert not list(tmp_path.glob("f.*"))


def test_a_misspelt_figure_is_no_flag_of_the_default_one(capsys) -> None:
    assert run(["viz", "emergnce", "runs/nl"]) == 2
    err = capsys.readouterr().err
    assert "`nlprobe viz` has no command `emergnce`" in err
    assert "did you mean `emergence`" in err
