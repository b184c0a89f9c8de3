"""`nlprobe zoo`."""

import csv
import io
import json

import pytest

from nlprobe.cli import run
from nlprobe.models import names


def records(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, object]]:
    assert run(["zoo", "--format", "json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_lists_every_model_with_what_scripts_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    found = records(capsys)
    wanted = {"name", "task", "table", "row", "params", "macs", "paper_params", "paper_flops", "differs", "not_counted"}
    assert all(wanted <= set(record) for record in found)
    assert {record["name"] for record in found} == set(names())
    assert all(type(record["params"]) is int and type(record["macs"]) is int for record in found)
    assert all(record["missed_products"] == [] for record in found)


def test_table_8_stands_beside_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    found = {(record["table"], record["row"]): record for record in records(capsys, "--table", "8")}
    assert len(found) == 10
    nl, average = found["8a", "+1 NL"], found["8b", "avg+scale"]
    assert (nl["name"], nl["params"], nl["macs"]) == ("imagenet/resnet50-nl", 27_658_792, 4_355_919_872)
    assert (nl["paper_params"], nl["paper_flops"], nl["differs"]) == (27.66, 4.11, [])
    assert (average["params"], average["paper_params"], average["differs"]) == (28_064_424, 28.07, ["params"])


def test_a_model_that_no_table_prints_has_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = records(capsys, "miniature-imagenet/resnet-snl")
    assert record["table"] is record["row"] is record["paper_params"] is record["paper_flops"] is None
    assert record["full_size"] == "imagenet/resnet50-snl"


def test_the_table_stars_cells_that_differ_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["zoo", "--table", "8b"]) == 0
    out = capsys.readouterr().out
    starred = [line for line in out.splitlines() if "28.07 *" in line]
    assert [line.split()[2] for line in starred] == ["avg+scale", "avg+add"]
    assert "*: our count does not round to the printed cell" in out
    assert "Not counted: AdaptiveAvgPool2d, add, BatchNorm2d" in out


def test_cells_that_differ_come_with_what_is_known_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["zoo", "--table", "9"]) == 0
    out = capsys.readouterr().out
    assert "* imagenet/resnet50-se: without the biases of its two linear layers it would have 28.072 M" in out
    assert [record["remark"] is not None for record in records(capsys, "--table", "9")] == [False, True, True, False]


def test_names_are_chosen_by_pattern_or_by_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert {record["name"] for record in records(capsys, "imagenet/*-nl-d*")} == {"imagenet/resnet50-nl-dot"}
    assert {record["name"] for record in records(capsys, "snl", "avg-add", "--task", "classification")} == {
        "imagenet/resnet50-snl",
        "imagenet/resnet50-avg-add",
        "miniature-imagenet/resnet-snl",
        "miniature-imagenet/resnet-avg-add",
    }


def test_csv_has_exact_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["zoo", "--table", "8a", "resnet50-gc-all", "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["params"], row["paper_params"], row["row"]) == ("28078773", "28.08", "+all GC")


@pytest.mark.parametrize("format, sign", [("md", "| imagenet/resnet50-snl"), ("tex", "\\toprule")])
def test_papers_take_it_as_latex_and_markdown(capsys: pytest.CaptureFixture[str], format: str, sign: str) -> None:
    assert run(["zoo", "--table", "8a", "snl", "--format", format]) == 0
    assert sign in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--table", "14"], "it has those of 1, 2, 3, 4, 5a, 5b"),
        (["--task", "clasification"], "did you mean `classification`?"),
        (["imagenet/resnet50-gcc"], "`imagenet/resnet50-gc`"),
    ],
)
def test_a_filter_that_matches_nothing_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert run(["zoo", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
