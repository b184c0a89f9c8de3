"""`nlprobe zoo`: the models of the paper with what they cost, ours beside the paper's."""

import json
import shutil
import sys
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import click

from nlprobe.commands.options import format_option
from nlprobe.commands.published_checkpoints import published_table
from nlprobe.commands.report import result, terminal_width
from nlprobe.errors import ConfigError
from nlprobe.models import Costs, ModelEntry, PaperRow, costs_of, differing_cells, rows
from nlprobe.models.costs import GIGA, MEGA, paper_count
from nlprobe.suggestions import did_you_mean
from nlprobe.tables import Column, Table

Listed = tuple[ModelEntry, PaperRow | None]

COLUMNS = (
    Column("name"),
    Column("task", show="data"),
    Column("table"),
    Column("row"),
    Column("params (M)", group="ours", show="print"),
    Column("MACs (G)", group="ours", show="print"),
    Column("counter (G)", group="ours", show="print"),
    Column("paper params (M)", head="params (M)", group="paper", show="print"),
    Column("FLOPs (G)", group="paper", show="print"),
    Column("params", show="data"),
    Column("macs", show="data"),
    Column("paper_params", show="data"),
    Column("paper_flops", show="data"),
    Column("paper_counter", show="data"),
    Column("differs", show="data"),
    Column("not_counted", show="data"),
)


@click.command()
@click.argument("patterns", nargs=-1, metavar="[NAME]...")
@click.option("--task", help="Only models of this task, such as classification.")
@click.option("--table", help="Only rows of this table of the paper, such as 8a; 8 is both 8a and 8b.")
@click.option("--published", is_flag=True, help="List the checkpoints of other projects that can be read instead.")
@click.option("--project", help="With --published: only those of this project, such as mmseg.")
@click.option("--block", help="With --published: only those with this attention, such as GC; part of its name.")
@click.option("--data", help="With --published: only those trained on this, such as Cityscapes; part of its name.")
@format_option()
def command(
    patterns: tuple[str, ...],
    task: str | None,
    table: str | None,
    published: bool,
    project: str | None,
    block: str | None,
    data: str | None,
    format: str,
) -> None:
    """List the models of the paper with their parameters and costs.

    A line for each row of the paper's tables, and for each miniature model; NAME chooses some of them, as a part of the
    name or a pattern such as 'imagenet/*-nl*'. Beside the exact parameters and the true multiply-accumulates stand the
    paper's printed figures and our count by the counter that the paper's FLOPs come from; a star marks a printed cell
    that ours does not round to.

    With --published it lists the checkpoints of other projects that nlprobe reads, with their scores; `nlprobe fetch`
    downloads them.
    """
    if published:
        if task is not None or table is not None:
            raise ConfigError("--task and --table choose models of the paper", "leave them out, or --published")
        result(published_table(patterns, project, block, data).render(format, width=terminal_width()))
        return
    if project is not None or block is not None or data is not None:
        raise ConfigError("--project, --block and --data choose published checkpoints", "add --published")
    chosen = _choose(patterns, task, table)
    costs = {entry.name: costs_of(entry.name) for entry, _ in chosen}
    if format == "json":
        result(json.dumps([_record(entry, row, costs[entry.name]) for entry, row in chosen], indent=2))
        return
    width = shutil.get_terminal_size().columns if format == "table" and sys.stdout.isatty() else None
    result(_table(chosen, costs).render(format, width=width))


def _choose(patterns: tuple[str, ...], task: str | None, table: str | None) -> list[Listed]:
    """The rows that all filters let through."""
    chosen = rows()
    if task is not None:
        tasks = list(dict.fromkeys(entry.task for entry, _ in chosen))
        if task not in tasks:
            raise ConfigError(f"the zoo has no task `{task}`", did_you_mean(task, tasks))
        chosen = [(entry, row) for entry, row in chosen if entry.task == task]
    if table is not None:
        tables = list(dict.fromkeys(row.table for _, row in chosen if row))
        wanted = {name for name in tables if table in (name, name.rstrip("abcdef"))}
        if not wanted:
            raise ConfigError(f"the zoo has no rows of table `{table}`", f"it has those of {', '.join(tables)}")
        chosen = [(entry, row) for entry, row in chosen if row and row.table in wanted]
    names = list(dict.fromkeys(entry.name for entry, _ in chosen))
    matching: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if fnmatch(name, pattern if set(pattern) & set("*?[") else f"*{pattern}*")]
        if not found:
            raise ConfigError(f"no model of the zoo has a name like `{pattern}`", did_you_mean(pattern, names))
        matching.update(found)
    return [(entry, row) for entry, row in chosen if not patterns or entry.name in matching]


