"""`nlprobe simplify`: give a trained network cheap blocks in the places where its queries do not matter."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from nlprobe.checkpoints import save_checkpoint
from nlprobe.commands.config import settings, write_settings
from nlprobe.commands.inputs import describe_data
from nlprobe.commands.options import (
    Chosen,
    answers_option,
    config_option,
    device_option,
    force_option,
    format_option,
    limit_option,
    resolve_device,
    seed_option,
    workers_option,
)
from nlprobe.commands.report import progress, result, say, terminal_width, wrote
from nlprobe.commands.scoring import Scoring
from nlprobe.commands.scorings import SCORINGS, task_of
from nlprobe.commands.simplification_table import as_dict, simplification_table, verdict_table
from nlprobe.commands.simplifying import Judged, judged, left_tolerance, non_local_sites, verdicts, versions
from nlprobe.commands.sources import Labelled, Named, read_networks
from nlprobe.data import Batch, Batches, ImageDataset, UnreadableImageError, open_dataset
from nlprobe.data.part import Part
from nlprobe.errors import ConfigError
from nlprobe.files import new_folder, refuse_existing, write_text
from nlprobe.models import entry, names
from nlprobe.results import EXTENSIONS, LINE
from nlprobe.results import versions as package_versions

CALIBRATION = 256

KEPT = ("recipe", "inference", "preprocessing", "classes", "data", "versions", "seed")
"""What the new checkpoint says as the old one does."""


@click.command("simplify")
@click.option(
    "--ckpt", "checkpoint", required=True, type=click.Path(path_type=Path), help="A checkpoint or run's folder."
)
@answers_option
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The data set's root.")
@click.option(
    "--tolerance",
    required=True,
    type=click.FloatRange(min=0),
    help="How far the task's score may fall: 0.005 is half a point. The whole interval has to stay within.",
)
@click.option("--site", "sites", multiple=True, help="Sites by name or glob; all non-local blocks by default.")
@click.option(
    "--calibrate",
    type=click.IntRange(min=1),
    default=CALIBRATION,
    show_default=True,
    help="Training images on which the new blocks are fitted.",
)
@click.option("--no-refine", is_flag=True, help="Keep the mask of the closed form; do not fit it to the mean maps.")
@click.option("--reduction", type=click.IntRange(min=1), help="Give the new blocks a bottleneck of C/r channels.")
@click.option(
    "--distil",
    "epochs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Train the new blocks alone, for so many passes over the calibration images, to give what the old ones gave.",
)
@click.option(
    "--learning-rate", type=click.FloatRange(min=0, min_open=True), default=1e-4, show_default=True, help="Of --distil."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the new checkpoint and the report into this folder."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Images in one forward pass.")
@format_option()
@limit_option
@workers_option
@device_option
@seed_option
@config_option
@force_option
@click.pass_context
def command(
    ctx: click.Context,
    checkpoint: Path,
    answers: tuple[str, ...],
    data: Path,
    tolerance: float,
    sites: tuple[str, ...],
    calibrate: int,
    no_refine: bool,
    reduction: int | None,
    epochs: int,
    learning_rate: float,
    out: Path | None,
    batch_size: int | None,
    format: str,
    limit: int | None,
    workers: int,
    device: str,
    seed: int,
    force: bool,
) -> None:
    """Replace non-local blocks whose queries do not matter by simplified ones, and keep the task's score.

    First the mean map stands in at each site by itself. Where the interval of what that does to the task's score stays
    within --tolerance, the block is turned into a simplified one (SNL) in closed form, its mask W_k^T E[q] measured on
    calibration images and then fitted to the mean maps by least squares, its transform W_z W_v with the norm folded in;
    on request with a bottleneck, and trained to give what the old block gave. The new network is scored on the same
    images. Where queries matter, the block stays, and the reason is given; if the new network leaves the tolerance,
    nothing is written.

    \b
    Examples:
      nlprobe simplify --ckpt runs/nl --data imagenet --tolerance 0.005 --out runs/nl-as-snl
      nlprobe simplify --ckpt runs/nl --data imagenet --tolerance 0.005 --reduction 16 --distil 2 --out runs/nl-as-gc
    """
    place = resolve_device(device)
    if out is not None:
        refuse_existing(out, force=force)
    (one,) = read_networks(Chosen(checkpoints=(checkpoint,), answers=answers))
    scoring = _scoring(one)
    assert one.checkpoint is not None
    labelled = Labelled(one.label, one.checkpoint)
    shown = Part(open_dataset(data, "val"), limit)
    scoring.check(labelled, shown)
    model = one.model.to(place).eval()
    blocks = non_local_sites(model, sites)
    size = batch_size or scoring.batch_size
    load = partial(_batches, scoring=scoring, one=labelled, size=size, workers=workers)
    found = verdicts(one, list(blocks), scoring, partial(load, shown, "mean maps"), place, tolerance, seed)
    for verdict in found:
        if verdict.reason:
            say(f"{verdict.site} stays as it is: with the mean map, {verdict.reason}")
    chosen = {verdict.site: blocks[verdict.site] for verdict in found if not verdict.reason}
    if not chosen:
        result(verdict_table(found).render("table" if format == "json" else format, width=terminal_width()))
        raise ConfigError(
            "the network depends on its queries: no site can be simplified within the tolerance",
            "the table says by how much; a larger --tolerance accepts that",
        )
    training = Part(open_dataset(data, "train"), calibrate)
    made = list(
        versions(
            model,
            chosen,
            partial(load, training, "calibration"),
            place,
            refine=not no_refine,
            reduction=reduction,
            epochs=epochs,
            learning_rate=learning_rate,
            tell=say,
        )
    )
    outcome = judged(one, made, scoring, partial(load, shown, "scores"), shown.ids, place, seed)
    table = simplification_table(one.label, outcome, found)
    payload = {
        "command": "simplify",
        "config": settings(ctx),
        "versions": package_versions(),
        "seed": seed,
        "data": describe_data(str(data), "val", shown),
        **as_dict(one.label, outcome, found),
    }
    as_json = json.dumps(payload, indent=1, allow_nan=False)
    result(as_json if format == "json" else table.render(format, width=terminal_width()))
    last = outcome[-1]
    reason = left_tolerance(last.effects[0], tolerance)
    if reason:
        raise ConfigError(
            f"the simplified network leaves the tolerance: {reason}; nothing was written",
            "try --distil 2, other sites (--site), or a larger --tolerance",
        )
    if out is None:
        say("nothing was written; --out keeps the network")
        return
    with new_folder(out, force=force) as folder:
        write_settings(folder, ctx)
        for extension in EXTENSIONS:
            kind = "table" if extension == "txt" else extension
            write_text(folder / f"table.{extension}", table.render(kind, width=LINE if kind == "table" else None))
        write_text(folder / "results.json", as_json + "\n")
        save_checkpoint(folder / "best.safetensors", last.version.model, _metadata(one, last, list(chosen)))
    wrote(out)


def _scoring(one: Named) -> Scoring:
    task = task_of(one)
    if task not in SCORINGS:
        raise ConfigError(f"nlprobe does not score the task `{task}`", f"known: {', '.join(SCORINGS)}")
    return SCORINGS[task]()


def _batches(
    dataset: ImageDataset, what: str, *, scoring: Scoring, one: Labelled, size: int, workers: int
) -> Iterator[Batch]:
    """A pass over the images in their order."""
    loaded = Batches(
        dataset, scoring.transform(one), size, workers=workers, report=_left_out, pad=one.preprocessing.pad
    )
    yield from progress(loaded, what, len(dataset), count=lambda batch: len(batch.ids))


def _left_out(error: UnreadableImageError) -> None:
    say(f"left out: {error.cause}")


def _metadata(one: Named, last: Judged, sites: list[str]) -> dict[str, Any]:
    """What the new checkpoint says of itself: the old one's recipe and preprocessing, and where it comes from."""
    assert one.checkpoint is not None
    old = one.checkpoint.metadata
    config = last.version.model.config.as_dict()  # type: ignore[union-attr,operator]
    metrics = {effect.metric: effect.after.mean for effect in last.effects}
    kept: dict[str, Any] = {key: old[key] for key in KEPT if key in old}
    source = {"model": old.get("model"), "sites": sites, "steps": last.version.name}
    return {**kept, "model": _zoo_name(config), "config": config, "metrics": metrics, "simplified_from": source}


def _zoo_name(config: dict[str, object]) -> str | None:
    """The model of the zoo that has this configuration, if one has."""
    return next((name for name in names() if entry(name).config.as_dict() == config), None)
