"""Figure 6: activations of the output of the GC blocks' transforms at different stages, by class.

As in the figure of squeeze-and-excitation that the paper follows: the last block of each stage before the next begins,
and every block of c5, where classes are told apart; fifty channels, four classes and the mean over all. The numbers are
of every GC block.

    python -m figures.figure6 --gc runs/gc-0 --data imagenet
"""

import re
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from figures.study import read_networks, run, shown_to, study_flags, write
from nlprobe.activations import measure_class_activations, transforms
from nlprobe.data.labelled import LabelledImages
from nlprobe.plots import activation_data, draw_activations
from nlprobe.stats.class_summaries import ActivationSummary
from nlprobe.tables import activation_table


@click.command()
@click.option("--gc", required=True, type=click.Path(path_type=Path), help="The network with GC blocks.")
@click.option("--class", "names", multiple=True, help="A class to draw; repeatable. By default four, spread evenly.")
@study_flags
def command(
    gc: Path,
    names: tuple[str, ...],
    data: Path,
    limit: int | None,
    batch_size: int,
    device: str,
    seed: int,
    out: Path,
) -> None:
    """Draw Figure 6 and write its numbers."""
    images = LabelledImages.open(data, limit=limit)
    ((name, checkpoint),) = read_networks([gc], "GC").items()
    summaries = measure_class_activations(
        checkpoint.model,
        transforms(checkpoint.model),
        shown_to(checkpoint, images, batch_size, name),
        images.labels,
        len(images.classes),
        images.chosen(names),
        label=name,
        device=device,
        seed=seed,
    )
    shown = last_of_stages(summaries)
    table = activation_table(summaries, "Activations of the transforms by class")
    write(
        out,
        "figure6",
        {"numbers": table},
        figure=draw_activations(shown, images.classes),
        data=activation_data(shown, images.classes),
        arrays={one.module.replace(":", "."): np.asarray(one.means) for one in summaries},
    )
    click.echo(table.render())


def last_of_stages(summaries: Sequence[ActivationSummary]) -> list[ActivationSummary]:
    """Of each stage the last block, of c5 every one; all of them where the names say nothing of stages."""
    stages = [found[0] if (found := re.search(r"layer\d", one.module)) else one.module for one in summaries]
    return [
        one
        for at, (one, stage) in enumerate(zip(summaries, stages, strict=True))
        if stage == "layer4" or stage not in stages[at + 1 :]
    ]


if __name__ == "__main__":
    run(command)
