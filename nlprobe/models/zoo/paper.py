"""The paper's printed cells, as printed."""

import csv
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class PaperRow:
    """One row of one table of the paper.

    Args:
        table: `1`, `8a`, …
        dataset: `ImageNet`, …
        row: The row's label, such as `baseline`, `+1 NL`, `E-Gaussian`, `c4`.
        cells: Printed text by column: `top1`, `top5`, `miou` (%), of boxes and masks `ap_box`, `ap50_box`, `ap75_box`,
            `ap_mask`, … (%), `params` (M), `flops` (G) and the cosine distances `input`, `key`, `query`, `prod`, `att`,
            `output`. A dash in the paper is an absent column.
    """

    table: str
    dataset: str
    row: str
    cells: dict[str, str] = field(hash=False)


def paper_row(table: str, dataset: str, row: str) -> PaperRow:
    """The cells of a row; O(1) after the first call, which reads the file."""
    return PaperRow(table, dataset, row, dict(_cells()[table, dataset, row]))


def order_in_paper(row: PaperRow) -> int:
    """Where a row stands among all printed rows."""
    return list(_cells()).index((row.table, row.dataset, row.row))


@cache
def _cells() -> dict[tuple[str, str, str], dict[str, str]]:
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    text = files(__package__).joinpath("paper.csv").read_text(encoding="utf-8")
    for line in csv.DictReader(text.splitlines()):
        row = cells.setdefault((line["table"], line["dataset"], line["row"]), {})
        row[line["column"]] = line["value"]
    return cells
