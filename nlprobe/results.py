"""`results.json` and its companions: everything that a measurement leaves behind, in one folder."""

import importlib.metadata
import json
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from nlprobe.files import write_text
from nlprobe.measuring import Measured, differences
from nlprobe.plots import distance_data, draw_distances, save_figure
from nlprobe.stats.records import QUANTITIES, SCHEMA_VERSION
from nlprobe.tables import Table

ABSENT = {
    "key": "the block has no keys of its own",
    "query": "the block has no queries of its own",
    "prod": "the block has no product of queries and keys",
}

PACKAGES = ("nlprobe", "torch", "torchvision", "numpy", "pandas")

EXTENSIONS = ("txt", "tex", "md", "csv", "json")

LINE = 120
"""Characters in a line of `table.txt`."""


def results(
    measured: Sequence[Measured],
    *,
    config: Mapping[str, object],
    data: Mapping[str, object],
    preprocessing: Mapping[str, object],
    networks: Sequence[Mapping[str, object]] = (),
    packages: Collection[str] = (),
    quantities: Collection[str] = QUANTITIES,
    metrics: Collection[str] = (),
    skipped: Sequence[str] = (),
    notes: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, object]:
    """The object that `stats --format json` prints and `results.json` holds.

    Keys: `schema` (version), `command`, `config`, `versions`, `threads` (of a process: with another number of them
    sums differ in their last bits), `seed`, `data`, `networks` (source and weights of each), `preprocessing` by model,
    `sites` (each with model, site, block, settings and, by quantity, mean, low, high, n), `heads` (the same for single
    heads, where asked for), `baseline` (the null models, in the same form), `differences` (paired, against the first
    network), `audit`, and `not_measured` in words. NaN is null.

    Args:
        measured: The networks and their null models.
        config: The resolved settings.
        data: Root, number and fingerprint of the images.
        preprocessing: By model, what was done to the images or texts.
        networks: Source and weights of each network.
        packages: Further packages whose versions matter.
        quantities: The quantities that were asked for.
        metrics: The metrics that were asked for.
        skipped: Images that could not be read.
        notes: What else was not measured, in sentences.
        seed: Seed of bootstrap and draws.
    """
    trained = [one for one in measured if one.kind == "trained"]
    return {
        "schema": SCHEMA_VERSION,
        "command": ["nlprobe", *sys.argv[1:]],
        "config": dict(config),
        "versions": versions(packages),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "data": dict(data),
        "networks": [dict(network) for network in networks],
        "preprocessing": dict(preprocessing),
        "sites": [site.as_dict() for one in trained for site in one.sites],
        "heads": [head.as_dict() for one in trained for head in one.heads],
        "baseline": [site.as_dict() for one in measured if one.kind != "trained" for site in one.sites],
        "differences": _differences(trained, seed),
        "audit": [{"model": one.label, **audit.as_dict()} for one in trained for audit in one.audit],
        "not_measured": [*not_measured(trained, quantities, metrics, skipped), *notes],
    }


def versions(packages: Collection[str] = ()) -> dict[str, str]:
    """Versions of Python and of the packages that make the numbers."""
    needed = dict.fromkeys([*PACKAGES, *packages])
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in needed}


def not_measured(
    measured: Sequence[Measured], quantities: Collection[str], metrics: Collection[str], skipped: Sequence[str]
) -> list[str]:
    """In words: what nobody asked for, what sites do not have or could not show, and images that were unreadable."""
    sentences = [f"{quantity}: not asked for" for quantity in QUANTITIES if quantity not in quantities]
    for one in measured:
        sentences += [f"{one.label} {audit.site}: {reason}" for audit in one.audit for reason in audit.not_counted]
        for site in one.sites:
            kind = site.settings.get("instantiation", site.block)
            sentences += [
                f"{one.label} {site.site}: no {quantity}, {reason} ({kind})"
                for quantity, reason in ABSENT.items()
                if quantity in quantities and quantity not in site.quantities
            ]
            sentences += [
                f"{one.label} {site.site}: {metric} has no value there ({kind})"
                for metric in metrics
                if "att" in quantities and metric not in site.columns
            ]
    return sentences + [f"image {name} could not be read and is left out" for name in skipped]


def write_results(
    folder: Path, payload: Mapping[str, object], measured: Sequence[Measured], table: Table
) -> list[Path]:
    """Write `records.csv`, the table in five formats, the distances as a figure, and `results.json` last.

    Args:
        folder: An existing folder.
        payload: What `results` returned.
        measured: The networks, for their records.
        table: The table of distances.

    Returns:
        The paths, in the order in which they were written.
    """
    paths = [folder / "records.csv"]
    records = pd.concat([one.frame for one in measured], ignore_index=True)
    write_text(paths[0], records.to_csv(index=False))
    paths += write_table(folder, "table", table)
    rows = [one.row for one in measured]
    paths += save_figure(draw_distances(rows), folder / "distances", data=distance_data(rows))
    paths.append(folder / "results.json")
    write_text(paths[-1], json.dumps(payload, indent=1, allow_nan=False) + "\n")
    return paths


def write_table(folder: Path, name: str, table: Table) -> list[Path]:
    """Write a table in every format.

    Args:
        folder: An existing folder.
        name: Of the files, without their extensions.
        table: What to write.

    Returns:
        The paths.
    """
    paths = []
    for extension in EXTENSIONS:
        paths.append(folder / f"{name}.{extension}")
        write_text(paths[-1], table.render("table", width=LINE) if extension == "txt" else table.render(extension))
    return paths


def _differences(trained: Sequence[Measured], seed: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for other in trained[1:]:
        for quantity, estimate in differences(trained[0], other, seed=seed).items():
            if estimate.n:
                low, high = (None, None) if estimate.n < 2 else (estimate.low, estimate.high)
                numbers = {"mean": estimate.mean, "low": low, "high": high, "n": estimate.n}
                found.append({"first": trained[0].label, "second": other.label, "quantity": quantity, **numbers})
    return found
