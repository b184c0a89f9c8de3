"""`nlprobe train`: a model of the zoo, trained by its recipe on a data set."""

from dataclasses import dataclass, replace
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
    seed_option,
    workers_option,
)
from nlprobe.commands.pretrained import Start, WeightsType, fetch, found
from nlprobe.commands.report import result, say, wrote
from nlprobe.commands.several import own_device
from nlprobe.commands.training_curves import TensorBoard, TrainingCurves
from nlprobe.commands.training_emergence import Emergence, ProbeSet, probe_options, refuse_other_images
from nlprobe.commands.training_plan import batch, choices, plan
from nlprobe.commands.training_progress import TrainingProgress, Unreadable
from nlprobe.data import open_dataset
from nlprobe.emergence import EMERGENCE, rewind
from nlprobe.errors import ConfigError
from nlprobe.files import refuse_existing
from nlprobe.models import INFLATIONS, VideoConfig, entry
from nlprobe.processes import ElsewhereError, Processes
from nlprobe.results import versions
from nlprobe.tables import Column, Table
from nlprobe.training import Engine, Observer, Recipe, recipe
from nlprobe.training.keeping import Keeper
from nlprobe.training.recipes import AMP, parse_override
from nlprobe.training.run import Run, refuse_incompatible
from nlprobe.training.state import BEST, STATE, clear, differences, load_state, remove_partial

