"""`nlprobe stats`: the paper's distances of trained networks, with intervals and null models."""

import json
import shutil
import tomllib
from functools import partial
from pathlib import Path

import click
import torch

from nlprobe.checkpoints import initial_model
from nlprobe.commands.config import FILE_NAME, settings, write_settings
from nlprobe.commands.options import (
    batch_size_option,
    config_option,
    device_option,
    dry_run_option,
    force_option,
    format_option,
    limit_option,
    resolve_device,
    seed_option,
    workers_option,
)
from nlprobe.commands.report import result, say, terminal_width, wrote
from nlprobe.commands.sources import Images, Labelled, read_checkpoints
from nlprobe.data import data_fingerprint, open_dataset
from nlprobe.data.part import Part
from nlprobe.errors import ConfigError
from nlprobe.files import new_folder, refuse_existing
from nlprobe.measuring import Journal, Measured, measure_network
from nlprobe.models import names, paper_distances
from nlprobe.probe import find_sites, probe
from nlprobe.probe.measure import Precision
from nlprobe.results import EXTENSIONS, results, write_results
from nlprobe.stats.records import QUANTITIES
from nlprobe.tables import PaperRow, Table, distance_table

BASELINES = ("init-block", "init-all")

FREE = ("format", "workers", "device", "paper", "by-site")
"""Settings that a resumed measurement may change: they do not touch what was measured."""


