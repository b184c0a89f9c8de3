"""What interventions came to: as a table, as JSON, and image by image."""

import math
from collections.abc import Sequence

import pandas as pd

from nlprobe.commands.intervening import Outcome
from nlprobe.stats.intervals import Estimate, bootstrap_mean
from nlprobe.tables import Cell, Column, Table

NOTES = (
    "output: relative change of the blocks' output on the same input, mean over sites; mean_map_error: what `stats` "
    "gives for the mean map.",
    "network: relative change of the network's own output; same class: where its best class stays.",
    "Intervals: 95 % bootstrap over images, of differences paired.",
)


def intervention_table(outcomes: Sequence[Outcome], seed: int) -> Table:
    """A row for each trial, below a row for each network as it is."""
    metrics = list(dict.fromkeys(effect.metric for one in outcomes for effect in one.effects))
    columns = [Column("model"), Column("kind", head="attention"), Column("sites")]
    for metric in metrics:
        columns += [Column(metric), Column(f"{metric}_difference", head="difference")]
    columns += [
        Column("output_change", head="output"),
        Column("mean_map_error"),
        Column("network_change", head="network"),
        Column("same_class", head="same class"),
        Column("n", show="data", decimals=0),
    ]
    rows: list[list[object]] = []
    for place, one in enumerate(outcomes):
        effects = {effect.metric: effect for effect in one.effects}
        if place == 0 or outcomes[place - 1].model != one.model:
            before = [effects[name].before if name in effects else None for name in metrics]
            rows.append(
                [
                    one.model,
                    "as it is",
                    None,
                    *(value for estimate in before for value in (_cell(estimate), None)),
                    *(None,) * 4,
                    len(one.ids),
                ]
            )
        cells: list[object] = []
        for name in metrics:
            effect = effects.get(name)
            cells += [Cell(), Cell()] if effect is None else [_cell(effect.after), _cell(effect.difference)]
        rows.append(
            [
                one.model,
                one.trial.kind,
                one.trial.where,
                *cells,
                _cell(one.estimate(one.changes, seed)),
                _cell(one.estimate(one.mean_map_errors, seed)),
                _cell(bootstrap_mean(one.output_change, seed=seed)),
                _cell(bootstrap_mean(one.same_class, seed=seed)),
                len(one.ids),
            ]
        )
    return Table.of("Networks with replaced attention", columns, rows, notes=NOTES)


def as_dict(one: Outcome, seed: int) -> dict[str, object]:
    """An outcome for JSON."""
    return {
        "model": one.model,
        "kind": one.trial.kind,
        "sites": list(one.changes),
        "heads": list(one.trial.heads) or "all",
        "effects": {
            effect.metric: {
                "before": _numbers(effect.before),
                "after": _numbers(effect.after),
                "difference": _numbers(effect.difference),
            }
            for effect in one.effects
        },
        "output_change": {site: _numbers(bootstrap_mean(values, seed=seed)) for site, values in one.changes.items()},
        "mean_map_error": {
            site: _numbers(bootstrap_mean(values, seed=seed)) for site, values in one.mean_map_errors.items()
        },
        "network_change": _numbers(bootstrap_mean(one.output_change, seed=seed)),
        "same_class": _numbers(bootstrap_mean(one.same_class, seed=seed)),
    }


def records(one: Outcome) -> pd.DataFrame:
    """A line for each image and site."""
    frames = [
        pd.DataFrame(
            {
                "model": one.model,
                "kind": one.trial.kind,
                "where": one.trial.where,
                "image": list(one.ids),
                "site": site,
                "output_change": changes,
                "mean_map_error": one.mean_map_errors[site],
                "network_change": one.output_change,
                "same_class": one.same_class,
            }
        )
        for site, changes in one.changes.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _cell(estimate: Estimate | None) -> Cell:
    if estimate is None or (estimate.n == 0 and math.isnan(estimate.mean)):
        return Cell()
    return Cell(estimate.mean, estimate.low, estimate.high, estimate.n)


def _numbers(estimate: Estimate) -> dict[str, float | int | None]:
    named = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
    return {name: None if math.isnan(value) else value for name, value in named.items()} | {"n": estimate.n}
