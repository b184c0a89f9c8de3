"""`nlprobe viz emergence`: how query-independence arose in a training."""

import fnmatch
from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import click
import pandas as pd

from nlprobe.commands.figures import Target, figure_options
from nlprobe.commands.options import config_option, force_option, format_option
from nlprobe.commands.report import result, terminal_width, wrote
from nlprobe.emergence import EMERGENCE, read_emergence
from nlprobe.errors import ConfigError, DataError
from nlprobe.plots import draw_emergence, emergence_data, save_figure
from nlprobe.suggestions import did_you_mean
from nlprobe.tables import Cell, Column, Row, Table


@click.command("emergence")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--label", "labels", multiple=True, help="What a run is called in the figure; once for each RUN.")
@click.option("--site", "sites", multiple=True, help="Sites by name or glob; all by default.")
@click.option("--overlay", is_flag=True, help="A panel for each number, and the runs as lines in it.")
@figure_options
@format_option()
@config_option
@force_option
def emergence(
    runs: tuple[Path, ...],
    labels: tuple[str, ...],
    sites: tuple[str, ...],
    overlay: bool,
    out: Path,
    formats: tuple[str, ...],
    format: str,
    force: bool,
) -> None:
    """Draw how the distances moved while a network was trained.

    RUN is the folder of a run that was trained with --probe-every, or its emergence.csv. Over the iterations: the six
    distances above; entropy, effective share of keys, shared part of the maps and error of the mean map below; bands
    are 95 % intervals over the images. A pair of panels for each run and site. The figure is written as PNG, PDF and
    SVG, its data as CSV beside it; the first and the last values go to stdout.

    \b
    Examples:
      nlprobe train miniature-imagenet/resnet-nl --data data/imagenet --out runs/nl --probe-every 25
      nlprobe viz emergence runs/nl --out emergence
      nlprobe viz emergence runs/nl runs/gaussian --label EG --label Gaussian --overlay --out both.pdf
    """
    target = Target.of(out, formats)
    paths = [run / EMERGENCE if run.is_dir() else run for run in runs]
    if target.path("csv").resolve() in [path.resolve() for path in paths]:
        raise ConfigError(
            f"`{target.path('csv')}` holds the records, and the figure's data would take its place",
            "choose another --out, such as " + str(target.stem.with_name("figure")),
        )
    target.refuse_existing(("csv",), force=force)
    names = _names(runs, labels)
    frames = {name: _read(run, path, sites) for name, run, path in zip(names, runs, paths, strict=True)}
    data = emergence_data(frames)
    figure = draw_emergence(data, overlay=overlay)
    for path in save_figure(figure, target.stem, formats=target.formats, data=data):
        wrote(path)
    result(_table(frames).render(format, width=terminal_width()))


def _names(runs: tuple[Path, ...], labels: tuple[str, ...]) -> list[str]:
    """What the runs are called.

    Raises:
        ConfigError: too few or too many labels, or two runs of one name.
    """
    if labels and len(labels) != len(runs):
        raise ConfigError(
            f"{len(runs)} runs and {len(labels)} labels", "give --label once for each RUN, in their order"
        )
    folders = [run.resolve() if run.is_dir() else run.resolve().parent for run in runs]
    names = list(labels) or [folder.name for folder in folders]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"two runs are called `{twice[0]}`", "tell them apart by --label, once for each RUN")
    return names


def _read(run: Path, path: Path, sites: tuple[str, ...]) -> pd.DataFrame:
    """The chosen sites of a run's records.

    Raises:
        ConfigError: no site matches.
        DataError: there are no records, or they cannot be read.
    """
    if not path.is_file():
        what = f"holds no `{EMERGENCE}`" if run.is_dir() else "is not there"
        raise DataError(
            f"`{run}` {what}", "give the folder of a run that was trained with `nlprobe train --probe-every STEPS`"
        )
    frame = read_emergence(path)
    known = list(frame["site"].unique())
    for pattern in sites:
        if not fnmatch.filter(known, pattern):
            remedy = did_you_mean(pattern, known, otherwise=f"the sites are {', '.join(known)}")
            raise ConfigError(f"no site of `{run}` is called or matches `{pattern}`", remedy)
    if sites:
        frame = frame[[any(fnmatch.fnmatchcase(site, pattern) for pattern in sites) for site in frame["site"]]]
    if frame.empty:
        raise DataError(f"`{path}` holds no records", "train with --probe-every, at least to the first measurement")
    return frame


def _table(frames: dict[str, pd.DataFrame]) -> Table:
    """The first and the last value of every number."""
    columns = (
        *(Column(name) for name in ("run", "site", "quantity", "measure")),
        *(Column("first_step", head="step", group="first"), Column("first", head="value", group="first")),
        *(Column("last_step", head="step", group="last"), Column("last", head="value", group="last")),
        Column("n", show="data"),
    )
    rows = []
    for name, frame in frames.items():
        for _, own in frame.groupby(["site", "quantity", "measure"], sort=False):
            lines = own.sort_values("step").to_dict("records")
            first, last = lines[0], lines[-1]
            names = [Cell(first[key]) for key in ("site", "quantity", "measure")]
            ends = [cell for one in (first, last) for cell in (Cell(int(one["step"])), _value(one))]
            rows.append(Row((Cell(name), *names, *ends, Cell(int(last["n"])))))
    return Table("The first and the last measurement", columns, tuple(rows))


def _value(line: Mapping[Hashable, Any]) -> Cell:
    text = "0 (by construction)" if line["by_construction"] else None
    return Cell(float(line["mean"]), float(line["low"]), float(line["high"]), text=text)
