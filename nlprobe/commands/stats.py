"""`nlprobe stats`: the paper's distances of trained networks, with intervals and null models."""

import json
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from nlprobe.checkpoints import Foreign
from nlprobe.commands.config import FILE_NAME, settings, write_settings
from nlprobe.commands.inputs import Data, Feed, describe_data, feed, open_data
from nlprobe.commands.options import (
    Chosen,
    batch_size_option,
    config_option,
    device_option,
    dry_run_option,
    force_option,
    format_option,
    limit_option,
    network_options,
    seed_option,
    workers_option,
)
from nlprobe.commands.report import result, say, terminal_width, wrote
from nlprobe.commands.scores import read_scores
from nlprobe.commands.several import own_device, several_processes
from nlprobe.commands.sizes import sized_sites
from nlprobe.commands.sources import Named, read_adapters, read_networks
from nlprobe.commands.stats_beside import Asked, Beside, beside_options, objects_shown
from nlprobe.commands.stats_maps import metric_names, read_rectangle
from nlprobe.commands.stats_plan import plan
from nlprobe.errors import ConfigError
from nlprobe.files import new_folder, refuse_existing
from nlprobe.libraries import Drawn
from nlprobe.measuring import Journal, Measured, measure_network
from nlprobe.models import names, paper_distances
from nlprobe.probe.adapters import Adapter
from nlprobe.probe.baselines import REDRAWABLE
from nlprobe.probe.measurement import Precision
from nlprobe.results import results, write_results
from nlprobe.stats.records import METRIC_COLUMNS, QUANTITIES, SPACE_TIME
from nlprobe.tables import Cell, PaperRow, Table, distance_table

BASELINES = ("init-block", "init-all")

POSITIONS = ("valid", "all", "no_prefix", "rectangle")

FREE = ("format", "workers", "device", "paper", "scores", "positions", "by-site", "by-head")
"""Settings that a resumed measurement may change: they do not touch what was measured."""


