"""`nlprobe train`: a model of the zoo, trained by its recipe on a data set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from nlprobe.commands.config import write_settings
from nlprobe.commands.options import (
    config_option,
    device_option,
    dry_run_option,
    force_option,
    format_option,
    resolve_device,
    seed_option,
    workers_option,
)
from nlprobe.commands.report import result, say, wrote
from nlprobe.commands.training_progress import TrainingProgress
from nlprobe.data import UnreadableImageError, open_dataset
from nlprobe.errors import ConfigError
from nlprobe.files import refuse_existing
from nlprobe.models import entry
from nlprobe.results import versions
from nlprobe.tables import Column, Table
from nlprobe.training import Engine, Recipe, recipe
from nlprobe.training.keeping import Keeper
from nlprobe.training.recipes import parse_override
from nlprobe.training.run import Run, refuse_incompatible
from nlprobe.training.state import BEST, FILES, STATE, differences, load_state

# Parameters that a run remembers, beside those of one call such as --out and --format.
_TAKEN_OVER = (
    *("model", "data", "val_data", "recipe_name", "epochs", "batch_size", "learning_rate", "overrides"),
    *("seed", "device", "workers"),
)


@click.command("train")
@click.argument("model", required=False)
@click.option(
    "--data", type=click.Path(path_type=Path), help="A data set's root, with a training and a validation part."
)
@click.option("--val-data", type=click.Path(path_type=Path), help="A data set to validate on, if --data has one part.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The run's folder.")
@click.option("--recipe", "recipe_name", help="How to train; by default the model's own recipe.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training set.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images in a step.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Initial learning rate.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other number of the recipe, such as optimiser.momentum=0.8 or augmentation.area=[0.5,1]; repeatable.",
)
@seed_option
@device_option
@workers_option
@format_option()
@config_option
@dry_run_option
@force_option
@click.option("--resume", is_flag=True, help="Go on with the run in --out, by its own settings where none are given.")
@click.pass_context
def command(ctx: click.Context, out: Path, format: str, dry_run: bool, force: bool, resume: bool, **_: Any) -> None:
    """Train a model of the zoo by its recipe.

    MODEL is a name of `nlprobe zoo`, such as miniature-imagenet/resnet-nl. After each epoch the folder --out gets
    `best.safetensors` and `last.safetensors`, `log.csv`, and the state from which --resume goes on. Ctrl-C ends the
    current step and leaves a run that goes on to the same weights as one that was never stopped. The best epoch goes to
    stdout.

    \b
    Examples:
      nlprobe data miniature --out data
      nlprobe train miniature-imagenet/resnet-nl --data data/imagenet --out runs/nl
      nlprobe train --resume --out runs/nl --epochs 30
    """
    if resume and force:
        raise ConfigError("`--resume` goes on with a run and `--force` replaces it", "give one of the two")
    state = load_state(out) if resume else None
    if state:
        _take_over(ctx, state["settings"]["flags"])
    elif not dry_run:
        _refuse_run(out, force=force)
    run = _run(ctx)
    device = resolve_device(ctx.params["device"])
    changed = differences(state["settings"]["resolved"], run.settings()) if state else {}
    refuse_incompatible(changed, state["progress"]["step"] if state else 0)
    if dry_run:
        result(_plan(run, device, out))
        return

    unreadable = _Unreadable()
    shown = TrainingProgress()
    kept = {"flags": _flags(ctx), "resolved": run.settings()}
    keeper = Keeper(out, run.metadata(versions()), kept)
    engine = run.engine(device, workers=ctx.params["workers"], observers=(keeper, shown), report=unreadable)
    if state:
        engine.load_state(state)
        for key, (then, now) in changed.items():
            say(f"`{key}` was {then}, is now {now}")
        at, epochs = engine.progress, run.recipe.epochs
        if at.epoch < epochs:
            say(f"going on in epoch {at.epoch + 1} of {epochs}, after step {at.step} of {engine.steps_per_epoch}")
        else:
            say(f"the run is complete, with {at.epoch} epochs; --epochs asks for more")
    else:
        for name in FILES:
            (out / name).unlink(missing_ok=True)
        say(_plan(run, device, out))
    write_settings(out, ctx)
    try:
        with shown:
            engine.train()
    except KeyboardInterrupt:
        at = engine.progress
        say(f"stopped in epoch {at.epoch + 1}, after step {at.step}; go on with: nlprobe train --resume --out {out}")
        raise
    finally:
        unreadable.summarise()
    wrote(out / BEST)
    result(_best(engine, out).render(format))


def _refuse_run(out: Path, *, force: bool) -> None:
    """Raise a ConfigError where a run would be overwritten."""
    if (out / STATE).is_file() and not force:
        raise ConfigError(
            f"`{out}` holds a run already", "go on with it by --resume, replace it with --force, or give another --out"
        )
    refuse_existing(out, force=force)


def _take_over(ctx: click.Context, flags: dict[str, Any]) -> None:
    """Give every flag that was not given the value that it had when the run was started."""
    for parameter in ctx.command.params:
        name = parameter.name
        if name in flags and ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
            ctx.params[name] = parameter.type_cast_value(ctx, flags[name])


def _flags(ctx: click.Context) -> dict[str, Any]:
    """The flags in force that --resume takes over, as plain values, with paths that hold from any folder."""
    flags = {name: ctx.params[name] for name in _TAKEN_OVER if ctx.params[name] is not None}
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in flags.items()}


def _run(ctx: click.Context) -> Run:
    """What the flags mean.

    Raises:
        ConfigError: no model or data; an unknown name.
        DataError: the data cannot be trained on.
    """
    flags = ctx.params
    if not flags["model"]:
        raise ConfigError("no model is named", "give MODEL, a name from `nlprobe zoo`; or go on with a run by --resume")
    if not flags["data"]:
        raise ConfigError("no data are given", "give --data; `nlprobe data miniature --out data` writes a small set")
    chosen = entry(flags["model"])
    settings = _recipe(chosen.recipe, flags)
    training = open_dataset(flags["data"], "train")
    if flags["val_data"]:
        validation = open_dataset(flags["val_data"], "val")
    elif training.kind == "class folders":
        raise ConfigError(
            f"`{flags['data']}` is one folder of classes, without a part to validate on",
            "part it into `train` and `val`, or give another folder with --val-data",
        )
    else:
        validation = open_dataset(flags["data"], "val")
    classes = len(training.classes or ())
    config = replace(chosen.config, classes=classes) if classes else chosen.config
    return Run(chosen.name, config, settings, training, validation, flags["seed"])


def _recipe(name: str, flags: dict[str, Any]) -> Recipe:
    overrides = dict(parse_override(text) for text in flags["overrides"])
    given = {
        "epochs": flags["epochs"],
        "batch_size": flags["batch_size"],
        "optimiser.learning_rate": flags["learning_rate"],
    }
    overrides |= {key: value for key, value in given.items() if value is not None}
    if "name" in overrides or "task" in overrides:
        raise ConfigError("`name` and `task` of a recipe are not numbers", "choose another recipe with --recipe")
    return recipe(flags["recipe_name"] or name).override(overrides)


def _plan(run: Run, device: torch.device, out: Path) -> str:
    """The run in a few lines."""
    recipe, network = run.recipe, run.build()
    steps = len(run.training) // recipe.batch_size
    parameters = sum(parameter.numel() for parameter in network.parameters())
    optimiser = recipe.optimiser
    return "\n".join(
        [
            f"model: {run.model}, {parameters:,} parameters; sites: {', '.join(run.config.sites()) or 'none'}",
            f"data: {run.training.kind} in {run.training.root}, {len(run.training.classes or ())} classes, "
            f"{len(run.training)} images to train on and {len(run.validation)} to validate on",
            f"preprocessing: {recipe.preprocessing}",
            f"recipe: {recipe.name}, {recipe.epochs} epochs of {steps} steps of {recipe.batch_size} images; "
            f"learning rate {optimiser.learning_rate:g} ({recipe.schedule.kind}), momentum {optimiser.momentum:g}, "
            f"weight decay {optimiser.weight_decay:g}; seed {run.seed}",
            f"device: {device}",
            f"files: {', '.join((*FILES, 'run.toml'))} in {out}",
        ]
    )


def _best(engine: Engine, out: Path) -> Table:
    """The best epoch's line of the log."""
    rows = [row for row in engine.progress.history if row["epoch"] == engine.progress.best_epoch]
    scores = [name for name in rows[0] if name.startswith("val_")]
    columns = [Column(name) for name in ("run", "epoch", *(name.removeprefix("val_") for name in scores))]
    cells = [[str(out), row["epoch"], *(row[name] for name in scores)] for row in rows]
    return Table.of("The best epoch on the validation set", columns, cells)


class _Unreadable:
    """Names each image that cannot be read once, the first few at once and all of them by number at the end."""

    _NAMED = 5

    def __init__(self) -> None:
        self._names: set[str] = set()

    def __call__(self, error: UnreadableImageError) -> None:
        if error.image not in self._names and len(self._names) < self._NAMED:
            say(f"left out: {error.cause}")
        self._names.add(error.image)

    def summarise(self) -> None:
        if self._names:
            say(f"images that could not be read and were left out: {len(self._names)}")
