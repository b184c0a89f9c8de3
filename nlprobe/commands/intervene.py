"""`nlprobe intervene`: replace the attention of trained networks, and see whether that matters to their task."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import pandas as pd

from nlprobe.commands.config import settings, write_settings
from nlprobe.commands.inputs import Data, describe_data, feed, open_data
from nlprobe.commands.intervening import Comparison, Outcome, trials
from nlprobe.commands.intervention_table import as_dict, intervention_table, records
from nlprobe.commands.options import (
    Chosen,
    config_option,
    device_option,
    dry_run_option,
    force_option,
    format_option,
    limit_option,
    network_options,
    resolve_device,
    seed_option,
    workers_option,
)
from nlprobe.commands.report import progress, result, say, terminal_width, wrote
from nlprobe.commands.scoring import Scoring
from nlprobe.commands.scorings import SCORINGS, task_of
from nlprobe.commands.sizes import sized_sites
from nlprobe.commands.sources import Labelled, Named, read_adapters, read_networks
from nlprobe.data import Batch, Batches, UnreadableImageError
from nlprobe.data.part import Part
from nlprobe.errors import ConfigError, DataError
from nlprobe.files import new_folder, refuse_existing, write_text
from nlprobe.intervention import INTERVENTIONS
from nlprobe.measuring import Inputs
from nlprobe.probe.adapters import Adapter
from nlprobe.results import EXTENSIONS, LINE, versions

DEFAULT = ("mean", "uniform", "shuffled", "off")


@click.command("intervene")
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
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(INTERVENTIONS),
    help=f"What takes the place of the maps; repeatable. Else {', '.join(DEFAULT)}.",
)
@click.option("--site", "sites", multiple=True, help="Sites by name or glob; all by default.")
@click.option("--head", "heads", multiple=True, type=click.IntRange(min=0), help="Heads by number; all by default.")
@click.option("--each-site", is_flag=True, help="Intervene at one site at a time, not at all of them together.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the table and the values of every image there.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Images in one forward pass; by default as the task is scored."
)
@format_option()
@limit_option
@workers_option
@device_option
@seed_option
@config_option
@dry_run_option
@force_option
@click.pass_context
def command(
    ctx: click.Context,
    chosen: Chosen,
    data: str,
    split: str,
    kinds: tuple[str, ...],
    sites: tuple[str, ...],
    heads: tuple[int, ...],
    each_site: bool,
    out: Path | None,
    batch_size: int | None,
    format: str,
    limit: int | None,
    workers: int,
    device: str,
    seed: int,
    dry_run: bool,
    force: bool,
) -> None:
    """Replace the attention of trained networks, and see whether that matters to their task.

    Every image goes through the network as it is, and once more for each intervention: with the mean of all queries'
    maps (`mean`), uniform maps (`uniform`), the maps of other queries (`shuffled`), those of the image before
    (`other-image`), those of the key-only part of the logits (`unary`) or of the rest (`pairwise`), or without the
    block (`off`).

    The table has the task's score with and without, and their paired difference with a 95 % bootstrap interval over
    images (for checkpoints, on the data set of their task); the change of the blocks' output on the same input, beside
    `mean_map_error`, which it equals for `mean`; and the change of the network's own output. All is put back.

    \b
    Examples:
      nlprobe intervene --ckpt runs/nl --data imagenet --limit 1000
      nlprobe intervene --ckpt runs/nl --data cityscapes --kind mean --kind off --each-site
      nlprobe intervene --model timm:vit_base_patch16_224 --weights vit.safetensors --data photos --site 'blocks.1*'
    """
    place = resolve_device(device)
    adapters = read_adapters(chosen.adapters)
    if out is not None:
        refuse_existing(out, force=force)
    networks = read_networks(chosen, seed)
    shown = open_data(data, split, limit)
    plans = [_plan(one, shown, sites, each_site, adapters) for one in networks]
    for plan in plans:
        say(plan.said(kinds or DEFAULT, each_site))
    if dry_run:
        return
    outcomes: list[Outcome] = []
    for plan in plans:
        tried = trials(kinds or DEFAULT, plan.sites if each_site else sites, heads, apart=each_site)
        comparison = Comparison(plan.one, tried, place, plan.scoring, adapters, seed)
        comparison.run(plan.batches(batch_size, workers))
        outcomes += comparison.outcomes(seed)
    table = intervention_table(outcomes, seed)
    payload = {
        "command": "intervene",
        "config": settings(ctx),
        "versions": versions([one.network.package for one in networks if one.network.package]),
        "seed": seed,
        "data": describe_data(data, split, shown),
        "interventions": [as_dict(one, seed) for one in outcomes],
    }
    as_json = json.dumps(payload, indent=1, allow_nan=False)
    if out is not None:
        with new_folder(out, force=force) as folder:
            write_settings(folder, ctx)
            write_text(folder / "records.csv", pd.concat([records(one) for one in outcomes]).to_csv(index=False))
            for extension in EXTENSIONS:
                kind = "table" if extension == "txt" else extension
                write_text(folder / f"table.{extension}", table.render(kind, width=LINE if kind == "table" else None))
            write_text(folder / "results.json", as_json + "\n")
        wrote(out)
    result(as_json if format == "json" else table.render(format, width=terminal_width()))


@dataclass(frozen=True)
class _Plan:
    """One network and what it is shown.

    Attributes:
        one: The network.
        data: The data.
        sites: Names of the chosen sites; empty where they are not needed.
        scoring: How the task is scored; None where there is no task, or the data have no labels for it.
        unscored: Why not, in words.
    """

    one: Named
    data: Data
    sites: tuple[str, ...]
    scoring: Scoring | None
    unscored: str = ""

    def said(self, kinds: Sequence[str], each_site: bool) -> str:
        """What will be done, in a line."""
        where = f"at each of {len(self.sites)} sites" if each_site else "at all chosen sites together"
        scored = "" if self.scoring else f"; not scored, as {self.unscored}"
        return f"{self.one.label}: {', '.join(kinds)} {where}{scored}"

    def batches(self, batch_size: int | None, workers: int) -> Iterator[tuple[Inputs | Batch, Sequence[str]]]:
        """The batches with the names of their images."""
        if self.scoring is None:
            for inputs, ids, *_ in feed(self.data, self.one, batch_size or 8, workers).batches():
                if ids:
                    yield inputs, ids
            return
        assert isinstance(self.data, Part)
        assert self.one.checkpoint is not None
        labelled = Labelled(self.one.label, self.one.checkpoint)
        loaded = Batches(
            self.data,
            self.scoring.transform(labelled),
            batch_size or self.scoring.batch_size,
            workers=workers,
            report=_left_out,
            pad=labelled.preprocessing.pad,
        )
        say(f"{self.one.label}: {self.scoring.describe(labelled)}")
        for batch in progress(loaded, self.one.label, len(self.data), count=lambda one: len(one.ids)):
            yield batch, batch.ids


def _plan(one: Named, data: Data, sites: Sequence[str], each_site: bool, adapters: Sequence[Adapter]) -> _Plan:
    """How a network is scored on the data, and which sites are chosen where they are tried one by one."""
    task = task_of(one)
    scoring, unscored = (SCORINGS[task](), "") if task in SCORINGS else (None, "nobody says what its task is")
    if scoring is not None and one.checkpoint is not None:
        if not isinstance(data, Part):
            raise ConfigError(f"`{one.label}` takes images, and the data are none", "give a data set's root")
        try:
            scoring.check(Labelled(one.label, one.checkpoint), data)
        except DataError as error:
            scoring, unscored = None, error.cause
    names: tuple[str, ...] = ()
    if each_site:
        example = feed(data, one, 1).example()
        names = tuple(sized.site.name for sized in sized_sites(one.model, example, sites, adapters=adapters))
    return _Plan(one, data, names, scoring, unscored)


def _left_out(error: UnreadableImageError) -> None:
    say(f"left out: {error.cause}")
