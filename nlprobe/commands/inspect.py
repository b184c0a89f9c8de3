"""`nlprobe inspect`: what a checkpoint is, and which sites would be measured."""

import json
from pathlib import Path
from typing import Any

import click
import torch

from nlprobe.commands.options import format_option
from nlprobe.commands.report import result, say, terminal_width
from nlprobe.commands.sources import Labelled, read_checkpoints
from nlprobe.errors import ConfigError
from nlprobe.probe import Site, find_sites, probe
from nlprobe.tables import Cell, Column, Row, Table

COLUMNS = (
    Column("site"),
    Column("block"),
    Column("channels"),
    Column("n_queries", head="queries"),
    Column("n_keys", head="keys"),
    Column("settings"),
)


@click.command("inspect")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--ckpt", type=click.Path(path_type=Path), help="The same as CHECKPOINT.")
@click.option(
    "--size", type=click.IntRange(min=8), help="Side of the image for which positions are counted; by default its crop."
)
@format_option()
def command(checkpoint: Path | None, ckpt: Path | None, size: int | None, format: str) -> None:
    """List the attention sites of a checkpoint.

    CHECKPOINT is a file or a run's folder. The table has a row for each site: its name (which --site takes), the kind
    of block, channels, numbers of query and key positions, and the block's settings. What else the file says of itself
    goes to stderr, and is part of --format json.
    """
    path = checkpoint or ckpt
    if path is None or (checkpoint and ckpt):
        raise ConfigError("which checkpoint?", "give one: nlprobe inspect CHECKPOINT")
    (one,) = read_checkpoints([path], [])
    crop = size or one.preprocessing.crop
    sites = find_sites(one.checkpoint.model)
    positions = _positions(one, crop)
    if format == "json":
        result(json.dumps(_payload(one, sites, positions, crop), indent=1))
        return
    metadata = one.checkpoint.metadata
    say(f"file: {one.checkpoint.path}")
    for name in ("model", "epoch", "seed"):
        say(f"{name}: {metadata.get(name)}")
    say(f"metrics: {', '.join(f'{key} {value:.4g}' for key, value in (metadata.get('metrics') or {}).items())}")
    say(f"preprocessing: {one.preprocessing}")
    rows = tuple(
        Row(
            (
                Cell(site.name),
                Cell(site.block),
                Cell(str(site.settings["channels"])),
                *(Cell(count) for count in positions[site.name]),
                Cell(_written(site.settings)),
            )
        )
        for site in sites
    )
    result(
        Table(f"Attention sites of {one.label} at {crop}x{crop}", COLUMNS, rows).render(format, width=terminal_width())
    )


def _positions(one: Labelled, size: int) -> dict[str, tuple[int, int]]:
    """By site, the numbers of queries and keys for a square image."""
    model = one.checkpoint.model
    with probe(model, quantities=("att",)) as found, torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    rows = found.frame().drop_duplicates("site")
    counts = zip(rows["n_queries"], rows["n_keys"], strict=True)
    return dict(zip(rows["site"], ((int(n), int(m)) for n, m in counts), strict=True))


def _written(settings: dict[str, object]) -> str:
    left_out = ("block", "channels", "dimension")
    return ", ".join(f"{name}={value}" for name, value in settings.items() if name not in left_out)


def _payload(one: Labelled, sites: list[Site], positions: dict[str, tuple[int, int]], size: int) -> dict[str, Any]:
    metadata = {key: value for key, value in one.checkpoint.metadata.items() if key != "config"}
    return {
        "path": str(one.checkpoint.path),
        "metadata": metadata,
        "image_size": size,
        "sites": [
            {
                "site": site.name,
                "block": site.block,
                "settings": site.settings,
                "n_queries": positions[site.name][0],
                "n_keys": positions[site.name][1],
            }
            for site in sites
        ],
    }