@click.command("stats")
@network_options()
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=str),
    help="A data set's root, photographs, a .txt file with one text a line, or python:package.module:callable.",
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
    "--metric",
    "--metrics",
    "metrics",
    multiple=True,
    metavar="NAME[,NAME]",
    help=f"Further numbers of each map: {', '.join(METRIC_COLUMNS)}; of clips: {SPACE_TIME}, distances within a frame, "
    "between frames and at one place.",
)
@click.option(
    "--prefix", type=click.IntRange(min=0), help="Tokens in front that are no positions; else the site's own."
)
@click.option("--rectangle", metavar="Q0:Q1,K0:K1", help="Also measure maps cut to these queries and keys.")
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
@click.option(
    "--scores",
    "score_files",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Set the networks' scores beside: what `nlprobe eval --format json` printed; repeatable.",
)
@click.option(
    "--positions",
    type=click.Choice(POSITIONS),
    default="valid",
    show_default=True,
    help="Positions that the table is over: those that are no padding, all, those that are neither padding nor prefix "
    "tokens, or --rectangle; the records hold each.",
)
@beside_options
@click.option("--by-site", is_flag=True, help="A row for each site instead of their mean.")
@click.option(
    "--by-head",
    is_flag=True,
    help="A row for each head of each site, and for the maps beside them.",
)
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
    chosen: Chosen,
    data: str,
    split: str,
    out: Path | None,
    sites: tuple[str, ...],
    quantities: tuple[str, ...],
    metrics: tuple[str, ...],
    prefix: int | None,
    rectangle: str | None,
    baselines: tuple[str, ...],
    draws: int,
    centred: bool,
    precision: Precision,
    paper: bool,
    score_files: tuple[Path, ...],
    positions: str,
    asked: Asked,
    by_site: bool,
    by_head: bool,
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

    Networks are checkpoints (--ckpt) or come from other libraries (--model), with the preprocessing that belongs to
    them. A row is the mean over a network's sites and heads, unless --by-site or --by-head is given.

    Under `torchrun` the processes share out the batches, one GPU each; the records have the same bits for any number of
    them, if each has as many threads (`OMP_NUM_THREADS`). A run may be resumed with another number of processes.

    \b
    Examples:
      nlprobe stats --ckpt runs/nl --data imagenet --limit 1000 --baseline init-block
      nlprobe stats --ckpt runs/nl --ckpt runs/gc --data photos --out measured --format tex
      nlprobe stats --model timm:vit_base_patch16_224 --weights vit.safetensors --data photos --by-site
      nlprobe stats --ckpt runs/nl --ckpt runs/gc --data coco --agreement --objects
      nlprobe stats --model hf:bert-folder --data sentences.txt --metrics jsd,sink_mass
      torchrun --nproc-per-node 8 -m nlprobe stats --ckpt runs/nl --data imagenet --out measured --workers 8
    """
    again = "go on with the same command and --resume" if out is not None else ""
    with several_processes("while measuring", again or "start again", again) as processes:

        def opened() -> _Opened:
            adapters = read_adapters(chosen.adapters)
            networks = read_networks(chosen, seed)
            if paper:
                _refuse_unknown_to_the_paper(networks)
            scores = read_scores(score_files, [one.label for one in networks])
            shown = open_data(data, split, limit)
            options: dict[str, Any] = {"speaks": processes.leads, "objects": objects_shown(asked, shown)}
            feeds = {one.label: feed(shown, one, batch_size, workers, **options) for one in networks}
            _refuse_impossible(networks, feeds, baselines, sites, adapters)
            return _Opened(networks, scores, shown, feeds, adapters)

        place = processes.together(lambda: own_device(device, processes))
        extra, cut = processes.together(lambda: (metric_names(metrics), read_rectangle(rectangle, positions)))
        if out is not None:
            processes.first(lambda: refuse_existing(out, force=force))
        found = processes.together(opened)
        if processes.leads:
            for one in found.networks:
                _tell(one, found.feeds[one.label])
        beside = processes.together(lambda: Beside.of(asked, found.networks, found.feeds, sites, place, found.adapters))
        if dry_run:
            more = (beside.plan(), beside.files())
            processes.first(lambda: result(plan(found.networks, found.feeds, sites, out, place, found.adapters, *more)))
            return
        unfinished = processes.first(lambda: _unfinished(ctx, out, resume=resume, force=force))
        measured: list[Measured] = []
        for one in found.networks:
            measure = partial(
                measure_network,
                batches=found.feeds[one.label].batches,
                label=one.label,
                sites=list(sites) or None,
                quantities=quantities or QUANTITIES,
                metrics=extra,
                prefix=prefix,
                rectangle=cut,
                positions=positions,
                by_head=by_head,
                precision=precision,
                centred=centred,
                seed=seed,
                device=place,
                journal=Journal(unfinished) if unfinished else None,
                adapters=found.adapters,
                processes=processes,
            )
            redraws = draws if "init-block" in baselines else 0
            measured += measure(one.model, redraws=redraws, readers=beside.readers(one.label))
            if "init-all" in baselines:
                measured += measure(processes.together(one.untrained), kind="init-all")

        def finish() -> None:
            added = beside.results(measured, seed)
            table = _table(measured, found, paper=paper, by_site=by_site, by_head=by_head, draws=draws)
            payload = (
                found.results(ctx, added.measured, quantities or QUANTITIES, extra, added.notes()) | added.payload()
            )
            if out is not None:
                with new_folder(out, force=force) as folder:
                    write_settings(folder, ctx)
                    added.write(folder)
                    write_results(folder, payload, added.measured, table)
                if unfinished is not None:
                    shutil.rmtree(unfinished)
                wrote(out)
            as_json = json.dumps(payload, indent=1, allow_nan=False)
            tables = [table, *(one for name, one in added.tables().items() if name != "object_classes")]
            texts = [one.render(format, width=terminal_width()) for one in tables]
            result(as_json if format == "json" else "\n\n".join(text.rstrip("\n") for text in texts))

        processes.first(finish)


@dataclass(frozen=True)
class _Opened:
    """The networks, the data, what each network is shown of them, and adapters."""

    networks: list[Named]
    scores: dict[str, dict[str, Cell]]
    data: Data
    feeds: dict[str, Feed]
    adapters: tuple[Adapter, ...]

    def results(
        self,
        ctx: click.Context,
        measured: Sequence[Measured],
        quantities: Sequence[str],
        metrics: Sequence[str],
        notes: Sequence[str],
    ) -> dict[str, object]:
        """The object that `results.json` holds."""
        flags = ctx.params
        first = next(iter(self.feeds.values()))
        return results(
            measured,
            config=settings(ctx),
            data=describe_data(flags["data"], flags["split"], self.data),
            preprocessing={one.label: self.feeds[one.label].settings for one in self.networks},
            networks=[
                {"model": one.label, "source": one.network.source, "weights": one.network.weights.as_dict()}
                for one in self.networks
            ],
            packages=[one.network.package for one in self.networks if one.network.package],
            quantities=quantities,
            metrics=metrics,
            skipped=first.unreadable(set(measured[0].frame["image"])),
            notes=[*dict.fromkeys(note for found in self.feeds.values() for note in found.notes()), *notes],
            seed=flags["seed"],
        )


def _tell(one: Named, found: Feed) -> None:
    """Say where the weights come from and what is done to the data."""
    if isinstance(one.checkpoint, Foreign):
        say(f"{one.label}: {one.checkpoint.sentence()}")
    if one.checkpoint is None:
        none = " as no --weights are given" if isinstance(one.network.weights, Drawn) else ""
        say(f"{one.label}: {one.network.weights}{none}")
    say(f"{one.label}: {found.description}")


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


def _table(measured: list[Measured], found: _Opened, *, paper: bool, by_site: bool, by_head: bool, draws: int) -> Table:
    summaries = []
    for one in measured:
        for site in one.sites if by_site or by_head else (one.row,):
            summaries += [site, *(head for head in one.heads if head.site == site.site)]
    rows = {}
    for network in found.networks if paper else []:
        assert network.checkpoint is not None
        cells = paper_distances(network.checkpoint.metadata["model"])
        sources = {f"Table {row.table}" for _, row in cells.values()}
        rows[network.label] = PaperRow(
            ", ".join(sorted(sources)), {quantity: text for quantity, (text, _) in cells.items()}
        )
    untrained = [
        f"{one.label}: {one.network.weights}." for one in found.networks if isinstance(one.network.weights, Drawn)
    ]
    return distance_table(summaries, rows, scores=found.scores, draws=draws, notes=untrained)


def _refuse_unknown_to_the_paper(networks: list[Named]) -> None:
    for one in networks:
        model = one.checkpoint.metadata.get("model") if one.checkpoint else None
        if model not in names() or not paper_distances(model):
            raise ConfigError(
                f"the paper prints no distances of `{model or one.label}`", "leave out --paper, or that network"
            )


def _refuse_impossible(
    networks: list[Named],
    feeds: Mapping[str, Feed],
    baselines: Sequence[str],
    sites: Sequence[str],
    adapters: Sequence[Adapter],
) -> None:
    """Refuse null models before anything is measured."""
    for one in networks:
        if "init-all" in baselines and one.network.redrawn is None:
            one.untrained()
        if "init-block" not in baselines or one.checkpoint is not None:
            continue
        found = [sized.site for sized in sized_sites(one.model, feeds[one.label].example(), sites, adapters=adapters)]
        foreign = [site for site in found if site.block not in REDRAWABLE]
        if foreign:
            raise ConfigError(
                f"`{foreign[0].name}` of `{one.label}` is no block of nlprobe's (`{foreign[0].block}`), and init-block "
                "does not know how it was initialised",
                "use --baseline init-all, or choose other sites with --site",
            )
