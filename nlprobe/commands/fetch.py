"""`nlprobe fetch`: download a published checkpoint and check it."""

import sys
from pathlib import Path

import click
from tqdm import tqdm

from nlprobe.checkpoints import Entry, published
from nlprobe.checkpoints.download import download
from nlprobe.commands.options import dry_run_option, force_option
from nlprobe.commands.report import result, say
from nlprobe.errors import ConfigError


@click.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    show_default="this folder",
    help="Where files go.",
)
@dry_run_option
@force_option
def command(names: tuple[str, ...], out: Path, dry_run: bool, force: bool) -> None:
    """Download published checkpoints and check their hashes.

    This is the one command of nlprobe that goes to the network by itself, to the addresses that `nlprobe zoo
    --published` shows and nowhere else; others do so only where --download or --pretrained asks for it. An interrupted
    download goes on where it stopped when the command is
    given again. The paths of the files go to stdout.

    \b
    Examples:
      nlprobe fetch nonlocal_r50-d8_512x1024_40k_cityscapes
      nlprobe stats --ckpt "$(nlprobe fetch gcnet_r50-d8_512x1024_40k_cityscapes)" --data photos
    """
    found = [published(name) for name in names]
    for entry in found:
        _refuse_indirect(entry)
    for entry in found:
        path = out / entry.file_name
        if dry_run:
            result(f"{entry.url} -> {path}")
            continue
        if entry.flaw:
            say(f"{entry.name}: FLAWED: {entry.flaw}")
        if path.exists() and not force:
            say(f"{entry.name}: {path} is there already; --force fetches it again")
        else:
            say(f"{entry.name}: from {entry.url}")
            _download(entry, path)
            checked = f"its SHA-256 begins with {entry.sha256}" if entry.sha256 else "no published hash to check it by"
            say(f"{entry.name}: {checked}")
        result(str(path))


def _download(entry: Entry, path: Path) -> None:
    with tqdm(
        desc=entry.file_name, unit="B", unit_scale=True, file=sys.stderr, leave=False, disable=not sys.stderr.isatty()
    ) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        download(entry.url, path, entry.sha256, show)


def _refuse_indirect(entry: Entry) -> None:
    """Addresses that only a browser understands."""
    if not entry.file_name:
        raise ConfigError(
            f"`{entry.name}` is published on a page that only a browser can open: {entry.url}",
            f"save the file from there; `nlprobe inspect FILE --set like={entry.name}` reads it",
        )
