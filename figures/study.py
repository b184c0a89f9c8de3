"""What the studies of labelled images share: flags, networks, images, and how an error is told."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from tqdm import tqdm

from nlprobe.checkpoints import Checkpoint, read_checkpoint
from nlprobe.data import Batches, Preprocessing
from nlprobe.data.labelled import LabelledImages
from nlprobe.errors import CheckpointError, NlprobeError
from nlprobe.files import atomic_path
from nlprobe.measuring import Shown
from nlprobe.plots import save_figure
from nlprobe.tables import Table

Function = TypeVar("Function", bound=Callable[..., Any])

OUT = Path(__file__).with_name("out")

_FLAGS = (
    click.option("--data", required=True, type=click.Path(path_type=Path), help="ImageNet, or any class folders."),
    click.option("--limit", type=click.IntRange(min=1), help="Use N images only, spread evenly over the data."),
    click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True),
    click.option("--device", default="cpu", show_default=True),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap."),
    click.option(
        "--out", type=click.Path(file_okay=False, path_type=Path), default=OUT, show_default=True, help="A folder."
    ),
)


def study_flags(command: Function) -> Function:
    """`--data`, `--limit`, `--batch-size`, `--device`, `--seed`, `--out`."""
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command


def run(command: click.Command) -> None:
    """Run a study; an error that nlprobe raises on purpose is told in two lines and ends with its exit code."""
    try:
        command()
    except NlprobeError as error:
        click.echo(f"error: {error.cause}", err=True)
        if error.remedy:
            click.echo(f"hint: {error.remedy}", err=True)
        sys.exit(error.exit_code)


def shown_to(checkpoint: Checkpoint, images: LabelledImages, batch_size: int, label: str) -> Iterator[Shown]:
    """One pass over the images, preprocessed as the checkpoint says.

    Raises:
        CheckpointError: it does not say.
    """
    settings = checkpoint.metadata.get("preprocessing")
    if not settings:
        raise CheckpointError(f"`{checkpoint.path}` does not say how its images are preprocessed")
    transform = Preprocessing.from_dict(settings).transform()
    for batch in tqdm(Batches(images.data, transform, batch_size), desc=label, leave=False, disable=None):
        yield Shown(batch.images, batch.ids)


def read_networks(paths: Sequence[Path], kind: str) -> dict[str, Checkpoint]:
    """Checkpoints by name: `kind`, and with a number where there are several."""
    names = [kind] if len(paths) == 1 else [f"{kind} {number}" for number in range(1, len(paths) + 1)]
    return {name: read_checkpoint(path) for name, path in zip(names, paths, strict=True)}


def write(out: Path, name: str, tables: dict[str, Table], **figure: Any) -> None:
    """Write a figure with its data, and tables as CSV and LaTeX beside it: `NAME_numbers.csv` and so on."""
    written = save_figure(figure.pop("figure"), out / name, **figure)
    for kind, table in tables.items():
        for ending in ("csv", "tex"):
            path = out / f"{name}_{kind}.{ending}"
            with atomic_path(path) as temporary:
                temporary.write_text(table.render(ending), encoding="utf-8")
            written.append(path)
    for path in written:
        click.echo(f"wrote {path}", err=True)
