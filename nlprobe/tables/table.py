"""Tables: cells with intervals, rendered for the terminal, LaTeX, Markdown, CSV and JSON.

Print has three decimals, as the paper. What would round to 0.000 without being zero is written with its exponent,
`3.1e-5`; an exact zero is `0`, an undefined value `undef.` and what a block does not have `-`. Data formats keep full
precision, the interval as `NAME_low` and `NAME_high`, and the number of images as `NAME_n`.
"""

import csv
import io
import json
import math
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

FORMATS = ("table", "tex", "md", "csv", "json")

ABSENT = "-"
UNDEFINED = "undef."

TEX_WIDTH = 116
"""Characters of \\footnotesize in a line across both columns of a paper; LaTeX tables are broken beyond."""

GAP = 2
"""Spaces between the columns of a terminal table."""


@dataclass(frozen=True)
class Cell:
    """What stands at one row and column.

    Attributes:
        value: A number, a text, or None where the thing does not exist; NaN is undefined.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end of the interval.
        n: How many images the value is the mean of.
        text: Printed in place of the number, which the data formats keep: "0 (by construction)".
    """

    value: float | int | str | None = None
    low: float = math.nan
    high: float = math.nan
    n: int | None = None
    text: str | None = None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its name in the data formats.
        head: Its heading in print; `name` if left out.
        group: The heading that it shares with its neighbours in print.
        decimals: Digits after the point in print.
        show: "both", "print" or "data": where the column is found. In print, a column without any value is left out.
    """

    name: str
    head: str | None = None
    group: str = ""
    decimals: int = 3
    show: str = "both"

    @property
    def heading(self) -> str:
        """What is printed above the column."""
        return self.name if self.head is None else self.head


@dataclass(frozen=True)
class Row:
    """One row; a `child` row (a baseline, the paper's cells) is indented below the row that it belongs to."""

    cells: tuple[Cell, ...]
    child: bool = False


@dataclass(frozen=True)
class Table:
    """A table of cells.

    Attributes:
        title: What the table shows; the first sentence of the caption in LaTeX.
        columns: The columns; the first one that is printed labels the rows and is repeated where a wide table breaks.
        rows: The rows, each as long as `columns`.
        notes: Sentences that explain the cells; they end the caption in LaTeX and stand below the table elsewhere.
        label: The label for LaTeX's references.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    label: str = "tab:nlprobe"

    @classmethod
    def of(
        cls, title: str, columns: Sequence[str | Column], rows: Iterable[Sequence[object]], *, notes: Sequence[str] = ()
    ) -> "Table":
        """A table of plain values: numbers, texts, None, or cells."""
        heads = tuple(Column(column) if isinstance(column, str) else column for column in columns)
        return cls(title, heads, tuple(Row(tuple(_cell(value) for value in row)) for row in rows), tuple(notes))

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"a row has {len(row.cells)} cells and the table {len(self.columns)} columns")

    def render(self, format: str = "table", *, width: int | None = None) -> str:
        """The table as text that ends with a newline.

        Args:
            format: One of `FORMATS`.
            width: Characters in a line of the terminal, for "table": a wider table is broken into panels below each
                other. Without it a row is a line.

        Raises:
            ValueError: the format is not known.
        """
        match format:
            case "table":
                return _terminal(self, width)
            case "tex":
                return _latex(self)
            case "md":
                return _markdown(self)
            case "csv":
                return _csv(self)
            case "json":
                return json.dumps(self.records(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        raise ValueError(f"unknown format `{format}`; known: {', '.join(FORMATS)}")

    def records(self) -> list[dict[str, object]]:
        """The rows for JSON: full precision, None where undefined; what does not exist has no key."""
        records: list[dict[str, object]] = []
        for row in self.rows:
            record: dict[str, object] = {}
            for column, cell in _data_cells(self, row):
                record |= {key: _finite(value) for key, value in _values(column, cell).items()}
            records.append(record)
        return records


def number(value: float | int, decimals: int = 3) -> str:
    """A number in print: `decimals` digits after the point, an exponent where these would all be zero."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return UNDEFINED
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    if abs(value) < 0.5 * 10.0**-decimals:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{decimals}f}"