# Parameters that a run remembers, beside those of one call such as --out and --format.
_TAKEN_OVER = (
    *("model", "data", "val_data", "recipe_name", "epochs", "batch_size", "batch_per_process", "learning_rate"),
    *("scale_lr", "amp", "accumulate", "pretrained", "pretrained_classifier", "inflation", "overrides"),
    *("seed", "device", "workers", "save_every", "tensorboard", "probe_every", "probe_images"),
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
@click.option("--batch-size", type=click.IntRange(min=1), help="Images in a step, over all processes together.")
@click.option("--batch-per-process", type=click.IntRange(min=1), help="The same for each process, instead.")
@click.option("--accumulate", type=click.IntRange(min=1), help="Parts in which a process takes its images of a step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Initial learning rate, for the recipe's own batch size where --scale-lr is given.",
)
@click.option(
    "--scale-lr", is_flag=True, help="Multiply the learning rate by the batch size over the recipe's own batch size."
)
@click.option("--amp", type=click.Choice(tuple(AMP)), help="Mixed precision; fp16 with scaled gradients.")
@click.option(
    "--pretrained",
    type=WeightsType(),
    metavar="FILE | torchvision:NAME | timm:NAME",
    help="Begin with these weights; the last layer and inserted blocks begin anew. A name, such as "
    "torchvision:resnet50 or torchvision:ResNet50_Weights.IMAGENET1K_V1, is looked up in the library's cache, and "
    "fetched if it is not there: the one use of the network.",
)
@click.option("--pretrained-classifier", is_flag=True, help="Take the last layer from them, too.")
@click.option(
    "--inflation",
    type=click.Choice(INFLATIONS),
    help="How a network for clips begins with weights of pictures: every kernel shared out over its frames (mean, as "
    "other projects do, the default), or in its middle frame (centre, so that a video that stands still gives the "
    "logits of the picture).",
)
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
@click.option(
    "--save-every",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="STEPS",
    help="Also keep the state within epochs, for runs that may be killed; 0 keeps it after each epoch.",
)
@click.option("--tensorboard", is_flag=True, help="Also write the curves for TensorBoard, into the run's folder.")
@probe_options
@format_option()
@config_option
@dry_run_option
@force_option
@click.option("--resume", is_flag=True, help="Go on with the run in --out, by its own settings where none are given.")
@click.pass_context
def command(ctx: click.Context, out: Path, format: str, dry_run: bool, force: bool, resume: bool, **_: Any) -> None:
    """Train a model of the zoo by its recipe.

    MODEL is a name of `nlprobe zoo`, such as miniature-imagenet/resnet-nl. After each epoch the folder --out gets
    `best.safetensors` and `last.safetensors`, `log.csv`, and the state from which --resume goes on; `curves.*` are its
    curves. Ctrl-C or SIGTERM ends the current step and leaves a run that goes on to the same weights as one that
    was never stopped. The best epoch goes to stdout.

    Under `torchrun` the processes share each batch, one GPU each; they learn what one process would, but for dropout
    and for batch norm other than `sync`.

    \b
    Examples:
      nlprobe data miniature --out data
      nlprobe train miniature-imagenet/resnet-nl --data data/imagenet --out runs/nl
      nlprobe train --resume --out runs/nl --epochs 30
      nlprobe train miniature-imagenet/resnet-nl --data data/imagenet --out runs/nl --probe-every 25
      torchrun --nproc-per-node 8 -m nlprobe train imagenet/resnet50-nl --data imagenet --out runs/nl --workers 8
    """
    if resume and force:
        raise ConfigError("`--resume` goes on with a run and `--force` replaces it", "give one of the two")
    processes = Processes.of_environment()
    try:
        with (
            processes.joined(own_device(ctx.params["device"], processes)),
            processes.watched(lambda: "before training"),
        ):
            _train(ctx, processes, out, format, dry_run=dry_run, force=force, resume=resume)
    except ElsewhereError as error:
        # The process that has it says it.
        raise click.exceptions.Exit(error.exit_code) from error


def _train(
    ctx: click.Context, processes: Processes, out: Path, format: str, *, dry_run: bool, force: bool, resume: bool
) -> None:
    """Train, in one of several processes."""
    if not resume and not dry_run:
        processes.first(lambda: _refuse_run(out, force=force))
    started = _begin(ctx, processes, out, resume=resume, dry_run=dry_run)
    engine = started.engine
    if dry_run:
        if processes.leads:
            result(started.plan() + choices(started.run.recipe))
        return

    processes.together(lambda: started.attach_tensorboard(ctx.params["tensorboard"]))
    if processes.leads:
        say("\n".join(started.going_on()) if resume else started.plan())
    processes.first(lambda: started.take_up(out) if resume else clear(out))
    processes.first(lambda: write_settings(out, ctx))
    try:
        with started.shown:
            engine.train()
    except KeyboardInterrupt:
        at = engine.progress
        if not processes.leads:
            raise click.exceptions.Exit(130) from None
        say(f"stopped in epoch {at.epoch + 1}, after step {at.step}; go on with: {_again(processes, out)}")
        raise
    finally:
        started.unreadable.summarise()
    if processes.leads:
        started.curves.draw(engine)
        wrote(out / BEST)
        result(_best(engine, out).render(format))


def _begin(ctx: click.Context, processes: Processes, out: Path, *, resume: bool, dry_run: bool) -> "_Start":
    """Make the run in every process; process 0 reads the state for all."""
    state = processes.first(lambda: load_state(out) if resume else None)
    if state:
        _take_over(ctx, state["settings"]["flags"])
    device = own_device(ctx.params["device"], processes)
    asked = processes.together(lambda: _run(ctx, processes))
    if asked.weights.missing and not dry_run:
        processes.together(lambda: fetch(ctx.params["pretrained"], processes))
        asked = asked.with_weights(found(ctx.params["pretrained"], asked.run.recipe.preprocessing))
    return processes.together(lambda: _Start.of(ctx, processes, device, out, state, asked))


@dataclass(frozen=True)
class _Asked:
    """What the flags mean: the run, the learning rate before it was scaled, and the weights to begin with."""

    run: Run
    own_rate: float
    weights: Start

    def with_weights(self, weights: Start) -> "_Asked":
        """The same with other weights."""
        return replace(self, run=replace(self.run, pretrained=weights.file), weights=weights)


@dataclass(frozen=True)
class _Start:
    """Everything that a run needs, made and checked, with nothing written yet."""

    run: Run
    engine: Engine
    shown: TrainingProgress
    curves: TrainingCurves
    unreadable: Unreadable
    asked: _Asked
    out: Path
    changed: dict[str, tuple[Any, Any]]
    probed: ProbeSet | None

    @classmethod
    def of(
        cls,
        ctx: click.Context,
        processes: Processes,
        device: torch.device,
        out: Path,
        state: dict[str, Any] | None,
        asked: _Asked,
    ) -> "_Start":
        """Make the run that was asked for, and go to where `state` was taken."""
        flags = ctx.params
        run = asked.run
        every = flags["probe_every"]
        probed = ProbeSet(run, every, flags["probe_images"]) if every else None
        resolved = {**run.settings(), "processes": processes.count, **(probed.settings() if probed else {})}
        progress = state["progress"] if state else {}
        changed = differences(state["settings"]["resolved"], resolved) if state else {}
        refuse_incompatible(changed, progress.get("step", 0))
        refuse_other_images(changed)
        kept = {"flags": _flags(ctx), "resolved": resolved}
        keeper = Keeper(out, run.metadata(versions()), kept, save_every=flags["save_every"])
        shown, curves, unreadable = TrainingProgress(), TrainingCurves(out), Unreadable()
        observers: list[Observer] = [Emergence(out, probed, unreadable)] if probed else []
        observers.append(keeper)
        if processes.leads:
            observers += [shown, curves]
        engine = run.engine(
            device, workers=flags["workers"], observers=observers, report=unreadable, processes=processes
        )
        if probed:
            probed.refuse_no_site(engine.model)
        if state:
            engine.load_state(state)
        return cls(run, engine, shown, curves, unreadable, asked, out, changed, probed)

    @property
    def done(self) -> int:
        """Finished steps."""
        return self.engine.progress.epoch * self.engine.steps_per_epoch + self.engine.progress.step

    def take_up(self, out: Path) -> None:
        """Remove what belongs to later steps than the run goes on from, and what is half-written."""
        remove_partial(out)
        rewind(out / EMERGENCE, self.done)

    def attach_tensorboard(self, wanted: bool) -> None:
        """Let TensorBoard look on too, in the process that writes."""
        if wanted and self.engine.processes.leads:
            self.engine.observers.append(TensorBoard(self.out / "tensorboard"))

    def plan(self) -> str:
        """The run in a few lines."""
        text = plan(self.run, self.engine.device, self.out, self.engine.processes, self.asked.own_rate)
        if self.probed:
            text += f"\nprobe: {self.probed}, into {EMERGENCE}"
        weights = self.asked.weights
        if weights.missing is None:
            return text
        return f"{text}\npretrained: {weights.name}, not looked into: to be fetched from {weights.missing}"

    def going_on(self) -> list[str]:
        """Which settings differ from before, and where the run goes on."""
        at, recipe = self.engine.progress, self.run.recipe
        lines = [f"`{key}` was {then}, is now {now}" for key, (then, now) in self.changed.items()]
        lines.append(
            f"effective batch: {batch(recipe, self.engine.processes)}; learning rate {recipe.optimiser.learning_rate:g}"
        )
        if at.epoch < recipe.epochs:
            steps = self.engine.steps_per_epoch
            return [*lines, f"going on in epoch {at.epoch + 1} of {recipe.epochs}, after step {at.step} of {steps}"]
        return [*lines, f"the run is complete, with {at.epoch} epochs; --epochs asks for more"]


def _again(processes: Processes, out: Path) -> str:
    """The command that goes on with the run."""
    if processes.count == 1:
        return f"nlprobe train --resume --out {out}"
    return f"torchrun … -m nlprobe train --resume --out {out}, with torchrun's own flags as before"


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


def _run(ctx: click.Context, processes: Processes) -> _Asked:
    """What the flags mean.

    Raises:
        ConfigError: no model or data; an unknown name; flags that exclude each other.
        DataError: the data cannot be trained on.
    """
    flags = ctx.params
    if not flags["probe_every"] and ctx.get_parameter_source("probe_images") is ParameterSource.COMMANDLINE:
        raise ConfigError(
            "`--probe-images` without `--probe-every` measures nothing", "say how often: --probe-every 100"
        )
    if not flags["model"]:
        raise ConfigError("no model is named", "give MODEL, a name from `nlprobe zoo`; or go on with a run by --resume")
    if not flags["data"]:
        raise ConfigError("no data are given", "give --data; `nlprobe data miniature --out data` writes a small set")
    chosen = entry(flags["model"])
    settings, own_rate = _recipe(chosen.recipe, flags, processes)
    if flags["pretrained_classifier"] and not flags["pretrained"]:
        raise ConfigError("`--pretrained-classifier` needs weights to take it from", "give --pretrained")
    if flags["inflation"] and not (flags["pretrained"] and isinstance(chosen.config, VideoConfig)):
        raise ConfigError(
            "`--inflation` is for networks for clips that begin with weights of pictures",
            "leave it out" if flags["pretrained"] else "give --pretrained, or leave it out",
        )
    training = open_dataset(flags["data"], "train")
    if flags["val_data"]:
        validation = open_dataset(flags["val_data"], "val")
    elif training.kind.startswith("class folders"):
        raise ConfigError(
            f"`{flags['data']}` is one folder of classes, without a part to validate on",
            "part it into `train` and `val`, or give another folder with --val-data",
        )
    else:
        validation = open_dataset(flags["data"], "val")
    classes = len(training.classes or ())
    config = replace(chosen.config, classes=classes) if classes else chosen.config
    weights = found(flags["pretrained"], settings.preprocessing)
    begin = (weights.file, flags["pretrained_classifier"], weights.name)
    inflation = flags["inflation"] or INFLATIONS[0]
    asked = Run(chosen.name, config, settings, training, validation, flags["seed"], *begin, inflation)
    return _Asked(asked, own_rate, weights)


def _recipe(name: str, flags: dict[str, Any], processes: Processes) -> tuple[Recipe, float]:
    """The recipe as the flags change it, and its learning rate before it was scaled."""
    if flags["batch_size"] and flags["batch_per_process"]:
        raise ConfigError("`--batch-size` and `--batch-per-process` say the same thing twice", "give one of the two")
    overrides = dict(parse_override(text) for text in flags["overrides"])
    given = {
        "epochs": flags["epochs"],
        "batch_size": flags["batch_size"] or (flags["batch_per_process"] or 0) * processes.count or None,
        "accumulate": flags["accumulate"],
        "amp": flags["amp"],
        "optimiser.learning_rate": flags["learning_rate"],
    }
    overrides |= {key: value for key, value in given.items() if value is not None}
    if "name" in overrides or "task" in overrides:
        raise ConfigError("`name` and `task` of a recipe are not numbers", "choose another recipe with --recipe")
    known = recipe(flags["recipe_name"] or name)
    changed = known.override(overrides)
    own_rate = changed.optimiser.learning_rate
    if flags["scale_lr"]:
        changed = changed.override({"optimiser.learning_rate": own_rate * changed.batch_size / known.batch_size})
    return changed, own_rate


def _best(engine: Engine, out: Path) -> Table:
    """The best epoch's line of the log."""
    rows = [row for row in engine.progress.history if row["epoch"] == engine.progress.best_epoch]
    scores = [name for name in rows[0] if name.startswith("val_")]
    columns = [Column(name) for name in ("run", "epoch", *(name.removeprefix("val_") for name in scores))]
    cells = [[str(out), row["epoch"], *(row[name] for name in scores)] for row in rows]
    return Table.of("The best epoch on the validation set", columns, cells)
