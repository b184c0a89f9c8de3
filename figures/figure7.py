"""Figure 7: distributions of the class selectivity index, ResNet-50 beside ResNet-50 with GC in c3 to c5, over c4.

The paper's claim is about training (with GC, channels of deeper blocks become less selective), so it rests on several
trainings: give --baseline and --gc once for each seed, in the same order. Two things are then kept apart: intervals
over images, which belong to one pair of networks, and the range over seeds.

    python -m figures.figure7 --baseline runs/resnet-0 --gc runs/gc-0 --baseline runs/resnet-1 --gc runs/gc-1 \
        --data imagenet
"""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from figures.study import read_networks, run, shown_to, study_flags, write
from nlprobe.activations import measure_selectivity, residual_blocks, with_differences
from nlprobe.data.labelled import LabelledImages
from nlprobe.errors import ConfigError
from nlprobe.plots import draw_selectivity, selectivity_data
from nlprobe.stats.class_summaries import SelectivitySummary
from nlprobe.tables import Cell, Column, Row, Table, selectivity_table

BASELINE, GC = "baseline", "GC"
STAGES = ("c2", "c3", "c4", "c5")


@click.command()
@click.option(
    "--baseline", "baselines", multiple=True, required=True, type=click.Path(path_type=Path), help="One for each seed."
)
@click.option("--gc", "gcs", multiple=True, required=True, type=click.Path(path_type=Path), help="Their twins with GC.")
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), help="c4, as in the paper, by default.")
@study_flags
def command(
    baselines: tuple[Path, ...],
    gcs: tuple[Path, ...],
    stages: tuple[str, ...],
    data: Path,
    limit: int | None,
    batch_size: int,
    device: str,
    seed: int,
    out: Path,
) -> None:
    """Draw Figure 7 and write its numbers: by network, and over seeds."""
    if len(baselines) != len(gcs):
        raise ConfigError(
            f"{len(baselines)} baselines and {len(gcs)} networks with GC", "give one of each for every seed"
        )
    images = LabelledImages.open(data, limit=limit)
    pairs: list[list[SelectivitySummary]] = []
    by_kind = read_networks(baselines, BASELINE), read_networks(gcs, GC)
    for pair in zip(*(networks.items() for networks in by_kind), strict=True):
        measured = [
            measure_selectivity(
                checkpoint.model,
                residual_blocks(checkpoint.model, stages or ("c4",)),
                shown_to(checkpoint, images, batch_size, name),
                images.labels,
                len(images.classes),
                label=name,
                device=device,
                seed=seed,
            )
            for name, checkpoint in pair
        ]
        pairs.append([one for network in with_differences(measured) for one in network])
    summaries = [one for pair in pairs for one in pair]
    groups = {name: kind for kind, networks in zip((BASELINE, GC), by_kind, strict=True) for name in networks}
    numbers = selectivity_table(summaries, "Class selectivity index by network, each with GC less its baseline")
    over_seeds = seed_table(pairs)
    write(
        out,
        "figure7",
        {"numbers": numbers, "seeds": over_seeds},
        figure=draw_selectivity(summaries, groups),
        data=selectivity_data(summaries, images.classes),
    )
    click.echo(over_seeds.render())


def seed_table(pairs: Sequence[Sequence[SelectivitySummary]]) -> Table:
    """For each block the mean index of both kinds of network and their difference: mean and range over seeds.

    Args:
        pairs: For each seed the summaries of the baseline and, with their differences, of the network with GC.
    """
    columns = (Column("module"), Column("baseline"), Column("gc", head="GC"), Column("difference"), Column("seeds"))
    rows = []
    for module in dict.fromkeys(one.module for pair in pairs for one in pair):
        own = [one for pair in pairs for one in pair if one.module == module]
        compared = [one for one in own if one.difference is not None]
        found = (
            [one.mean.mean for one in own if one.difference is None],
            [one.mean.mean for one in compared],
            [one.difference.mean for one in compared if one.difference is not None],
        )
        rows.append(Row((Cell(module), *map(_range, found), Cell(len(pairs)))))
    notes = (
        "Mean over channels of the class selectivity index, mean over seeds.",
        "Ranges: the lowest and the highest of the seeds; they are no intervals over images.",
    )
    return Table("Class selectivity index over trainings", columns, tuple(rows), notes)


def _range(values: Sequence[float]) -> Cell:
    if not values:
        return Cell()
    return Cell(float(np.mean(values)), min(values), max(values)) if len(values) > 1 else Cell(values[0])


if __name__ == "__main__":
    run(command)
