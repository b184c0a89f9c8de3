"""The table of the agreement of two networks' mean maps."""

from collections.abc import Sequence

from nlprobe.stats.agreement import SiteAgreement
from nlprobe.tables.table import Cell, Column, Row, Table

NUMBERS = {
    "agreement": "same image",
    "shuffled": "other image",
    "difference": "difference",
    "uniform_first": "first and uniform",
    "uniform_second": "second and uniform",
}


def agreement_table(found: Sequence[SiteAgreement]) -> Table:
    """A row for each pair of sites that was compared: cosines of mean maps, with intervals.

    Args:
        found: What was compared.
    """
    columns = (
        Column("networks", head=""),
        Column("sites", head="sites"),
        Column("grid", head="cells"),
        *(Column(name, head=head, group="cosine of mean maps") for name, head in NUMBERS.items()),
        Column("n", head="images"),
    )
    rows = [
        Row(
            (
                Cell(f"{one.first}, {one.second}"),
                Cell(" = ".join(dict.fromkeys(one.sites))),
                Cell("–".join(dict.fromkeys(f"{height}x{width}" for height, width in one.grids))),
                *(_cell(one, name) for name in NUMBERS),
                Cell(one.estimates["agreement"].n),
            )
        )
        for one in found
    ]
    notes = [f"{one.sites[0]} of {one.first} and {one.sites[1]} of {one.second}: {one.matched}." for one in found]
    notes.append("Other image: the second network's map of another image.")
    if any(one.estimates["agreement"].n > 1 for one in found):
        notes.append("Intervals: 95 % bootstrap over images.")
    return Table("Agreement of mean attention maps", columns, tuple(rows), tuple(notes), "tab:agreement")


def _cell(one: SiteAgreement, name: str) -> Cell:
    estimate = one.estimates[name]
    return Cell(estimate.mean, estimate.low, estimate.high, estimate.n)
