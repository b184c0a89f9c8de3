"""A network and a stream of images → records, summaries and null models; what `nlprobe stats` and the studies run."""

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from nlprobe.errors import DataError
from nlprobe.files import atomic_path
from nlprobe.probe import InitBlock, Probe, Site, SiteAudit, init_block, probe
from nlprobe.probe.measure import Precision
from nlprobe.probe.sites import SiteSelection
from nlprobe.stats.intervals import Estimate, paired_difference
from nlprobe.stats.records import QUANTITIES
from nlprobe.stats.summary import SiteSummary, mean_over_draws, per_image, summarise

Batches = Callable[[int], Iterable[tuple[Tensor, Sequence[str]]]]
"""A fresh pass over the data from batch number `start` on: preprocessed images (B, C, H, W) with their names."""


SECONDS_BETWEEN_SAVES = 30.0

SHARE_OF_SAVING = 0.05
"""How much of the time saving may take at most."""


class Journal:
    """Keeps an unfinished measurement on disk, so that it can go on after whatever stopped it.

    Args:
        folder: Where the files go; one for each pass.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._due = time.monotonic() + SECONDS_BETWEEN_SAVES

    def restore(self, name: str, probes: Sequence[Probe]) -> int:
        """Let the probes of a pass go on from their saved state; the number of batches that they have seen."""
        path = self._folder / f"{name}.pt"
        if not path.exists():
            return 0
        saved = torch.load(path, weights_only=True, map_location="cpu")
        for one, state in zip(probes, saved["probes"], strict=True):
            one.restore(state)
        return int(saved["batches"])

    def save(self, name: str, probes: Sequence[Probe], batches: int, *, now: bool = False) -> None:
        """Save the probes of a pass if it is time to (or `now`)."""
        started = time.monotonic()
        if started < self._due and not now:
            return
        with atomic_path(self._folder / f"{name}.pt") as temporary:
            torch.save({"batches": batches, "probes": [one.state() for one in probes]}, temporary)
        finished = time.monotonic()
        self._due = finished + max(SECONDS_BETWEEN_SAVES, (finished - started) / SHARE_OF_SAVING)


@dataclass(frozen=True)
class Measured:
    """What was measured of one network, or of one of its null models.

    Attributes:
        label: Name of the checkpoint.
        kind: "trained", "init-block" or "init-all".
        frame: The records, with the columns `model`, `kind` and `draw` in front.
        row: The table row: the mean over sites.
        sites: One summary for each site.
        audit: One entry for each site.
    """

    label: str
    kind: str
    frame: pd.DataFrame
    row: SiteSummary
    sites: tuple[SiteSummary, ...]
    audit: tuple[SiteAudit, ...]


def measure_network(
    model: nn.Module,
    batches: Batches,
    *,
    label: str,
    kind: str = "trained",
    sites: SiteSelection = None,
    quantities: Collection[str] = QUANTITIES,
    precision: Precision = "float32",
    centred: bool = False,
    redraws: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    journal: Journal | None = None,
) -> list[Measured]:
    """Probe a network over a data set.

    Args:
        model: The network; it is put into evaluation mode.
        batches: Gives a pass over the images from a batch on; called twice with `centred`.
        label: Name of the checkpoint in tables.
        kind: "trained" or "init-all".
        sites: Which sites.
        quantities: Which of the six quantities.
        precision: Of the products behind softmax maps.
        centred: Measure the distances with each site's data-set mean removed as well (a second pass).
        redraws: Draws of the null model `init-block`, measured in the same pass; 0 leaves it out.
        seed: Seed of the bootstrap and of the draws.
        device: Where to compute.
        journal: Keeps what is measured, and goes on from what it kept.

    Returns:
        The network's measurements, followed by those of `init-block` where asked for.

    Raises:
        DataError: no image came.
        CaptureError: the audit failed.
    """
    model = model.to(device).eval()
    centres = None
    if centred:
        channels = set(quantities) & {"input", "key", "query", "output"}
        with probe(model, sites, quantities=channels or {"input"}) as first:
            _run(model, [first], batches, device, journal, f"{_file_name(label)}-{kind}-centres")
        centres = first.centres()
    with ExitStack() as stack:
        main = stack.enter_context(probe(model, sites, quantities=quantities, precision=precision, centres=centres))
        null = stack.enter_context(init_block(main, draws=redraws, seed=seed)) if redraws else None
        probes = [main, *(null.probes if null else [])]
        _run(model, probes, batches, device, journal, f"{_file_name(label)}-{kind}")
    measured = [_measured(main, label, kind, seed)]
    if null is not None:
        measured.append(_null_model(main, null, label, seed))
    return measured


def differences(first: Measured, second: Measured, *, seed: int = 0) -> dict[str, Estimate]:
    """By quantity, the paired difference `first − second` of two networks over the images that both have seen."""
    found = {}
    for quantity in QUANTITIES:
        pair = [per_image(measured.frame, quantity) for measured in (first, second)]
        common = pair[0].index.intersection(pair[1].index, sort=False)
        if len(common):
            ours, theirs = (values.loc[common].to_numpy() for values in pair)
            found[quantity] = paired_difference(ours, theirs, seed=seed)
    return found


@torch.no_grad()
def _run(
    model: nn.Module,
    probes: Sequence[Probe],
    batches: Batches,
    device: torch.device | str,
    journal: Journal | None,
    name: str,
) -> None:
    seen = journal.restore(name, probes) if journal else 0
    for images, names in batches(seen):
        with probes[0].images(names):
            model(images.to(device, non_blocking=True))
        seen += 1
        if journal:
            journal.save(name, probes, seen)
    if seen == 0:
        raise DataError("the data hold no image that can be read", "check the folder with `nlprobe data check`")
    if journal:
        journal.save(name, probes, seen, now=True)


def _file_name(label: str) -> str:
    return hashlib.sha256(label.encode()).hexdigest()[:16]


def _measured(probe: Probe, label: str, kind: str, seed: int) -> Measured:
    frame = probe.frame()
    energy = probe.energy()
    sites = tuple(
        summarise(
            frame[frame["site"] == site.name],
            model=label,
            kind=kind,
            block=site.block,
            settings=site.settings,
            energy=energy.get(site.name),
            seed=seed,
        )
        for site in probe.sites
    )
    row = sites[0] if len(sites) == 1 else _row(frame, probe.sites, label, kind, seed)
    return Measured(label, kind, _labelled(frame, label, kind), row, sites, tuple(probe.audit()))


def _null_model(probe: Probe, null: InitBlock, label: str, seed: int) -> Measured:
    kind = "init-block"
    sites: list[SiteSummary] = []
    frames: list[pd.DataFrame] = []
    by_draw: dict[int, list[pd.DataFrame]] = {}
    for site in probe.sites:
        summaries = []
        for draw in null.draws(site.name):
            summaries.append(
                summarise(
                    draw.frame,
                    model=label,
                    kind=kind,
                    block=site.block,
                    settings=site.settings,
                    energy=draw.energy,
                    seed=seed,
                )
            )
            by_draw.setdefault(draw.number, []).append(draw.frame)
            frames.append(_labelled(draw.frame, label, kind, draw.number))
        sites.append(mean_over_draws(summaries))
    rows = [_row(pd.concat(parts), probe.sites, label, kind, seed) for parts in by_draw.values()]
    row = sites[0] if len(sites) == 1 else mean_over_draws(rows)
    return Measured(label, kind, pd.concat(frames, ignore_index=True), row, tuple(sites), ())


def _row(frame: pd.DataFrame, sites: Sequence[Site], label: str, kind: str, seed: int) -> SiteSummary:
    blocks = {site.block for site in sites}
    return summarise(frame, model=label, kind=kind, block=blocks.pop() if len(blocks) == 1 else "several", seed=seed)


def _labelled(frame: pd.DataFrame, label: str, kind: str, draw: int = 0) -> pd.DataFrame:
    labelled = frame.copy()
    labelled.insert(0, "model", label)
    labelled.insert(1, "kind", kind)
    labelled.insert(2, "draw", draw)
    return labelled
