"""The paper's table of cosine distances, with intervals, the numbers that go beside them and the null models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlprobe.stats.intervals import Estimate
from nlprobe.stats.records import (
    AVERAGED_HEAD,
    COMPOSED_HEAD,
    PAIRWISE_HEAD,
    QUANTITIES,
    SPACE_TIME_COLUMNS,
    UNARY_HEAD,
    summary_name,
)
from nlprobe.stats.summary import SiteSummary
from nlprobe.tables.table import Cell, Column, Row, Table

POSITIONS = {
    "valid": "Queries in the padding of images are left out, keys never.",
    "no_prefix": "Prefix tokens are left out.",
    "rectangle": "Maps are cut to the chosen queries and keys, and their rows made to sum to one again.",
}
"""What a table says of the positions that it is over."""

_OWN_ROWS = {
    AVERAGED_HEAD: "head-averaged map",
    COMPOSED_HEAD: "all steps composed",
    PAIRWISE_HEAD: "pairwise map",
    UNARY_HEAD: "unary map",
}

BY_CONSTRUCTION = "0 (by construction)"

ACCOMPANYING = (
    Column("entropy", group="attention map"),
    Column("n_eff", group="attention map", decimals=1),
    Column("shared", group="attention map"),
    Column("flat", group="attention map"),
    Column("padding_mass", head="padding mass", group="attention map"),
    Column("logit_std", group="attention map"),
    Column("pairwise", show="data"),
    Column("unary", show="data"),
    Column("attention_distance", head="reach", group="attention map", decimals=2),
    Column("prefix_mass", head="prefix mass", group="attention map"),
    Column("sink_mass", head="sink mass", group="attention map"),
    Column("jsd", head="JSD", group="attention map"),
    Column("effective_rank", head="eff. rank", group="attention map", decimals=1),
    Column("frame_mass", head="frame mass", group="attention map"),
    Column("flat_frame_mass", head="flat frame mass", group="attention map"),
    Column("update", group="output"),
    Column("mean_map_error", head="mean-map err.", group="output"),
)
CENTRED = tuple(
    Column(f"centred_{name}", head=name, group="distance, data-set mean removed")
    for name in ("input", "key", "query", "output")
)
SPACE_TIME = tuple(
    Column(summary_name(name, column), head=name, group=f"distance, {where}")
    for column, where in zip(SPACE_TIME_COLUMNS, ("same frame", "other frames", "same place at all times"), strict=True)
    for name in QUANTITIES
)
ENERGY = tuple(
    Column(name, head=head, group="output energy")
    for name, head in (("constant", "constant"), ("context", "context"), ("pairwise_part", "pairwise"))
)


@dataclass(frozen=True)
class PaperRow:
    """Cells as the paper prints them.

    Attributes:
        source: Where they stand, such as "Table 3".
        cells: Printed cell by quantity.
    """

    source: str
    cells: Mapping[str, str]


def distance_table(
    summaries: Sequence[SiteSummary],
    paper: Mapping[str, PaperRow] | None = None,
    *,
    scores: Mapping[str, Mapping[str, Cell]] | None = None,
    draws: int = 5,
    notes: Sequence[str] = (),
    title: str = "Average cosine distance between query positions",
) -> Table:
    """The distances of Tables 1–4 of the paper, a row for each summary.

    The summaries of one model stand together in the order given, its null models and single heads indented below the
    trained network and the paper's cells last. Print leaves out what the paper has no column for and no summary has a
    value for.

    Args:
        summaries: One for each checkpoint (its sites averaged) or for each site, and those of their null models.
        paper: The paper's rows by model label.
        scores: Scores of the networks by model label and name, which go before the distances as in the paper.
        draws: How many redrawn blocks an `init-block` summary is the mean of.
        notes: Further sentences that the reader needs.
        title: The caption's first sentence.

    Returns:
        The table. Rows are called by their model; where a model has several sites, by the site.
    """
    sites_of = {model: {s.site for s in summaries if s.model == model} for model in {s.model for s in summaries}}
    one_row_each = all(len(sites) == 1 for sites in sites_of.values())
    one_site = len(set().union(*sites_of.values())) <= 1
    with_energy = any(summary.energy for summary in summaries)
    centred = any(column.name in summary.columns for column in CENTRED for summary in summaries)
    split = any(column.name in summary.columns for column in SPACE_TIME for summary in summaries)
    beside = (*(SPACE_TIME if split else ()), *(CENTRED if centred else ()), *ACCOMPANYING)
    scored = list(dict.fromkeys(name for cells in (scores or {}).values() for name in cells))
    columns = (
        Column("row", head="", show="print"),
        Column("model", show="data"),
        Column("kind", show="data"),
        # Where a model has a row for each site, their names are the rows' labels, which every panel repeats.
        Column("site", show="both" if one_row_each and not one_site else "data"),
        Column("head", show="data"),
        *(Column(name, group="score") for name in scored),
        *(Column(name, group="cosine distance") for name in QUANTITIES),
        *beside,
        *(ENERGY if with_energy else ()),
        Column("n", head="images"),
    )
    rows: list[Row] = []
    for model in dict.fromkeys(summary.model for summary in summaries):
        own = [summary for summary in summaries if summary.model == model]
        places = {site: place for place, site in enumerate(dict.fromkeys(summary.site for summary in own))}
        for summary in sorted(own, key=lambda summary: places[summary.site]):
            name = model if one_row_each else summary.site if len(sites_of) == 1 else f"{model}, {summary.site}"
            of_network = summary.kind == "trained" and not summary.head
            own_scores = (scores or {}).get(model, {}) if of_network else {}
            cells = tuple(own_scores.get(each, Cell()) for each in scored)
            rows.append(_row(summary, name, beside, with_energy, draws, cells))
        if paper and model in paper:
            rows.append(_paper_row(model, paper[model], columns))
    notes = (*_notes(summaries, one_site), *notes)
    return Table(title, columns, tuple(rows), notes, "tab:distances")


def _row(
    summary: SiteSummary, name: str, beside: Sequence[Column], with_energy: bool, draws: int, scores: tuple[Cell, ...]
) -> Row:
    kinds = {"init-all": "at initialisation", "init-block": f"init-block ({draws} draws)"}
    parts = [kinds[summary.kind]] if summary.kind in kinds else []
    if summary.head:
        parts.append(_OWN_ROWS.get(summary.head, f"head {summary.head}"))
    n = max((estimate.n for estimate in summary.quantities.values()), default=0)
    cells = (
        Cell(", ".join(parts) or name),
        Cell(summary.model),
        Cell(summary.kind),
        Cell(summary.site),
        Cell(summary.head or None),
        *scores,
        *(_estimate(summary.quantities.get(name)) for name in QUANTITIES),
        *(_estimate(summary.columns.get(column.name)) for column in beside),
        *(Cell(summary.energy.get(column.name)) for column in (ENERGY if with_energy else ())),
        Cell(n),
    )
    return Row(cells, child=bool(parts))


def _estimate(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell()
    text = BY_CONSTRUCTION if estimate.by_construction else None
    return Cell(estimate.mean, estimate.low, estimate.high, estimate.n, text)


def _paper_row(model: str, paper: PaperRow, columns: Sequence[Column]) -> Row:
    labels = {"row": f"paper, {paper.source}", "model": model, "kind": f"paper, {paper.source}"}
    return Row(tuple(Cell(labels.get(column.name) or paper.cells.get(column.name)) for column in columns), child=True)


def _notes(summaries: Sequence[SiteSummary], one_site: bool) -> list[str]:
    """Sentences that a reader needs to understand the cells that are there, and no others."""
    estimates = [e for s in summaries for e in (*s.quantities.values(), *s.columns.values())]
    kinds = {summary.kind for summary in summaries}
    notes = []
    models = {summary.model for summary in summaries}
    if summaries and one_site:
        notes.append(f"Site: {summaries[0].site}.")
    elif len(models) == 1:
        notes.append(f"Network: {summaries[0].model}.")
    if summaries:
        queries = _range([summary.n_queries for summary in summaries])
        keys = _range([summary.n_keys for summary in summaries])
        windows = _range([summary.groups for summary in summaries])
        where = "per image" if windows == "1" else f"in each of the {windows} windows of an image"
        notes.append(f"{queries} queries and {keys} keys {where}.")
    if any(summary.n_keys[0] == 0 for summary in summaries):
        notes.append("Where there are no keys, the block has no attention map.")
    if any(summary.n_queries[0] == 1 for summary in summaries):
        notes.append("Where there is one query only, its distances are 0.")
    for positions in dict.fromkeys(summary.positions for summary in summaries):
        notes += [POSITIONS[positions]] if positions in POSITIONS else []
    if any(not math.isnan(estimate.low) for estimate in estimates):
        notes.append("Intervals: 95 % bootstrap over images.")
    if "init-block" in kinds:
        notes.append(
            "init-block: the block redrawn in the trained network; its intervals are the range over the draws."
        )
    if "init-all" in kinds:
        notes.append("at initialisation: the whole network before training.")
    if any(math.isnan(e.mean) for e in estimates if not e.by_construction):
        notes.append("undef.: no row has a direction.")
    if zero := sum(summary.zero_rows for summary in summaries):
        notes.append(f"{zero} rows without a direction were left out.")
    return notes


def _range(ranges: Sequence[tuple[int, int]]) -> str:
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return str(low) if low == high else f"{low}–{high}"
