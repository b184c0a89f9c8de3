"""Tables and their five formats."""

import csv
import io
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nlprobe.tables import FORMATS, Cell, Column, Row, Table
from nlprobe.tables.table import escape_tex, number


def example() -> Table:
    columns = (
        Column("name", head=""),
        Column("att", group="cosine distance"),
        Column("output", group="cosine distance"),
        Column("n_eff", decimals=1),
        Column("hidden", show="data"),
        Column("images"),
    )
    fixed = Cell(0.0, text="0 (by construction)")
    rows = (
        Row((Cell("res_net & co"), Cell(0.40123, 0.398, 0.404, 50), Cell(3.14e-5), Cell(143.25), Cell("x"), Cell(50))),
        Row((Cell("at start"), Cell(math.nan, n=0), fixed, Cell(), Cell("y"), Cell(50)), child=True),
    )
    return Table("Distances of res_net", columns, rows, ("50 % of them.",))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4014, "0.401"),
        (0.0005, "0.001"),
        (0.00049, "4.9e-4"),
        (3.14e-10, "3.1e-10"),
        (-2e-5, "-2.0e-5"),
        (-0.25, "-0.250"),
        (0.0, "0"),
        (math.nan, "undef."),
        (math.inf, "inf"),
        (12, "12"),
        (True, "yes"),
    ],
)
def test_a_number_never_rounds_to_nothing(value: float, text: str) -> None:
    assert number(value) == text


def test_the_terminal_shows_values_over_their_intervals() -> None:
    assert example().render() == (
        "Distances of res_net\n\n"
        "              ------ cosine distance -------\n"
        "                    att               output  n_eff  images\n"
        "-----------------------------------------------------------\n"
        "res_net & co      0.401               3.1e-5  143.2      50\n"
        "              .398–.404\n"
        "  at start       undef.  0 (by construction)      -      50\n\n"
        "50 % of them.\n"
    )


def test_a_wide_table_breaks_between_groups_and_repeats_its_label() -> None:
    text = example().render("table", width=48)
    assert max(map(len, text.splitlines())) <= 48
    assert text.count("res_net & co") == 2
    first, second = text.split("\n\n")[1:3]
    assert "att" in first
    assert "output" in first
    assert "n_eff" in second


def test_a_group_may_have_a_longer_name_than_its_column() -> None:
    columns = ("model", Column("a", group="a rather long name"), Column("b", group="other"))
    head, names, rule, row = Table.of("", columns, [["net", 0.5, 0.25]]).render().splitlines()
    assert head == f"{'':5}   a rather long name    other"
    assert names == f"model  {'a':>20}  {'b':>7}"
    assert rule == "-" * 36
    assert row == f"net    {'0.500':>20}  {'0.250':>7}"


def test_a_very_narrow_terminal_loses_no_column() -> None:
    text = example().render("table", width=20)
    for name in ("att", "output", "n_eff", "images"):
        assert name in text


def test_markdown_keeps_names_literal() -> None:
    lines = example().render("md").splitlines()
    assert lines[0] == "**Distances of res\\_net**"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells[0] == ["", "att", "output", "n\\_eff", "images"]
    assert cells[2] == ["res\\_net & co", "0.401 [.398, .404]", "3.1e-5", "143.2", "50"]
    assert cells[3] == ["&emsp;at start", "undef.", "0 (by construction)", "-", "50"]


def test_csv_keeps_full_precision_and_tells_undefined_from_absent() -> None:
    first, second = csv.DictReader(io.StringIO(example().render("csv")))
    assert float(first["att"]) == 0.40123
    assert (first["att_low"], first["att_high"], first["att_n"]) == ("0.398", "0.404", "50")
    assert float(first["output"]) == 3.14e-5
    assert first["hidden"] == "x"
    assert second["att"] == "nan"
    assert second["n_eff"] == ""
    assert (second["output"], second["output_note"]) == ("0.0", "0 (by construction)")


