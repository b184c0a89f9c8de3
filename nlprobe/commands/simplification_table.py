"""What a simplification came to, in the form of Table 5a, and as JSON."""

import math
from collections.abc import Sequence

from nlprobe.commands.simplifying import Judged, Verdict
from nlprobe.stats.intervals import Estimate
from nlprobe.tables import Cell, Column, Table

MEGA, GIGA = 1e6, 1e9


def simplification_table(label: str, found: Sequence[Judged], verdicts: Sequence[Verdict]) -> Table:
    """A row for the network as it is, and one for each version."""
    metrics = [effect.metric for effect in found[0].effects]
    columns = [Column("network")]
    for metric in metrics:
        columns += [Column(metric), Column(f"{metric}_difference", head="difference")]
    columns += [
        Column("params", head="params (M)"),
        Column("macs", head="MACs (G)"),
        Column("block_error", head="block error"),
        Column("block_latency", head="block time", decimals=2),
        Column("block_memory", head="block memory", decimals=2),
        Column("network_latency", head="network time", decimals=2),
    ]
    rows: list[list[object]] = []
    for one in found:
        base = not one.version.blocks
        cells: list[object] = []
        for effect in one.effects:
            cells += [_cell(effect.after), Cell() if base else _cell(effect.difference)]
        errors = list(one.errors.values())
        mean = None if base else sum(error.mean for error in errors) / len(errors)
        rows.append(
            [
                one.version.name,
                *cells,
                one.params / MEGA,
                one.macs / GIGA,
                mean if len(errors) != 1 else _cell(errors[0]),
                one.latency,
                one.memory,
                one.network_latency,
            ]
        )
    kept = [verdict for verdict in verdicts if verdict.reason]
    changed = [verdict for verdict in verdicts if not verdict.reason]
    bound = ", ".join(f"{verdict.site} {verdict.mean_map_error.mean:.3f}" for verdict in changed)
    notes = [
        f"Simplified: {', '.join(verdict.site for verdict in changed)}.",
        "block error: ‖y′ − y‖ / ‖y‖ on the same inputs; no block that gives all positions the same does better than "
        f"mean_map_error: {bound}.",
        "block time, block memory, network time: ratios to the network as it is, one image on this machine.",
        "Intervals: 95 % bootstrap over images, of differences paired.",
        *(f"{verdict.site} stays: with the mean map, {verdict.reason}." for verdict in kept),
    ]
    return Table.of(f"{label} with simplified blocks", columns, rows, notes=notes)


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """What the mean map does at each site."""
    metric = verdicts[0].effect.metric
    columns = [Column("site"), Column(metric), Column("difference"), Column("mean_map_error"), Column("verdict")]
    rows = [
        [
            verdict.site,
            _cell(verdict.effect.after),
            _cell(verdict.effect.difference),
            _cell(verdict.mean_map_error),
            "stays" if verdict.reason else "can be simplified",
        ]
        for verdict in verdicts
    ]
    notes = ("Intervals: 95 % bootstrap over images, of differences paired.",)
    return Table.of("The mean map at each site", columns, rows, notes=notes)


def as_dict(label: str, found: Sequence[Judged], verdicts: Sequence[Verdict]) -> dict[str, object]:
    """The same for JSON."""
    return {
        "model": label,
        "sites": [
            {
                "site": verdict.site,
                "simplified": not verdict.reason,
                "reason": verdict.reason or None,
                "metric": verdict.effect.metric,
                "mean_map_difference": _numbers(verdict.effect.difference),
                "mean_map_error": _numbers(verdict.mean_map_error),
            }
            for verdict in verdicts
        ],
        "versions": [
            {
                "name": one.version.name,
                "effects": {
                    effect.metric: {"after": _numbers(effect.after), "difference": _numbers(effect.difference)}
                    for effect in one.effects
                },
                "block_error": {site: _numbers(error) for site, error in one.errors.items()},
                "params": one.params,
                "macs": one.macs,
                "block_latency": one.latency,
                "block_memory": one.memory,
                "network_latency": one.network_latency,
            }
            for one in found
        ],
    }


def _cell(estimate: Estimate) -> Cell:
    return Cell(estimate.mean, estimate.low, estimate.high, estimate.n)


def _numbers(estimate: Estimate) -> dict[str, float | int | None]:
    named = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
    return {name: None if math.isnan(value) else value for name, value in named.items()} | {"n": estimate.n}