def interval(cell: Cell, decimals: int = 3) -> tuple[str, str] | None:
    """The ends of a cell's interval in print, without the zero before the point; None where there is none."""
    if cell.text is not None or math.isnan(cell.low) or math.isnan(cell.high):
        return None
    low, high = (number(float(end), decimals) for end in (cell.low, cell.high))
    return _without_zero(low), _without_zero(high)


def _without_zero(text: str) -> str:
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def printed(cell: Cell, decimals: int = 3) -> str:
    """The cell's value in print, without its interval."""
    if cell.text is not None:
        return cell.text
    if cell.value is None:
        return ABSENT
    if isinstance(cell.value, str):
        return "".join(character if character.isprintable() else "?" for character in cell.value)
    return number(cell.value, decimals)


def _cell(value: object) -> Cell:
    if isinstance(value, Cell):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return Cell(value)
    return Cell(str(value))


def _print_indices(table: Table) -> list[int]:
    """The columns that are printed: those that are not for data only and hold something."""
    return [
        index
        for index, column in enumerate(table.columns)
        if column.show != "data"
        and (not table.rows or any(row.cells[index].value is not None or row.cells[index].text for row in table.rows))
    ]


def _is_text(table: Table, index: int) -> bool:
    values = [row.cells[index].value for row in table.rows if not row.child or index == 0]
    return all(value is None or isinstance(value, str) for value in values) and any(values)


def _panels(table: Table, widths: Mapping[int, int], limit: int | None) -> list[list[int]]:
    """The printed columns, broken into panels of at most `limit` characters, between groups rather than inside."""
    label, *others = _print_indices(table)
    if limit is None:
        return [[label, *others]]
    blocks: list[list[int]] = []
    for _, run in groupby(others, key=lambda index: table.columns[index].group):
        block = list(run)
        fits = widths[label] + sum(widths[index] for index in block) <= limit
        blocks += [block] if fits and table.columns[block[0]].group else [[index] for index in block]
    panels: list[list[int]] = [[label]]
    for block in blocks:
        used = sum(widths[index] for index in panels[-1])
        if len(panels[-1]) > 1 and used + sum(widths[index] for index in block) > limit:
            panels.append([label])
        panels[-1] += block
    return panels


def _spans(table: Table, panel: Sequence[int]) -> list[tuple[str, int]]:
    """The group headings of a panel, each with the number of columns that it spans."""
    return [(group, len(list(run))) for group, run in groupby(table.columns[index].group for index in panel)]


def _lines(table: Table, row: Row, panel: Sequence[int]) -> tuple[list[str], list[str]]:
    """A row's two lines of text: the values, and the intervals below them."""
    values, intervals = [], []
    for index in panel:
        cell, decimals = row.cells[index], table.columns[index].decimals
        indent = "  " if row.child and index == panel[0] else ""
        ends = interval(cell, decimals)
        values.append(indent + printed(cell, decimals))
        intervals.append("–".join(ends) if ends else "")
    return values, intervals


def _widths(table: Table, *, interval_scale: float = 1.0) -> dict[int, int]:
    """How many characters each printed column needs."""
    indices = _print_indices(table)
    widths = {index: len(table.columns[index].heading) for index in indices}
    for row in table.rows:
        for index, value, ends in zip(indices, *_lines(table, row, indices), strict=True):
            widths[index] = max(widths[index], len(value), math.ceil(interval_scale * len(ends)))
    return widths


def _terminal(table: Table, width: int | None) -> str:
    widths = {index: count + GAP for index, count in _widths(table).items()}
    for group, run in groupby(widths, key=lambda index: table.columns[index].group):
        indices = list(run)
        widths[indices[-1]] += max(0, len(group) + 2 + GAP - sum(widths[index] for index in indices)) if group else 0
    panels = ["\n".join(_terminal_panel(table, panel, widths)) for panel in _panels(table, widths, width)]
    notes = "\n".join(_fill(note, width) for note in table.notes)
    return "\n\n".join(part for part in (_fill(table.title, width), *panels, notes) if part) + "\n"


