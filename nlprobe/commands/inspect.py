"""`nlprobe inspect`: what a network is, and which sites would be measured."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from nlprobe.checkpoints import About, Foreign, about, checkpoint_file, is_foreign
from nlprobe.commands.inputs import feed, open_data
from nlprobe.commands.options import Chosen, format_option, network_options
from nlprobe.commands.report import result, say, terminal_width
from nlprobe.commands.sizes import SizedSite, sized_sites
from nlprobe.commands.sources import Named, read_adapters, read_networks
from nlprobe.errors import ConfigError
from nlprobe.measuring import Inputs, described
from nlprobe.tables import Cell, Column, Row, Table

SENTENCE = "The quick brown fox jumps over the lazy dog."
"""What a language model is shown where there are no data."""

COLUMNS = (
    Column("site"),
    Column("block"),
    Column("channels"),
    Column("heads"),
    Column("n_queries", head="queries"),
    Column("n_keys", head="keys"),
    Column("windows"),
    Column("settings"),
)

SAID = ("block", "channels", "dimension", "heads", "groups")
"""Settings that need no words, as they have columns of their own."""


@click.command("inspect")
@click.argument("network", required=False)
@network_options(without=("labels", "random_weights", "size", "mean", "std"))
@click.option(
    "--size",
    type=click.IntRange(min=8),
    help="Side of the image for which positions are counted; by default as preprocessing makes it.",
)
@click.option("--data", type=click.Path(path_type=str), help="Count positions for the first item of these data.")
@format_option()
def command(network: str | None, chosen: Chosen, size: int | None, data: str | None, format: str) -> None:
    """List the attention sites of a network.

    NETWORK is a checkpoint, a run's folder, or LIBRARY:NAME as for --model. The table has a row for each site: its name
    (which --site takes), the kind of block, channels, heads, numbers of query and key positions (for an image of
    --size, or as the network's preprocessing makes it), and the block's settings. What else is known of the network
    goes to stderr, and is part of --format json. Without --weights the weights are random, which changes nothing here.

    Of another project's file it also tells what is in it, which published checkpoint it is, and what its weights leave
    open, which --set answers. Nothing in a file is run.

    \b
    Examples:
      nlprobe inspect runs/nl
      nlprobe inspect nonlocal_r50-d8_512x1024_40k_cityscapes_20200605_210748-c75e81e3.pth
      nlprobe inspect timm:vit_base_patch16_224
      nlprobe inspect python:mymodel:make --size 128
    """
    asked = _asked(network, chosen)
    found = _foreign_file(asked)
    if found is not None and format != "json":
        for line in found.lines():
            say(line)
    (one,) = read_networks(replace(asked, random_weights=True))
    inputs = _inputs(one, size, data)
    sites = sized_sites(one.model, inputs, adapters=read_adapters(chosen.adapters))
    if format == "json":
        payload = _payload(one, sites, inputs)
        if found is not None:
            payload["file"] = found.as_dict()
        result(json.dumps(payload, indent=1))
        return
    _tell(one)
    rows = tuple(Row(_cells(sized)) for sized in sites)
    title = f"Attention sites of {one.label} for {described(inputs)}"
    result(Table(title, COLUMNS, rows).render(format, width=terminal_width()))


def _asked(network: str | None, chosen: Chosen) -> Chosen:
    """The one network that is asked for, wherever it stands on the command line."""
    if network is not None:
        library, colon, _ = network.partition(":")
        named = colon and not Path(network).exists() and len(library) > 1
        chosen = (
            replace(chosen, models=(*chosen.models, network))
            if named
            else replace(chosen, checkpoints=(*chosen.checkpoints, Path(network)))
        )
    if len(chosen.checkpoints) + len(chosen.models) != 1:
        raise ConfigError("which network?", "give one: nlprobe inspect CHECKPOINT, or nlprobe inspect timm:NAME")
    return chosen


def _foreign_file(asked: Chosen) -> About | None:
    """What can be said of another project's file before its network is built, and where that fails, at all."""
    for path in asked.checkpoints:
        file = checkpoint_file(path)
        return about(file) if is_foreign(file) else None
    return None


def _inputs(one: Named, size: int | None, data: str | None) -> Inputs:
    """What the network is shown."""
    pictures, texts = one.network.pictures, one.network.texts
    if data is not None:
        return feed(open_data(data), one, batch_size=1).example()
    if size is not None:
        images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        return pictures.inputs(images) if pictures else images
    if pictures is not None:
        return pictures.inputs(pictures.example())
    if texts is not None:
        return texts.encode(SENTENCE)[0]
    raise ConfigError(f"`{one.label}` does not say what it takes", "give --size, or --data with an item to show it")


def _tell(one: Named) -> None:
    if isinstance(one.checkpoint, Foreign):
        for reason, count in one.checkpoint.left_out.items():
            say(f"left out: {count} tensors, {reason}")
    elif one.checkpoint is not None:
        metadata = one.checkpoint.metadata
        say(f"file: {one.checkpoint.path}")
        for name in ("model", "epoch", "seed"):
            say(f"{name}: {metadata.get(name)}")
        say(f"metrics: {', '.join(f'{key} {value:.4g}' for key, value in (metadata.get('metrics') or {}).items())}")
    else:
        say(f"network: {one.network.source}")
        say(str(one.network.weights))
    if one.network.pictures is not None:
        say(f"preprocessing: {one.network.pictures.description}")
    if one.network.texts is not None:
        say(f"texts: {one.network.texts.description}")


def _cells(sized: SizedSite) -> tuple[Cell, ...]:
    site = sized.site
    windows = sized.groups if sized.groups > 1 else None
    counts = (sized.channels, sized.heads, sized.n_queries, sized.n_keys, windows)
    return (Cell(site.name), Cell(site.block), *(Cell(count) for count in counts), Cell(_written(site.settings)))


def _written(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items() if name not in SAID)


def _payload(one: Named, sites: list[SizedSite], inputs: Inputs) -> dict[str, Any]:
    if one.checkpoint is not None:
        metadata = {key: value for key, value in one.checkpoint.metadata.items() if key != "config"}
        about: dict[str, Any] = {"path": str(one.checkpoint.path), "metadata": metadata}
    else:
        about = {"source": one.network.source, "weights": one.network.weights.as_dict()}
    pictures, texts = one.network.pictures, one.network.texts
    preprocessing = pictures.settings if pictures else texts.settings if texts else {}
    return {
        **about,
        "preprocessing": dict(preprocessing),
        "inputs": described(inputs),
        "sites": [
            {
                "site": sized.site.name,
                "block": sized.site.block,
                "settings": sized.site.settings,
                "channels": sized.channels,
                "heads": sized.heads,
                "n_queries": sized.n_queries,
                "n_keys": sized.n_keys,
                "windows": sized.groups,
            }
            for sized in sites
        ],
    }