def _record(entry: ModelEntry, row: PaperRow | None, costs: Costs) -> dict[str, Any]:
    cells = row.cells if row else {}
    counted, unit = paper_count(costs, segmentation=entry.task == "segmentation")
    return {
        "name": entry.name,
        "task": entry.task,
        "table": row.table if row else None,
        "row": row.row if row else None,
        "params": costs.params,
        "macs": costs.macs,
        "paper_params": float(cells["params"]) if "params" in cells else None,
        "paper_flops": float(cells["flops"]) if "flops" in cells else None,
        "paper_counter": counted,
        "paper_giga": unit,
        "differs": differing_cells(costs, row) if row else [],
        "paper_cells": cells,
        "not_counted": costs.not_counted,
        "missed_products": list(costs.missed_products),
        "summary": entry.summary,
        "recipe": entry.recipe,
        "input_shape": list(entry.input_shape),
        "sites": entry.config.sites(),
        "full_size": entry.full_size,
        "remark": entry.remark or None,
    }


def _table(chosen: list[Listed], costs: dict[str, Costs]) -> Table:
    columns = list(COLUMNS)
    if len({entry.task for entry, _ in chosen}) > 1:
        columns[1] = Column("task")
    lines = []
    for entry, row in chosen:
        record = _record(entry, row, costs[entry.name])
        printed = (
            record["params"] / MEGA,
            record["macs"] / GIGA,
            record["paper_counter"] / record["paper_giga"],
            _paper_cell(record, "params"),
            _paper_cell(record, "flops"),
        )
        data = tuple(record[name] for name in ("params", "macs", "paper_params", "paper_flops", "paper_counter"))
        missing = " ".join(f"{name}:{calls}" for name, calls in record["not_counted"].items())
        labels = tuple(record[name] for name in ("name", "task", "table", "row"))
        lines.append((*labels, *printed, *data, " ".join(record["differs"]), missing))
    table = Table.of("Models of the paper and what they cost", columns, lines, notes=_notes(chosen, costs))
    return replace(table, label="tab:zoo")


def _paper_cell(record: dict[str, Any], column: str) -> str | None:
    """A cell as the paper prints it, with a star where our count does not round to it."""
    cell = record["paper_cells"].get(column)
    return f"{cell} *" if column in record["differs"] else cell


def _notes(chosen: list[Listed], costs: dict[str, Costs]) -> list[str]:
    """What a reader needs to know of the columns."""
    shapes: dict[str, list[str]] = {}
    for entry, _ in chosen:
        families = shapes.setdefault("x".join(map(str, entry.input_shape)), [])
        family = entry.name.partition("/")[0]
        families += [family] if family not in families else []
    inputs = ", ".join(f"{shape} ({', '.join(families)})" for shape, families in shapes.items())
    uncounted = sorted({name for count in costs.values() for name in count.not_counted}, key=str.lower)
    missed = [name for name, count in costs.items() if count.missed_products]
    notes = [
        f"Counted for one image or clip: {inputs}.",
        "MACs: multiply-accumulates, of a non-local block as its formula is written out. "
        f"Not counted: {', '.join(uncounted)}.",
        "counter: operations as the paper's FLOPs count them; their G is 2^30, and 10^9 in Tables 12 and 13.",
    ]
    differing = [entry for entry, row in chosen if row and differing_cells(costs[entry.name], row)]
    if differing:
        notes.append("*: our count does not round to the printed cell.")
    remarks: dict[str, list[str]] = {}
    for entry in differing:
        named = remarks.setdefault(entry.remark, [])
        named += [entry.name] if entry.name not in named else []
    notes += [f"* {', '.join(named)}: {remark}." for remark, named in remarks.items() if remark]
    if missed:
        notes.append(f"MACs too low, because products were not counted: {', '.join(missed)}.")
    return notes