def _fill(text: str, width: int | None) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if width else text


def _terminal_panel(table: Table, panel: Sequence[int], widths: Mapping[int, int]) -> Iterator[str]:
    gap = " " * GAP
    left = {index for index in panel if _is_text(table, index)}

    def line(texts: Iterable[str]) -> str:
        pairs = zip(panel, texts, strict=True)
        cells = (f"{text:{'<' if index in left else '>'}{widths[index] - GAP}}" for index, text in pairs)
        return gap.join(cells).rstrip()

    if any(table.columns[index].group for index in panel):
        heads, start = [], 0
        for group, count in _spans(table, panel):
            room = sum(widths[index] for index in panel[start : start + count]) - GAP
            heads.append(f" {group} ".center(room, "-")[:room] if group else " " * room)
            start += count
        yield gap.join(heads).rstrip()
    yield line(table.columns[index].heading for index in panel)
    yield "-" * (sum(widths[index] for index in panel) - GAP)
    families = any(row.child for row in table.rows)
    for position, row in enumerate(table.rows):
        if families and position and not row.child:
            yield ""
        values, intervals = _lines(table, row, panel)
        yield line(values)
        if any(intervals):
            yield line(intervals)


_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", '"': "''", "’": "'"},
    **{"<": "$<$", ">": "$>$", "|": "$|$", "–": "--", "—": "---", "−": "$-$", "…": "\\ldots{}", "→": "$\\to$"},
    **{"×": "$\\times$", "±": "$\\pm$", "·": "$\\cdot$", "≤": "$\\leq$", "≥": "$\\geq$", "ω": "$\\omega$"},
    **{"\u00a0": "~", "\u202f": "\\,"},
}


def escape_tex(text: str) -> str:
    """`text` for LaTeX; what a plain `article` cannot set becomes its ASCII form, or `?` where it has none."""
    return "".join(_TEX.get(character) or _settable(character) for character in text)


