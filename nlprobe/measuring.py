"""A network and a stream of inputs → records, summaries and null models; what `nlprobe stats` and the studies run."""

import hashlib
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from nlprobe.errors import DataError
from nlprobe.files import atomic_path
from nlprobe.probe import InitBlock, Probe, Reader, Site, SiteAudit, init_block, probe
from nlprobe.probe.adapters import Adapter
from nlprobe.probe.measurement import Precision
from nlprobe.probe.naming import Objects
from nlprobe.probe.sites import SiteSelection
from nlprobe.processes import ALONE, Processes, StoppedError
from nlprobe.stats.intervals import Estimate, paired_difference
from nlprobe.stats.records import QUANTITIES
from nlprobe.stats.summary import SiteSummary, heads_of, mean_over_draws, per_image, summarise

Inputs = Tensor | Mapping[str, Any] | tuple[Any, ...]
"""What one forward call takes: its only argument, arguments by name, or arguments in order."""


class Shown(NamedTuple):
    """What one forward call is shown.

    Attributes:
        inputs: Its arguments.
        ids: The names of its images; none where nothing of a batch can be read.
        sizes: Height and width of each picture within its padded tensor; None where nothing is padded.
        objects: What each picture shows; None where nobody asks.
    """

    inputs: Inputs
    ids: Sequence[str]
    sizes: Sequence[tuple[int, int]] | None = None
    objects: Sequence[Objects] | None = None


Batches = Callable[[int, int], Iterable[Shown | tuple[Inputs, Sequence[str]]]]
"""A fresh pass over every `step`-th batch of the data from number `start` on; a pair is what has no padding."""

