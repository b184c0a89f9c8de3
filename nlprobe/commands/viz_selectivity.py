"""`nlprobe viz selectivity`: how selective channels are for classes (Figure 7 of the paper)."""

from pathlib import Path

import click

from nlprobe.activations import measure_selectivity, modules_at, residual_blocks, with_differences
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
from nlprobe.models.insertion import STAGES
from nlprobe.plots import draw_selectivity, save_figure, selectivity_data
from nlprobe.tables import selectivity_table


@click.command("selectivity")
@network_options(without=("adapters",))
@class_options
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice(STAGES),
    help="The output of every residual block of this stage; repeatable. c4 by default.",
)
@click.option(
    "--at", "patterns", multiple=True, metavar="MODULE", help="Modules by path or glob in place of a stage; repeatable."
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
def selectivity(
    chosen: Chosen,
    data: Path,
    split: str,
    channels_axis: str,
    stages: tuple[str, ...],
    patterns: tuple[str, ...],
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
    """Draw the distributions of the class selectivity index over channels (Figure 7 of the paper).

    Of each channel, the mean over positions is averaged over the images of each class; the index is (highest class mean
    - mean of all others) / (their sum). It is read at the output of every residual block of a stage, with all that
    stands in the block, or at any modules. A panel for each block, a density for each network.

    One pass over the images, without keeping activations. The figure is written as PNG, PDF and SVG; beside it the
    channels as CSV and the numbers as _numbers.csv, which also go to stdout: means with intervals over images, spread
    over channels, what shuffled labels give, and the differences from the first network on the same images.

    \b
    Examples:
      nlprobe viz selectivity --ckpt runs/baseline --ckpt runs/gc-all --data imagenet --out figure7
      nlprobe viz selectivity --ckpt runs/gc-all --data imagenet --stage c3 --stage c5 --limit 5000 --out deeper
      nlprobe viz selectivity --model timm:resnet50 --weights resnet50.safetensors --data imagenet
        --at 'layer3.*.act2' --out inner
    """
    where = resolve_device(device)
    if stages and patterns:
        raise ConfigError("`--stage` and `--at` both say what is read", "give one of them")
    target = Target.of(out, formats)
    numbers = target.beside("_numbers.csv")
    target.refuse_existing(("csv",), force=force, others=(numbers,))
    networks = read_networks(chosen, seed)
    images = LabelledImages.open(data, "train" if split == "train" else "val", limit)
    readings = {
        one.label: modules_at(one.model, patterns) if patterns else residual_blocks(one.model, stages or ("c4",))
        for one in networks
    }
    found = []
    for one in networks:
        say_readings(one, readings[one.label])
        found.append(
            measure_selectivity(
                one.model,
                readings[one.label],
                shown_to(one, images, batch_size, workers),
                images.labels,
                len(images.classes),
                label=one.label,
                device=where,
                channels_last=CHANNELS[channels_axis],
                seed=seed,
            )
        )
    summaries = [one for network in with_differences(found) for one in network]
    table = selectivity_table(summaries, f"Class selectivity index on the {split} images of {data.resolve().name}")
    channels = selectivity_data(summaries, images.classes)
    for path in save_figure(draw_selectivity(summaries), target.stem, formats=target.formats, data=channels):
        wrote(path)
    with atomic_path(numbers) as temporary:
        temporary.write_text(table.render("csv"), encoding="utf-8")
    wrote(numbers)
    result(table.render(format, width=terminal_width()))
