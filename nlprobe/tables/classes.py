"""Tables of class selectivity, and of how far activations depend on the class."""

import math
from collections.abc import Sequence

from nlprobe.stats.class_summaries import ActivationSummary, SelectivitySummary
from nlprobe.stats.intervals import Estimate
from nlprobe.tables.table import Cell, Column, Row, Table

INTERVALS = "Intervals: 95 % bootstrap over images, drawn within their class."


def selectivity_table(summaries: Sequence[SelectivitySummary], title: str = "Class selectivity index") -> Table:
    """A row for each module and network, those of one module below each other.

    Args:
        summaries: Of all networks.
        title: What it is of.
    """
    columns = (
        Column("module"),
        Column("model"),
        Column("channels"),
        Column("dead"),
        Column("signed"),
        Column("index", head="mean index"),
        Column("quartile_1", head="quartile", group="over channels"),
        Column("median", group="over channels"),
        Column("quartile_3", head="quartile", group="over channels"),
        Column("shuffled", head="labels shuffled"),
        Column("difference", head="less the first network"),
        Column("classes", show="data"),
        Column("images", show="data"),
    )
    rows = []
    for one in _by_module(summaries):
        found = one.channels
        signed = int(found.signed.sum())
        rows.append(
            Row(
                (
                    Cell(one.module),
                    Cell(one.model),
                    Cell(len(found.index)),
                    Cell(int(found.dead.sum())),
                    Cell(signed or None),
                    _estimate(one.mean),
                    *(Cell(value) for value in one.quartiles),
                    _estimate(one.shuffled) if not math.isnan(one.shuffled.mean) else Cell(),
                    _estimate(one.difference) if one.difference is not None else Cell(),
                    Cell(found.classes),
                    Cell(one.images),
                )
            )
        )
    notes = [
        "(highest class mean − mean of all others)/(their sum), the mean over the channels that are not dead.",
        INTERVALS,
        "Quartiles are the spread over channels, which is no interval.",
        "Labels shuffled: what chance gives with as many images, and its range over draws.",
        *_of(summaries[0].images, summaries[0].channels.classes),
    ]
    return Table(title, columns, tuple(rows), tuple(notes))


def activation_table(summaries: Sequence[ActivationSummary], title: str = "Activations by class") -> Table:
    """A row for each module and network, those of one network below each other.

    Args:
        summaries: Of all networks.
        title: What it is of.
    """
    columns = (
        Column("model"),
        Column("module"),
        Column("what", head="read"),
        Column("channels"),
        Column("constant"),
        Column("spread", head="class spread"),
        Column("share", head="class share"),
        Column("largest_share", head="largest share"),
        Column("classes", show="data"),
        Column("images", show="data"),
    )
    rows = []
    for one in summaries:
        constant = [bool(value) for value in (one.shares != one.shares)]
        known = one.shares[one.shares == one.shares]
        rows.append(
            Row(
                (
                    Cell(one.model),
                    Cell(one.module),
                    Cell(one.what),
                    Cell(len(one.shares)),
                    Cell(sum(constant)),
                    _estimate(one.spread),
                    _estimate(one.share),
                    Cell(float(known.max()) if len(known) else math.nan),
                    Cell(int((one.counts > 0).sum())),
                    Cell(one.images),
                )
            )
        )
    notes = [
        "Class spread: how far the class means lie apart over how large they are, over all channels, less the noise of "
        "few images.",
        "Class share: of the variation over images, what lies between classes, less what chance gives; the mean over "
        "the channels that vary.",
        INTERVALS,
        *_of(summaries[0].images, int((summaries[0].counts > 0).sum())),
    ]
    return Table(title, columns, tuple(rows), tuple(notes))


def _by_module(summaries: Sequence[SelectivitySummary]) -> list[SelectivitySummary]:
    modules = list(dict.fromkeys(one.module for one in summaries))
    return [one for module in modules for one in summaries if one.module == module]


def _estimate(estimate: Estimate) -> Cell:
    return Cell(estimate.mean, estimate.low, estimate.high)


def _of(images: int, classes: int) -> list[str]:
    return [f"{images} images of {classes} classes."]
