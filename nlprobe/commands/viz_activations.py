"""`nlprobe viz activations`: what context blocks add, by class (Figure 6 of the paper)."""

from pathlib import Path

import click

from nlprobe.activations import measure_class_activations, modules_at, transforms
from nlprobe.commands.class_inputs import CHANNELS, class_options, say_readings, shown_to
from nlprobe.commands.figures import Target, figure_options
from nlprobe.commands.options import (
    Chosen,
    batch_size_option,
    config_option,
    device_option,
    force_option,
    format_option,
    limit_option,
    network_options,
    resolve_device,
    seed_option,
    workers_option,
)
from nlprobe.commands.report import result, terminal_width, wrote
from nlprobe.commands.sources import read_networks
from nlprobe.data.labelled import LabelledImages
from nlprobe.errors import ConfigError
from nlprobe.files import atomic_path
from nlprobe.plots import activation_data, draw_activations, save_figure
from nlprobe.tables import activation_table


@click.command("activations")
@network_options(without=("adapters",))
@class_options
@click.option(
    "--site",
    "sites",
    multiple=True,
    help="Context blocks by name or glob; all by default.",
)
@click.option(
    "--at", "patterns", multiple=True, metavar="MODULE", help="Modules by path or glob in place of them; repeatable."
)
@click.option(
    "--class",
    "names",
    multiple=True,
    metavar="NAME",
    help="A class to draw; repeatable. By default four, spread evenly.",
)
@click.option(
    "--channels", type=click.IntRange(min=2), default=50, show_default=True, help="Channels to draw, spread evenly."
)
@figure_options
@format_option()
@limit_option
@batch_size_option(32)
@workers_option
@device_option
@seed_option
@config_option
@force_option
def activations(
    chosen: Chosen,
    data: Path,
    split: str,
    channels_axis: str,
    sites: tuple[str, ...],
    patterns: tuple[str, ...],
    names: tuple[str, ...],
    channels: int,
    out: Path,
    formats: tuple[str, ...],
    format: str,
    limit: int | None,
    batch_size: int,
    workers: int,
    device: str,
    seed: int,
    force: bool,
) -> None:
    """Draw what context blocks put into the features, by class and channel (Figure 6 of the paper).

    Of GC and SNL blocks the output of the transform, which is added to every position; of squeeze-and-excitation the
    gate, which scales it. A panel for each block, a line for each class. Two numbers say how far it depends on
    the class: how far class means lie apart beside their size (spread), and the part of the variation over images that
    lies between classes (share).

    One pass over the images, without keeping activations. The figure is written as PNG, PDF and SVG; beside it the
    lines as CSV, all class means as NPZ, and the numbers as _numbers.csv, which also go to stdout.

    \b
    Examples:
      nlprobe viz activations --ckpt runs/gc-all --data imagenet --out figure6
      nlprobe viz activations --ckpt runs/gc-all --data imagenet --site 'layer2.3*' --site 'layer3.5*'
        --site 'layer4.*' --class n01443537 --class n02110958 --class n04552348 --class n09246464 --out figure6
    """
    where = resolve_device(device)
    if sites and patterns:
        raise ConfigError("`--site` and `--at` both say what is read", "give one of them")
    target = Target.of(out, formats)
    numbers = target.beside("_numbers.csv")
    target.refuse_existing(("csv", "npz"), force=force, others=(numbers,))
    networks = read_networks(chosen, seed)
    images = LabelledImages.open(data, "train" if split == "train" else "val", limit)
    drawn = images.chosen(names)
    readings = {
        one.label: modules_at(one.model, patterns) if patterns else transforms(one.model, sites) for one in networks
    }
    summaries = []
    for one in networks:
        say_readings(one, readings[one.label])
        summaries += measure_class_activations(
            one.model,
            readings[one.label],
            shown_to(one, images, batch_size, workers),
            images.labels,
            len(images.classes),
            drawn,
            label=one.label,
            device=where,
            channels_last=CHANNELS[channels_axis],
            seed=seed,
        )
    table = activation_table(summaries, f"Activations by class on the {split} images of {data.resolve().name}")
    lines = activation_data(summaries, images.classes, channels)
    arrays = {f"means_{at}": one.means for at, one in enumerate(summaries)}
    arrays |= {f"shares_{at}": one.shares for at, one in enumerate(summaries)}
    figure = draw_activations(summaries, images.classes, channels)
    for path in save_figure(figure, target.stem, formats=target.formats, data=lines, arrays=arrays):
        wrote(path)
    with atomic_path(numbers) as temporary:
        temporary.write_text(table.render("csv"), encoding="utf-8")
    wrote(numbers)
    result(table.render(format, width=terminal_width()))