Rectangle = tuple[slice, slice]
"""Queries × keys."""

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
            one.absorb(state)
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
        label: Name of the network.
        kind: "trained", "init-block" or "init-all".
        frame: The records, with the columns `model`, `kind` and `draw` in front.
        row: The table row: the mean over sites and heads.
        sites: One summary for each site, the mean over its heads.
        audit: One entry for each site.
        heads: Where asked for, one summary for each head of each site, and one for the head-averaged map.
    """

    label: str
    kind: str
    frame: pd.DataFrame
    row: SiteSummary
    sites: tuple[SiteSummary, ...]
    audit: tuple[SiteAudit, ...]
    heads: tuple[SiteSummary, ...] = ()


def measure_network(
    model: nn.Module,
    batches: Batches,
    *,
    label: str,
    kind: str = "trained",
    sites: SiteSelection = None,
    quantities: Collection[str] = QUANTITIES,
    metrics: Collection[str] = (),
    prefix: int | None = None,
    rectangle: Rectangle | None = None,
    positions: str = "valid",
    by_head: bool = False,
    precision: Precision = "float32",
    centred: bool = False,
    redraws: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    journal: Journal | None = None,
    adapters: Sequence[Adapter] = (),
    readers: Sequence[Reader] = (),
    processes: Processes = ALONE,
) -> list[Measured]:
    """Probe a network over a data set.

    Several processes share out the batches. What they find is put together in the order of the data, so it has the
    same bits for any number of them, if each has as many threads.

    Args:
        model: The network; it is put into evaluation mode.
        batches: Gives a pass over the inputs from a batch on; called twice with `centred`.
        label: Name of the network in tables.
        kind: "trained" or "init-all".
        sites: Which sites.
        quantities: Which of the six quantities.
        metrics: Which further numbers of a map (`nlprobe.stats.records.METRIC_COLUMNS`).
        prefix: How many tokens at the front are no positions of the input; by default what the site says.
        rectangle: Queries and keys to which maps are cut in records of their own.
        positions: The records that are summarised, as for `nlprobe.stats.summary.at_positions`.
        by_head: Also summarise each head of each site, and the head-averaged map.
        precision: Of the products behind softmax maps.
        centred: Measure the distances with each site's data-set mean removed as well (a second pass).
        redraws: Draws of the null model `init-block`, measured in the same pass; 0 leaves it out.
        seed: Seed of the bootstrap and of the draws.
        device: Where to compute.
        journal: Keeps what is measured, and goes on from what it kept.
        adapters: Tried before the library's own, as for `nlprobe.probe`.
        readers: What else reads the captures of the network itself; those of process 0 end up with everything.
        processes: This process among those that measure together; all of them have to call this.

    Returns:
        The network's measurements, followed by those of `init-block` where asked for; in process 0 only.

    Raises:
        DataError: no input came, or the network does not take it.
        CaptureError: the audit failed.
        KeyboardInterrupt: on Ctrl-C; in several processes also on SIGTERM, after the batch in hand, which is kept.
    """
    passes = _Passes(model.to(device).eval(), batches, device, journal, processes)
    view = _View(label, kind, seed, positions, by_head)
    asked: dict[str, Any] = {"metrics": tuple(metrics) or None, "prefix": prefix, "rectangle": rectangle}
    options = {name: value for name, value in asked.items() if value is not None}
    options |= {"quantities": quantities, "precision": precision}

    def means() -> dict[str, dict[str, Tensor]]:
        channels = set(quantities) & {"input", "key", "query", "output"}
        with probe(model, sites, quantities=channels or {"input"}, adapters=adapters) as first:
            passes.run([first], f"{_file_name(label)}-{kind}-centres")
        return passes.of_all(first.centres())

    def measure() -> list[Measured]:
        centres = means() if centred else None
        with ExitStack() as stack:
            main = stack.enter_context(
                probe(model, sites, centres=centres, adapters=adapters, readers=readers, **options)
            )
            null = stack.enter_context(init_block(main, draws=redraws, seed=seed)) if redraws else None
            passes.run([main, *(null.probes if null else [])], f"{_file_name(label)}-{kind}")
        if not processes.leads:
            return []
        redrawn = [_null_model(main, null, replace(view, kind="init-block"))] if null is not None else []
        return [_measured(main, view), *redrawn]

    return processes.together(measure)


def differences(first: Measured, second: Measured, *, seed: int = 0) -> dict[str, Estimate]:
    """By quantity, the paired difference `first − second` of two networks over the images that both have seen."""
    found = {}
    for quantity in QUANTITIES:
        pair = [per_image(measured.frame, quantity, positions=measured.row.positions) for measured in (first, second)]
        common = pair[0].index.intersection(pair[1].index, sort=False)
        if len(common):
            ours, theirs = (values.loc[common].to_numpy() for values in pair)
            found[quantity] = paired_difference(ours, theirs, seed=seed)
    return found


@dataclass(frozen=True)
class _Passes:
    """Runs a network over the data, alone or in several processes; the probes of process 0 end up with everything."""

    model: nn.Module
    batches: Batches
    device: torch.device | str
    journal: Journal | None
    processes: Processes

    @torch.no_grad()
    def run(self, probes: Sequence[Probe], name: str) -> None:
        """One pass, from where the journal of that name left off."""
        processes = self.processes
        journal = self.journal if processes.leads else None
        seen = processes.gather(journal.restore(name, probes) if journal else 0)[0]
        try:
            with closing(processes.in_step(self.batches(seen + processes.rank, processes.count))) as items:
                for item in items:
                    seen += self._round(None if item is None else Shown(*item), probes)
                    if journal:
                        journal.save(name, probes, seen)
        except StoppedError:
            if journal:
                journal.save(name, probes, seen, now=True)
            raise
        if not processes.leads:
            return
        if not any(audit.calls for audit in probes[0].audit()):
            raise DataError(
                "the data hold nothing that can be read", "check them: `nlprobe data check` reads every image"
            )
        if journal:
            journal.save(name, probes, seen, now=True)

    def of_all(self, centres: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """The data-set means of process 0, which are those over all images, on the device of each process."""
        if self.processes.count == 1:
            return centres
        found = self.processes.gather(_moved(centres, "cpu") if self.processes.leads else None)[0]
        moved: dict[str, dict[str, Tensor]] = _moved(found, self.device)
        return moved

    def _round(self, item: Shown | None, probes: Sequence[Probe]) -> int:
        """Show each process its batch, and let process 0 take in what came of them in order; the number of batches."""
        if item is not None and len(item.ids):
            with probes[0].images(item.ids, sizes=item.sizes, objects=item.objects):
                forward(self.model, item.inputs, self.device)
        # Only sums over whole batches travel, and process 0 has the first: so nothing depends on who had which.
        states = [] if self.processes.leads else [one.take() for one in probes]
        found = self.processes.gather_first(None if item is None else states if len(item.ids) else [])
        for part in found:
            for one, state in zip(probes, part or (), strict=False):
                one.absorb(state)
        return sum(part is not None for part in found)


def _file_name(label: str) -> str:
    return hashlib.sha256(label.encode()).hexdigest()[:16]


def forward(model: nn.Module, inputs: Inputs, device: torch.device | str = "cpu") -> None:
    """Call a network on inputs that are moved to a device first.

    Raises:
        DataError: the network refuses them.
    """
    moved = _moved(inputs, device)
    try:
        if isinstance(moved, Tensor):
            model(moved)
        elif isinstance(moved, Mapping):
            model(**moved)
        else:
            model(*moved)
    except (AssertionError, TypeError, ValueError) as error:
        if _raised_here(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"`{type(model).__name__}` does not take the inputs {described(inputs)}: {reason}",
            "give it data and preprocessing of the kind that it was made for",
        ) from error


def described(inputs: Any) -> str:
    """The names and shapes of inputs, for people: `pixel_values (8, 3, 224, 224)`."""
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {described(value)}" for name, value in inputs.items())
    if isinstance(inputs, list | tuple):
        return ", ".join(described(value) for value in inputs)
    return repr(inputs)


def _moved(inputs: Any, device: torch.device | str) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        moved = [_moved(value, device) for value in inputs]
        return tuple(moved) if isinstance(inputs, tuple) else moved
    return inputs


def _raised_here(error: BaseException) -> bool:
    """Whether an error was met in the probe's hooks, and not in the network itself."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(module.startswith(("nlprobe.probe", "nlprobe.stats")) for module in modules)