def test_json_is_strict_and_flat() -> None:
    first, second = json.loads(example().render("json"), parse_constant=pytest.fail)
    assert first["att"] == 0.40123
    assert first["att_high"] == 0.404
    assert second["att"] is None
    assert "n_eff" not in second
    assert second["output_note"] == "0 (by construction)"


def test_latex_has_a_cell_for_every_column() -> None:
    text = example().render("tex")
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if "&" in line]
    assert rows == [
        "res\\_net \\& co & 0.401 & $3.1{\\cdot}10^{-5}$ & 143.2 & 50 \\\\[-1pt]",
        " & {\\scriptsize .398--.404} &  &  &  \\\\",
        "\\quad at start & undef. & 0 (by construction) & - & 50 \\\\",
    ]
    assert "\\multicolumn{2}{c}{cosine distance}" in text
    assert "\\cmidrule(lr){2-3}" in text
    assert "\\caption{Distances of res\\_net. 50 \\% of them.}" in text


def test_latex_breaks_a_table_that_the_page_has_no_room_for() -> None:
    columns = [Column("model"), *(Column(f"quantity {index}", group=f"group {index // 4}") for index in range(16))]
    text = Table.of("Wide", columns, [["a", *[0.5] * 16]]).render("tex")
    assert text.count("\\begin{tabular}") == 2
    assert text.count("\na & ") == 2


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50 % & #1 $x_{i}$", "50 \\% \\& \\#1 \\$x\\_\\{i\\}\\$"),
        ("a\\b~c^d", "a\\textbackslash{}b\\textasciitilde{}c\\textasciicircum{}d"),
        ("<0.1 – 2 × 3", "$<$0.1 -- 2 $\\times$ 3"),
        ("é ﬁ 漢", "é fi ?"),
        ("two\nlines", "two lines"),
    ],
)
def test_latex_escapes_what_it_would_take_for_commands(text: str, escaped: str) -> None:
    assert escape_tex(text) == escaped


def test_a_column_without_values_is_left_out_of_print_only() -> None:
    table = Table.of("", ("model", "empty"), [["a", None]])
    assert "empty" not in table.render("table")
    assert "empty" in table.render("csv")


@pytest.mark.parametrize("format", FORMATS)
def test_a_table_without_rows_is_a_table(format: str) -> None:
    text = Table.of("Nothing here", ("model", "att"), []).render(format)
    assert text.endswith("\n")
    if format == "json":
        assert json.loads(text) == []
    else:
        assert "att" in text


def test_names_cannot_break_lines_or_colour_the_terminal() -> None:
    text = Table.of("", ("name", "n"), [["a\n\x1b[31mb", 1]]).render("table")
    assert "a??[31mb  1" in text


def test_numbers_of_numpy_are_numbers() -> None:
    table = Table.of("", ("name", "a", "b", "c"), [["x", np.int64(3), np.float32(0.25), np.bool_(True)]])
    assert table.records() == [{"name": "x", "a": 3, "b": 0.25, "c": True}]


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 1 cells and the table 2 columns"):
        Table.of("", ("a", "b"), [[1]])


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown format `html`; known: table, tex, md, csv, json"):
        example().render("html")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("pdflatex") is None and os.environ.get("CI") != "true",
    reason="pdflatex is not installed (apt-get install texlive-latex-recommended)",
)
@pytest.mark.parametrize("options", ["", "[twocolumn]"], ids=["one-column", "two-column"])
def test_latex_compiles_in_a_bare_article(tmp_path: Path, options: str) -> None:
    nasty = Table.of("A_b & c % d ~ é 漢", ("#", "x_y"), [["[1]", 1e-7], ["*", -0.5], ["\\relax{}", math.nan]])
    for name, table in (("example", example()), ("nasty", nasty)):
        (tmp_path / f"{name}.tex").write_text(table.render("tex"), encoding="utf-8")
    document = f"\\documentclass{options}{{article}} \\usepackage{{booktabs}} \\begin{{document}} text"
    document += "\\input{example} \\input{nasty} \\end{document}"
    (tmp_path / "paper.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "paper.pdf").is_file()
