"""The table of the attention on objects."""

from collections.abc import Sequence

from nlprobe.stats.intervals import Estimate
from nlprobe.stats.objects import ObjectSummary
from nlprobe.tables.table import Cell, Column, Row, Table


def object_table(found: Sequence[ObjectSummary], *, by_class: bool = False) -> Table:
    """A row for all objects of each site, and below it one for each size, or for each class.

    Args:
        found: What was found, of one network or of several.
        by_class: Rows for the classes in place of the sizes.
    """
    columns = (
        Column("row", head="", show="print"),
        Column("model", show="data"),
        Column("site", show="data"),
        Column("group", show="data"),
        Column("name", show="data"),
        Column("mass", head="mean map", group="attention on objects / area", decimals=2),
        Column("within", head="queries inside", group="attention on objects / area", decimals=2),
        Column("area", head="share of area"),
        Column("objects"),
        Column("n", head="images"),
    )
    wanted = ("all", "class" if by_class else "size")
    rows = tuple(_row(one) for one in found if one.group in wanted)
    notes = (
        "1 is attention that is uniform over the picture.",
        "Small, medium, large: under 32², under 96², and more pixels of the original picture.",
        "Intervals: 95 % bootstrap over images.",
    )
    return Table("Attention on objects", columns, rows, notes[:1] + notes[1 + by_class :], "tab:objects")


def _row(one: ObjectSummary) -> Row:
    label = one.name or f"{one.model}, {one.site}"
    cells = (
        *(Cell(text) for text in (label, one.model, one.site, one.group, one.name)),
        *(_cell(estimate) for estimate in (one.mass, one.within)),
        Cell(one.area),
        Cell(one.objects),
        Cell(one.mass.n),
    )
    return Row(cells, child=one.group != "all")


def _cell(estimate: Estimate) -> Cell:
    return Cell(estimate.mean, estimate.low, estimate.high, estimate.n)