@dataclass(frozen=True)
class _View:
    """How the records of a network are looked at."""

    label: str
    kind: str
    seed: int
    positions: str
    by_head: bool

    def site(self, frame: pd.DataFrame, site: Site, energy: Mapping[str, float] | None = None) -> SiteSummary:
        """The summary of a site from its records."""
        return self._summary(frame, site.block, site.settings, energy=energy)

    def heads(self, frame: pd.DataFrame, site: Site) -> list[SiteSummary]:
        """The summaries of a site's heads from its records, where they are wanted."""
        heads = heads_of(frame) if self.by_head else []
        return [self._summary(frame, site.block, site.settings, head=head) for head in heads]

    def row(self, frame: pd.DataFrame, sites: Sequence[Site]) -> SiteSummary:
        """The summary of several sites together."""
        blocks = {site.block for site in sites}
        return self._summary(frame, blocks.pop() if len(blocks) == 1 else "several")

    def labelled(self, frame: pd.DataFrame, draw: int = 0) -> pd.DataFrame:
        """The records with the columns `model`, `kind` and `draw` in front."""
        labelled = frame.copy()
        labelled.insert(0, "model", self.label)
        labelled.insert(1, "kind", self.kind)
        labelled.insert(2, "draw", draw)
        return labelled

    def _summary(
        self,
        frame: pd.DataFrame,
        block: str,
        settings: Mapping[str, object] | None = None,
        *,
        energy: Mapping[str, float] | None = None,
        head: str = "",
    ) -> SiteSummary:
        return summarise(
            frame,
            model=self.label,
            kind=self.kind,
            block=block,
            settings=settings,
            energy=energy,
            seed=self.seed,
            positions=self.positions,
            head=head,
        )


def _measured(probe: Probe, view: _View) -> Measured:
    frame = probe.frame()
    energy = probe.energy()
    by_site = {site.name: frame[frame["site"] == site.name] for site in probe.sites}
    sites = tuple(view.site(by_site[site.name], site, energy.get(site.name)) for site in probe.sites)
    heads = tuple(head for site in probe.sites for head in view.heads(by_site[site.name], site))
    row = sites[0] if len(sites) == 1 else view.row(frame, probe.sites)
    return Measured(view.label, view.kind, view.labelled(frame), row, sites, tuple(probe.audit()), heads)


def _null_model(probe: Probe, null: InitBlock, view: _View) -> Measured:
    sites: list[SiteSummary] = []
    heads: list[SiteSummary] = []
    frames: list[pd.DataFrame] = []
    by_draw: dict[int, list[pd.DataFrame]] = {}
    for site in probe.sites:
        draws = null.draws(site.name)
        sites.append(mean_over_draws([view.site(draw.frame, site, draw.energy) for draw in draws]))
        by_head = zip(*(view.heads(draw.frame, site) for draw in draws), strict=True)
        heads += [mean_over_draws(list(same)) for same in by_head]
        for draw in draws:
            by_draw.setdefault(draw.number, []).append(draw.frame)
            frames.append(view.labelled(draw.frame, draw.number))
    rows = [view.row(pd.concat(parts), probe.sites) for parts in by_draw.values()]
    row = sites[0] if len(sites) == 1 else mean_over_draws(rows)
    records = pd.concat(frames, ignore_index=True)
    return Measured(view.label, view.kind, records, row, tuple(sites), (), tuple(heads))