@click.command("stats")
@click.option(
    "--ckpt",
    "checkpoints",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A checkpoint or a run's folder; repeat it for one table of several.",
)
@click.option(
    "--label", "labels", multiple=True, help="What a checkpoint is called in the table; once for each --ckpt."
)
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="A data set's root, or a folder of photographs."
)
@click.option(
    "--split", type=click.Choice(("val", "train")), default="val", show_default=True, help="Which part of it."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write records, tables and results.json into this folder.")
@click.option(
    "--site", "sites", multiple=True, help="Sites by name or glob; all by default (`nlprobe inspect` lists them)."
)
@click.option(
    "--quantity", "quantities", multiple=True, type=click.Choice(QUANTITIES), help="Measure these only; all by default."
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=click.Choice(BASELINES),
    help="Null models to set beside: the block redrawn, the whole network before training.",
)
@click.option("--draws", type=click.IntRange(min=1), default=5, show_default=True, help="Redrawn blocks of init-block.")
@click.option("--centred", is_flag=True, help="Also measure with each site's data-set mean removed (a second pass).")
@click.option(
    "--precision",
    type=click.Choice(("float32", "float64")),
    default="float32",
    show_default=True,
    help="Of the products behind softmax maps; float32 is within 1e-5 of the distance plus 1e-9.",
)
@click.option("--paper", is_flag=True, help="Set the paper's printed row beside each model of the zoo.")
@click.option("--by-site", is_flag=True, help="A row for each site instead of their mean.")
@format_option()
@limit_option
@batch_size_option(8)
@workers_option
@device_option
@seed_option
@config_option
@dry_run_option
@force_option
@click.option("--resume", is_flag=True, help="Go on with an interrupted measurement into the same --out.")
@click.pass_context
def command(
    ctx: click.Context,
    checkpoints: tuple[Path, ...],
    labels: tuple[str, ...],
    data: Path,
    split: str,
    out: Path | None,
    sites: tuple[str, ...],
    quantities: tuple[str, ...],
    baselines: tuple[str, ...],
    draws: int,
    centred: bool,
    precision: Precision,
    paper: bool,
    by_site: bool,
    format: str,
    limit: int | None,
    batch_size: int,
    workers: int,
    device: str,
    seed: int,
    dry_run: bool,
    force: bool,
    resume: bool,
) -> None:
    """Measure how much attention differs between query positions.

    For each image and attention site: the average cosine distance between positions of input, key, query, product,
    attention map and output (Tables 1-4 of the paper), the numbers that tell a shared map from a flat one, and on
    request the same for null models. The table goes to stdout; --out keeps the records behind it.

    \b
    Examples:
      nlprobe stats --ckpt runs/nl --data imagenet --limit 1000 --baseline init-block
      nlprobe stats --ckpt runs/nl --ckpt runs/gc --data photos --out measured --format tex
    """
    place = resolve_device(device)
    wanted = quantities or QUANTITIES
    networks = read_checkpoints(checkpoints, labels)
    if paper:
        _refuse_unknown_to_the_paper(networks)
    dataset = Part(open_dataset(data, "train" if split == "train" else "val"), limit)
    passes = {one.label: Images(dataset, one.preprocessing, batch_size, workers, label=one.label) for one in networks}
    for one in networks:
        say(f"{one.label}: {one.preprocessing}")
    if out is not None:
        refuse_existing(out, force=force)
    if dry_run:
        _plan(networks, passes, sites, out, place)
        return
    unfinished = _unfinished(ctx, out, resume=resume, force=force)
    measured: list[Measured] = []
    for one in networks:
        measure = partial(
            measure_network,
            batches=passes[one.label].batches,
            label=one.label,
            sites=list(sites) or None,
            quantities=wanted,
            precision=precision,
            centred=centred,
            seed=seed,
            device=place,
            journal=Journal(unfinished) if unfinished else None,
        )
        measured += measure(one.checkpoint.model, redraws=draws if "init-block" in baselines else 0)
        if "init-all" in baselines:
            measured += measure(initial_model(one.checkpoint), kind="init-all")
    unreadable = next(iter(passes.values())).unreadable
    table = _table(measured, networks if paper else [], by_site=by_site, draws=draws)
    payload = results(
        measured,
        config=settings(ctx),
        data={"root": str(data), "split": split, "kind": dataset.kind, **data_fingerprint(dataset)},
        preprocessing={one.label: one.preprocessing.as_dict() for one in networks},
        quantities=wanted,
        skipped=unreadable,
        seed=seed,
    )
    if out is not None:
        with new_folder(out, force=force) as folder:
            write_settings(folder, ctx)
            write_results(folder, payload, measured, table)
        if unfinished is not None:
            shutil.rmtree(unfinished)
        wrote(out)
    as_json = json.dumps(payload, indent=1, allow_nan=False)
    result(as_json if format == "json" else table.render(format, width=terminal_width()))


def _unfinished(ctx: click.Context, out: Path | None, *, resume: bool, force: bool) -> Path | None:
    """The folder that keeps the measurement until it is complete: `OUT.partial`."""
    if out is None:
        if resume:
            raise ConfigError("--resume without --out: nothing was kept", "give the --out of the interrupted run")
        return None
    folder = out.with_name(f"{out.name}.partial")
    if folder.exists() and not resume and not force:
        raise ConfigError(
            f"`{folder}` holds an interrupted measurement", "go on with it by --resume, or start anew with --force"
        )
    if folder.exists() and not resume:
        shutil.rmtree(folder)
    before = folder / FILE_NAME
    if before.exists():
        was = tomllib.loads(before.read_text(encoding="utf-8"))
        now = settings(ctx)
        differing = [key for key in {*was, *now} - {"command", *FREE} if was.get(key) != now.get(key)]
        if differing:
            told = ", ".join(f"`{key}` was {was.get(key)} and is {now.get(key)}" for key in sorted(differing))
            raise ConfigError(
                f"the interrupted measurement had other settings: {told}",
                "use the same settings, or start anew with --force",
            )
    else:
        write_settings(folder, ctx)
    return folder


def _table(measured: list[Measured], in_paper: list[Labelled], *, by_site: bool, draws: int) -> Table:
    summaries = [site for one in measured for site in (one.sites if by_site else (one.row,))]
    rows = {}
    for one in in_paper:
        cells = paper_distances(one.checkpoint.metadata["model"])
        sources = {f"Table {row.table}" for _, row in cells.values()}
        rows[one.label] = PaperRow(
            ", ".join(sorted(sources)), {quantity: text for quantity, (text, _) in cells.items()}
        )
    return distance_table(summaries, rows, draws=draws)


def _refuse_unknown_to_the_paper(networks: list[Labelled]) -> None:
    for one in networks:
        model = one.checkpoint.metadata.get("model")
        if model not in names() or not paper_distances(model):
            raise ConfigError(
                f"the paper prints no distances of `{model or one.label}`", "leave out --paper, or that checkpoint"
            )


def _plan(
    networks: list[Labelled], passes: dict[str, Images], sites: tuple[str, ...], out: Path | None, device: torch.device
) -> None:
    lines = []
    for one in networks:
        images = passes[one.label]
        crop = images.preprocessing.crop
        model = one.checkpoint.model.to(device)
        with probe(model, list(sites) or None, quantities=("input", "att")) as found, torch.no_grad():
            model(torch.zeros(1, 3, crop, crop, device=device))
        frame = found.frame()
        lines.append(f"{one.label}: {len(images.dataset)} images in batches of {images.batch_size}, {crop}x{crop}")
        for site in find_sites(model, list(sites) or None):
            rows = frame[frame["site"] == site.name]
            n, m = int(rows["n_queries"].iloc[0]), int(rows["n_keys"].iloc[0])
            channels = int(rows["dim"].iloc[0])
            megabytes = images.batch_size * n * channels * 4 / 2**20
            lines.append(
                f"  {site.name}: {site.block}, {n} queries, {m} keys, {channels} channels; "
                f"its input takes {megabytes:.1f} MiB a batch, a map is never built"
            )
    files = ["run.toml", "records.csv", *(f"table.{end}" for end in EXTENSIONS), "distances.*", "results.json"]
    lines.append(f"would write {', '.join(files)} into {out}" if out else "would write nothing (no --out)")
    result("\n".join(lines))
