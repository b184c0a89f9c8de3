"""`nlprobe demo`: the whole way, from no data to tables and figures, by the other commands."""

import contextlib
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import click

from nlprobe.commands import data, stats, train, viz
from nlprobe.commands.config import FILE_NAME, settings, write_settings
from nlprobe.commands.options import device_option, force_option, seed_option
from nlprobe.commands.report import result, say
from nlprobe.errors import ConfigError
from nlprobe.models import entry, names
from nlprobe.suggestions import did_you_mean
from nlprobe.training.state import STATE

MODEL = "miniature-imagenet/resnet-nl"

QUERIES = ("30%,25%", "50%,75%", "80%,40%")

PARTS = ("data", "run", "stats", "figures")


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Where all goes.")
@click.option("--model", default=MODEL, show_default=True, help="A miniature-imagenet model of `nlprobe zoo`.")
@click.option("--epochs", type=click.IntRange(min=1), help="Other than the recipe's, for a quick look.")
@click.option("--images", type=click.IntRange(min=1), help="Measure this many images only.")
@seed_option
@device_option
@force_option
@click.pass_context
def command(
    ctx: click.Context,
    out: Path,
    model: str,
    epochs: int | None,
    images: int | None,
    seed: int,
    device: str,
    force: bool,
) -> None:
    """Train a small non-local network, measure it and draw its attention, in a few minutes on two CPU cores.

    The steps are the commands that you would type yourself; each is shown before it runs. What is already done in --out
    is not done again, so an interrupted demo goes on where it stopped. The table of distances goes to stdout: the
    trained network, the same with its block redrawn, the whole network before training, and the paper's row.
    """
    _refuse_other_models(model)
    _prepare(ctx, out, force=force)
    root, run, measured, figures = (out / part for part in PARTS)
    figure = figures / "attention"
    common = ["--seed", str(seed)]
    place = ["--device", device]
    if not (root / "imagenet").exists():
        _step(
            "the miniature ImageNet",
            "data",
            data.command,
            ["miniature", "--only", "imagenet", "--out", str(root), *common],
        )
    resumed = ["--resume", "--out", str(run)]
    anew = [model, "--data", str(root / "imagenet"), "--out", str(run), *common, *place]
    anew += ["--epochs", str(epochs)] if epochs else []
    _step("a network with a non-local block", "train", train.command, resumed if (run / STATE).exists() else anew)
    if not measured.exists():
        arguments = ["--ckpt", str(run), "--data", str(root / "imagenet"), "--out", str(measured), "--paper"]
        arguments += ["--baseline", "init-block", "--baseline", "init-all", "--batch-size", "16", *common, *place]
        arguments += ["--limit", str(images)] if images else []
        arguments += ["--resume"] if measured.with_name("stats.partial").exists() else []
        _step("the distances, and those of its null models", "stats", stats.command, arguments)
    if not figure.with_suffix(".npz").exists():
        arguments = ["attention", "--ckpt", str(run), "--data", str(root / "imagenet"), "--limit", "4"]
        arguments += ["--initial", "--crop"]
        arguments += [word for query in QUERIES for word in ("--query", query)]
        arguments += ["--out", str(figure), "--force", *place]
        _step("its attention for three query points, and before training", "viz", viz.command, arguments)
    result((measured / "table.txt").read_text(encoding="utf-8"))
    say(f"table for a paper: {measured / 'table.tex'}")
    say(f"heatmaps: {figure}.pdf")
    say(f"all of it: {out}")


def _refuse_other_models(model: str) -> None:
    """Raise a ConfigError for a network that is no miniature classifier, or has nothing to measure."""
    known = entry(model)
    if known.task != "classification" or known.full_size is None or not known.config.sites():
        fitting = [name for name in names() if name.startswith("miniature-imagenet/") and entry(name).config.sites()]
        raise ConfigError(f"`{model}` is no miniature classifier with an attention block", did_you_mean(model, fitting))


def _prepare(ctx: click.Context, out: Path, *, force: bool) -> None:
    """Make the folder; with other settings than before it is refused, or its parts are removed by --force."""
    before = out / FILE_NAME
    if force:
        for part in (*PARTS, f"{PARTS[2]}.partial"):
            shutil.rmtree(out / part, ignore_errors=True)
    elif before.exists():
        was, now = tomllib.loads(before.read_text(encoding="utf-8")), settings(ctx)
        differing = [key for key in now if key not in ("out", "device") and was.get(key) != now[key]]
        if differing:
            told = ", ".join(f"`{key}` was {was.get(key)} and is {now[key]}" for key in differing)
            raise ConfigError(
                f"`{out}` holds a demo with other settings: {told}", "choose another --out, or replace it with --force"
            )
    write_settings(out, ctx)


def _step(what: str, verb: str, command: click.Command, arguments: list[str]) -> None:
    """Say and run one command; its stdout goes to stderr, since the demo's own result is the table at the end."""
    say(f"\n{what}\n$ nlprobe {verb} {shlex.join(arguments)}")
    with contextlib.redirect_stdout(sys.stderr):
        command.main(arguments, prog_name=f"nlprobe {verb}", standalone_mode=False)