def _settable(character: str) -> str:
    if character.isascii() or "\u00a1" <= character <= "\u017f":
        return character if character.isprintable() else " "
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def _latex(table: Table) -> str:
    widths = {index: count + 1 for index, count in _widths(table, interval_scale=0.85).items()}
    caption = " ".join(sentence.rstrip(".") + "." for sentence in (table.title, *table.notes) if sentence)
    lines = [
        "% Needs the package booktabs. This file alone, as a page:",
        "%   \\documentclass{article} \\usepackage{booktabs} \\begin{document} \\input{THIS FILE} \\end{document}",
        "\\begin{table*}[t]",
        "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}",
        *([f"\\caption{{{escape_tex(caption)}}}", f"\\label{{{table.label}}}", "\\par\\smallskip"] if caption else []),
        "\n\\par\\medskip\n".join("\n".join(_latex_panel(table, panel)) for panel in _panels(table, widths, TEX_WIDTH)),
        "\\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def _latex_panel(table: Table, panel: Sequence[int]) -> Iterator[str]:
    alignment = "".join("l" if _is_text(table, index) else "r" for index in panel)
    yield f"\\makebox[\\linewidth][c]{{\\begin{{tabular}}{{@{{}}{alignment}@{{}}}}"
    yield "\\toprule"
    if any(table.columns[index].group for index in panel):
        spans = _spans(table, panel)
        yield " & ".join(f"\\multicolumn{{{count}}}{{c}}{{{escape_tex(group)}}}" for group, count in spans) + r" \\"
        yield " ".join(_latex_rules(spans))
    yield " & ".join(escape_tex(table.columns[index].heading) for index in panel) + r" \\"
    yield "\\midrule"
    families = any(row.child for row in table.rows)
    for position, row in enumerate(table.rows):
        if families and position and not row.child:
            yield "\\addlinespace"
        values = [_latex_value(row.cells[index], table.columns[index].decimals) for index in panel]
        intervals = [_latex_interval(row.cells[index], table.columns[index].decimals) for index in panel]
        # Without the braces, `\\` would take a bracket or star at the start of the next row for its own argument.
        lead = "\\quad " if row.child else "{}" if values[0].startswith(("[", "*")) else ""
        yield lead + " & ".join(values) + (r" \\[-1pt]" if any(intervals) else r" \\")
        if any(intervals):
            yield " & ".join(intervals) + r" \\"
    yield "\\bottomrule"
    yield "\\end{tabular}}"


def _latex_rules(spans: Sequence[tuple[str, int]]) -> Iterator[str]:
    start = 1
    for group, count in spans:
        if group:
            yield f"\\cmidrule(lr){{{start}-{start + count - 1}}}"
        start += count


def _latex_value(cell: Cell, decimals: int) -> str:
    text = printed(cell, decimals)
    is_number = cell.text is None and isinstance(cell.value, int | float)
    return _latex_number(text) if is_number else escape_tex(text)


def _latex_interval(cell: Cell, decimals: int) -> str:
    ends = interval(cell, decimals)
    return f"{{\\scriptsize {'--'.join(_latex_number(end) for end in ends)}}}" if ends else ""


def _latex_number(text: str) -> str:
    mantissa, e, exponent = text.partition("e")
    if e and exponent.lstrip("-").isdigit():
        return f"${mantissa}{{\\cdot}}10^{{{exponent}}}$"
    return f"$-${text[1:]}" if text.startswith("-") else escape_tex(text)


def _markdown(table: Table) -> str:
    indices = _print_indices(table)
    rows = []
    for row in table.rows:
        values, intervals = _lines(table, row, indices)
        texts = [
            escape_markdown(value.strip()) + (f" [{ends.replace('–', ', ')}]" if ends else "")
            for value, ends in zip(values, intervals, strict=True)
        ]
        rows.append([("&emsp;" if row.child else "") + texts[0], *texts[1:]])
    headings: list[str] = []
    for column in (table.columns[index] for index in indices):
        # there is no line for groups, and a name that stands twice would not tell which
        twice = column.group and column.heading in headings
        headings.append(escape_markdown(f"{column.group}: {column.heading}" if twice else column.heading))
    frame = pd.DataFrame(rows, columns=headings, dtype=str)
    alignment = ["left" if _is_text(table, index) else "right" for index in indices]
    body = frame.to_markdown(index=False, colalign=alignment if rows else None, disable_numparse=True)
    title = f"**{escape_markdown(table.title)}**" if table.title else ""
    notes = "  \n".join(escape_markdown(note) for note in table.notes)
    return "\n\n".join(part for part in (title, body, notes) if part) + "\n"


def escape_markdown(text: str) -> str:
    """`text` for Markdown, so that no name turns into emphasis, a tag or a column."""
    return "".join(f"\\{character}" if character in "\\`*_|<[]" else character for character in text)


def _data_cells(table: Table, row: Row) -> list[tuple[Column, Cell]]:
    return [pair for pair in zip(table.columns, row.cells, strict=True) if pair[0].show != "print"]


def _values(column: Column, cell: Cell) -> dict[str, object]:
    """A cell's fields in the data formats."""
    values: dict[str, object] = {column.name: cell.value} if cell.value is not None else {}
    if not (math.isnan(cell.low) or math.isnan(cell.high)):
        values |= {f"{column.name}_low": cell.low, f"{column.name}_high": cell.high}
    if cell.n is not None:
        values[f"{column.name}_n"] = cell.n
    if cell.text is not None:
        values[f"{column.name}_note"] = cell.text
    return values


def _csv(table: Table) -> str:
    """Full precision; `nan` where undefined, empty where the thing does not exist."""
    rows = [_data_cells(table, row) for row in table.rows]
    names: list[str] = []
    for position, column in enumerate(column for column in table.columns if column.show != "print"):
        used = {name for row in rows for name in _values(*row[position])}
        suffixes = ("", "_low", "_high", "_n", "_note")
        names += [column.name, *(column.name + suffix for suffix in suffixes[1:] if column.name + suffix in used)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: value for column, cell in row for key, value in _values(column, cell).items()})
    return text.getvalue()


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
