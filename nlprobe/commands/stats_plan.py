"""What `nlprobe stats` would do: sites with their sizes and memory, and the files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from nlprobe.commands.inputs import Feed
from nlprobe.commands.sizes import SizedSite, sized_sites
from nlprobe.commands.sources import Named
from nlprobe.probe.adapters import Adapter
from nlprobe.results import EXTENSIONS


def plan(
    networks: Sequence[Named],
    feeds: Mapping[str, Feed],
    sites: Sequence[str],
    out: Path | None,
    device: torch.device,
    adapters: Sequence[Adapter],
    further: Sequence[str] = (),
    further_files: Sequence[str] = (),
) -> str:
    """The measurement in a few lines.

    Args:
        networks: What is measured.
        feeds: What each network is shown, by its label.
        sites: Which sites.
        out: Where the files would go.
        device: Where it would be computed.
        adapters: Tried before the library's own.
        further: What else would be done, in lines.
        further_files: What else would be written.
    """
    lines = []
    for one in networks:
        found = feeds[one.label]
        lines.append(f"{one.label}: {found.plan()}")
        lines += [
            f"  {_size(sized, found.together)}"
            for sized in sized_sites(one.model, found.example(), sites, device, adapters)
        ]
    lines += further
    files = ["run.toml", "records.csv", *(f"table.{end}" for end in EXTENSIONS), "distances.*", *further_files]
    files += ["results.json"]
    lines.append(f"would write {', '.join(files)} into {out}" if out else "would write nothing (no --out)")
    return "\n".join(lines)


def _size(sized: SizedSite, images: int) -> str:
    """A site in a line, with the memory that its input takes for so many images."""
    parts = [sized.site.block, f"{sized.n_queries} queries", f"{sized.n_keys} keys"]
    parts += [f"{sized.channels} channels"] if sized.channels else []
    parts += [f"{sized.heads} heads"] if sized.heads > 1 else []
    parts += [f"in each of {sized.groups} windows"] if sized.groups > 1 else []
    memory = ""
    if sized.channels:
        megabytes = images * sized.groups * sized.n_queries * sized.channels * 4 / 2**20
        memory = f"its input takes {megabytes:.1f} MiB a batch, "
    return f"{sized.site.name}: {', '.join(parts)}; {memory}a map is never built"
