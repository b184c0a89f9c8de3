"""The probe: a context in which a model's attention is measured while it runs."""

import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.errors import CaptureError, ConfigError
from nlprobe.probe.adapters import ADAPTERS, Adapter, Capture, Deliver, PairwiseCapture
from nlprobe.probe.audit import SiteAudit, check
from nlprobe.probe.batches import Batch, RecordTable, SiteBatch
from nlprobe.probe.discovery import Discovery, FunctionalAttention, functional_adapter, shielded
from nlprobe.probe.energy import MomentTable
from nlprobe.probe.measure import measure
from nlprobe.probe.measurement import Precision, Wanted, refuse_unknown
from nlprobe.probe.naming import Naming, Objects, Size, Upcoming
from nlprobe.probe.padding import Padding, Placing, place
from nlprobe.probe.positions import ImageBatch, prefix_tokens
from nlprobe.probe.reader import Reader, Seen
from nlprobe.probe.selections import Rectangle
from nlprobe.probe.sites import Site, SiteSelection, compiled, known_sites, select, site_name
from nlprobe.probe.watch import Watch
from nlprobe.stats import METRICS
from nlprobe.stats.records import QUANTITIES, SPACE_TIME


class Probe:
    """Measures the sites of a model during its forward calls; made by `nlprobe.probe`.

    The hooks reduce every captured tensor to a few numbers per image inside the forward pass; no captured tensor
    outlives the call of its block. On leaving the context every hook is gone, whatever happened. The model computes
    what it would have computed without the probe.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: SiteSelection = None,
        *,
        wanted: Wanted,
        prefix: int | None = None,
        adapters: Sequence[Adapter] = (),
        readers: Sequence[Reader] = (),
    ) -> None:
        refuse_unknown(wanted, (*METRICS, SPACE_TIME))
        self._wanted = replace(wanted, quantities=tuple(name for name in QUANTITIES if name in wanted.quantities))
        self._selection, self._prefix, self._readers = sites, prefix, tuple(readers)
        known = known_sites(model, (*adapters, *ADAPTERS), prefix)
        within = {id(part) for site in known for part in site.module.modules()}
        elsewhere = [path for path, module in model.named_modules() if id(module) not in within]
        self._known = known
        self.sites: list[Site] = list(select(known, sites, elsewhere))
        self._model = model
        self._watch = Watch()
        self._discovery: Discovery | None = None
        self._searched = False
        self._batch = ImageBatch()
        self._eagerly = ExitStack()
        self._handles: list[RemovableHandle] = []
        self._audits = {site.name: SiteAudit(site.name) for site in self.sites}
        self._moments = MomentTable()
        self._table = RecordTable()
        self._open: dict[str, SiteBatch] | None = None
        self._naming = Naming()
        self._called = False
        self._audited: set[tuple[str, int]] = set()
        self._checked: dict[str, SiteAudit] = {}

    def __enter__(self) -> "Probe":
        if self._handles:
            raise ConfigError("this probe is already in use", "make one probe for each `with`")
        try:
            if compiled(self._model) or "torch._dynamo" in sys.modules:
                # compiled code calls no hooks; under this stance torch runs what it was compiled from
                self._eagerly.enter_context(torch.compiler.set_stance("force_eager"))
            for module in self._model.modules():
                if isinstance(module, nn.TransformerEncoder):
                    # watched from its start, it does not turn padded batches into nested tensors
                    self._handles += shielded(module, self._watch)
            for site in self.sites:
                self._handles += site.adapter.attach(site.module, self._receiver(site), self._watch)
            if not self._searched:
                self._discovery = Discovery(self._model, self._known, self._watch, self._discovered)
            self._handles.append(self._model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True))
            self._handles.append(self._model.register_forward_hook(self._end))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        if kind is None and not self._called:
            raise CaptureError(
                f"the model (`{type(self._model).__name__}`) was never called inside the probe",
                "call the very module that was given to `nlprobe.probe`",
            )
        return False

    def images(
        self,
        ids: Sequence[object],
        views: Sequence[int] | None = None,
        *,
        sizes: Sequence[Size] | None = None,
        canvas: Size | None = None,
        objects: Sequence[Objects] | None = None,
    ) -> AbstractContextManager[None]:
        """Name the images of the forward calls inside the block, and say which part of each is picture.

        With `sizes`, each image of a batch that is padded has records over all positions and over those that lie in its
        picture (`positions` is "valid"): a cell (y, x) of a site's h'×w' grid does where its centre does,
        (y + ½)·H/h' < h and (x + ½)·W/w' < w (`nlprobe.stats.grids.valid_cells`). Queries in the padding are left
        out, keys never: ω_i is the row that the model used. `key` is over the keys in the picture. `padding_mass` is
        the mean over the queries of the attention on padded keys.

        Args:
            ids: One name for each image, in the order of the batch; several calls may share them out.
            views: The crop or clip that each is; 0 by default. An image whose id comes with several views is one image.
            sizes: Height and width in pixels of each picture within its tensor, which it fills from the top left.
            canvas: Height and width of the tensors that `sizes` are measured in, where the model is given something
                else than pictures; by default those of its input.
            objects: What each picture shows, for readers that ask for it.

        Raises:
            ConfigError: the calls inside held another number of images, or pictures of other sizes.
        """
        return self._naming.images(ids, views, sizes, canvas, objects)

    def frame(self) -> pd.DataFrame:
        """The records: one line for each image, site, call and quantity (`nlprobe.stats.records`)."""
        return self._table.frame()

    def audit(self) -> list[SiteAudit]:
        """For every site: calls expected and seen, dtype, recomputation errors, and what was not counted."""
        return list(self._audits.values())

    def energy(self) -> dict[str, dict[str, float]]:
        """By site, the shares of the output's energy over the images seen: constant, context, pairwise_part."""
        return self._moments.shares()

    def centres(self) -> dict[str, dict[str, Tensor]]:
        """By site and quantity (input, key, query, output), the mean row over the images seen.

        Given to a second probe as `centres`, it measures the distances with that mean removed (`centred_dist`).
        """
        return self._moments.means()

    def state(self) -> dict[str, object]:
        """Everything measured so far, as plain values and tensors that `torch.load(weights_only=True)` reads."""
        return {
            "records": self._table.state(),
            "moments": self._moments.state(),
            "audits": {name: asdict(audit) for name, audit in self._audits.items()},
            "numbered": self._naming.numbered,
            "readers": [reader.state() for reader in self._readers],
        }

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Take in what another probe of the same sites gave as its `state`, as if its forward calls came next here."""
        device = next((parameter.device for parameter in self._model.parameters()), torch.device("cpu"))
        paths = {site_name(path): path for path, _ in self._model.named_modules()}
        for name, audit in state["audits"].items():
            if name not in self._audits:
                self._add_found(paths[name], self._model.get_submodule(paths[name]))
            self._audits.setdefault(name, SiteAudit(name)).absorb(SiteAudit(**audit))
        self._moments.absorb(state["moments"], device)
        self._naming.numbered += state["numbered"]
        self._table.absorb(state["records"])
        for reader, read in zip(self._readers, state["readers"], strict=True):
            reader.absorb(read)
        self._called = True

    def take(self) -> dict[str, object]:
        """The `state`, for another probe to `absorb`; this one then is as if it had measured nothing."""
        state = self.state()
        self._moments, self._table, self._naming.numbered = MomentTable(), RecordTable(), 0
        self._audits = {name: SiteAudit(name) for name in self._audits}
        for reader in self._readers:
            reader.clear()
        self._called = True
        return state

    def beside(self, model: nn.Module) -> "Probe":
        """A new probe of another model with the quantities and precision of this one."""
        return Probe(model, wanted=replace(self._wanted, centres={}, rectangle=None))

    def close(self) -> None:
        """Take every hook off; leaving the context does the same."""
        self._remove()
        self._open = None
        self._naming.close()

    def upcoming(self, count: int) -> Upcoming:
        """The images of the forward call under way, which holds `count` of them, in the pixels of its input."""
        found = self._naming.upcoming(count)
        size = self._batch.size[-2:]
        return replace(found, canvas=found.canvas or (size[0], size[1])) if found.sizes and size else found

    def _discovered(self, path: str, module: nn.Module) -> Deliver | None:
        """What takes the captures of a site that no adapter knew; None where it was not chosen."""
        site = self._add_found(path, module)
        if site not in self.sites:
            return None
        self._audits.setdefault(site.name, SiteAudit(site.name))
        return self._receiver(site)

    def _add_found(self, path: str, module: nn.Module) -> Site:
        for site in self._known:
            if site.name == site_name(path):
                return site
        adapter = functional_adapter()
        tokens = prefix_tokens(self._model, path) if self._prefix is None else self._prefix
        site = Site(site_name(path), module, adapter, *adapter.describe(module), tokens)
        self._known.append(site)
        self.sites = list(select(self._known, self._selection, [path for path, _ in self._model.named_modules()]))
        return site

    def _end_of_search(self) -> None:
        """After the first forward call: keep the hooks of what was found, and be as strict with it as with the rest."""
        assert self._discovery is not None
        self._discovery.close()
        self._discovery, self._searched = None, True
        if not self._known:
            raise CaptureError(
                f"no attention was seen in a forward call of `{type(self._model).__name__}`",
                "if its attention runs in a custom kernel (flash-attn, xformers), switch that to "
                "`scaled_dot_product_attention`; LIMITATIONS.md lists what can be seen",
            )
        self.sites = list(select(self._known, self._selection))
        for site in self.sites:
            if isinstance(site.adapter, FunctionalAttention):
                self._handles += site.adapter.attach(site.module, self._receiver(site), self._watch)

    def _receiver(self, site: Site) -> Deliver:
        def receive(capture: Capture) -> None:
            if self._open is None:
                raise CaptureError(
                    f"`{site.name}` ran outside of a forward call of the probed model",
                    "call the module that was given to `nlprobe.probe`, or probe the part that you call",
                )
            audit = self._audits[site.name]
            images = self._images(capture, site)
            placed = self._placed(capture, site)
            placing = self._placing(placed, site, images, assumed=placed is not capture)
            capture = placed
            with torch.autocast(capture.device.type, enabled=False):
                batch = self._open.setdefault(site.name, SiteBatch(images))
                use = (site.name, len(batch.calls))
                if use not in self._audited:
                    self._check(audit, capture, placing)
                    self._audited.add(use)
                audit.calls += 1
                self._take(site, capture, batch, placing.padding)

        return receive

    def _check(self, audit: SiteAudit, capture: Capture, placing: Placing) -> None:
        """Hold a capture against what the block computed; the audit keeps what the first forward call came to."""
        found = self._checked.setdefault(audit.site, SiteAudit(audit.site))
        try:
            check(found, capture)
        except CaptureError:
            audit.describe(found)
            raise
        found.padding = placing.how
        found.not_counted += [placing.missing] if placing.missing else []

    def _placing(self, capture: Capture, site: Site, images: int, *, assumed: bool) -> Placing:
        """What is known of the padding of a capture; nothing where nobody gave the pictures' sizes."""
        upcoming = self._naming.upcoming(images)
        if upcoming.sizes is None:
            return Placing()
        return place(capture, upcoming, self._batch.size, site.prefix, assumed=assumed)

    def _images(self, capture: Capture, site: Site) -> int:
        """How many images the sets of a capture belong to."""
        count, sets = self._batch.count, capture.sets
        if not isinstance(capture, PairwiseCapture):
            return sets
        if capture.windows:
            if count is None or sets % count:
                raise CaptureError(
                    f"`{site.name}` has {sets} windows, which are no multiple of the {count} images of the batch",
                    "pass the images as the first tensor of the model's forward call",
                )
            return count
        if count is None or sets % count or sets == count:
            return sets
        functional, pictures = site.block == "functional", bool(self._batch.size)
        if pictures and capture.x is not None and not functional:
            return count  # the module was given several sets of positions for each picture or clip, as MobileViT's are
        if pictures or functional:
            raise CaptureError(
                f"`{site.name}` computes {sets} sets for {count} images: heads, windows or frames?",
                f"describe it: `adapters=[nlprobe.AttentionModule('name', ({type(site.module).__name__},), heads=..., "
                "windows=...)]`",
            )
        return sets

    def _take(self, site: Site, capture: Capture, batch: SiteBatch, padding: Padding | None) -> None:
        """Reduce a capture to numbers; prefix tokens lie in the set of the whole image, not in windows of it."""
        prefix = site.prefix if capture.sets == batch.images else 0
        measurements, moments = measure(
            capture, self._wanted, site=site.name, prefix=prefix, images=batch.images, padding=padding
        )
        batch.calls.append(measurements)
        batch.moments.append(moments)
        for reader in self._readers:
            reader.read(Seen(site.name, capture, self.upcoming(batch.images), padding, prefix))

    def _placed(self, capture: Capture, site: Site) -> Capture:
        """With the grids of queries and keys, where the adapter left them open."""
        if not isinstance(capture, PairwiseCapture) or capture.query_grid:
            return capture
        grids = [self._batch.grid(count - site.prefix) for count in (capture.n_queries, capture.n_keys)]
        return replace(capture, query_grid=grids[0], key_grid=grids[1])

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._open, self._checked = {}, {}
        self._batch = ImageBatch.of(args, kwargs)

    def _end(self, *_: object) -> None:
        assert self._open is not None
        sites, self._open = self._open, None
        if self._discovery is not None:
            self._end_of_search()
        for site in self.sites:
            audit = self._audits[site.name]
            audit.expected_calls += 1
            if site.name not in sites:
                raise CaptureError(
                    f"`{site.name}` did not run in a forward call of the model",
                    "if it is not used in this mode, choose the other sites with `sites=` (--site)",
                )
        sizes = {site.images for site in sites.values()}
        if len(sizes) > 1:
            raise CaptureError(
                f"the sites of one forward call saw batches of different sizes: {sorted(sizes)}",
                "probe sites with one row of the batch for each image only",
            )
        for name, found in self._checked.items():
            self._audits[name].describe(found)
        shown = self._naming.take(sizes.pop())
        for name, batch in sites.items():
            self._moments.add(name, batch.moments)
            batch.moments.clear()
        self._table.add(Batch(shown.ids, shown.views, sites))
        self._called = True

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._discovery is not None:
            self._discovery.close()
            self._discovery = None
        self._eagerly.close()


def probe(
    model: nn.Module,
    sites: SiteSelection = None,
    *,
    quantities: Collection[str] = QUANTITIES,
    metrics: Collection[str] = (),
    precision: Precision = "float32",
    prefix: int | None = None,
    rectangle: Rectangle | None = None,
    centres: Mapping[str, Mapping[str, Tensor]] | None = None,
    adapters: Sequence[Adapter] = (),
    readers: Sequence[Reader] = (),
) -> Probe:
    """Measure the attention of a model while it runs.

    Inside the returned context every forward call of `model` adds records: for each image, site and head the average
    cosine distance (section 3.2.2)

        avg_dist = 1/N² Σ_i Σ_j (1 − cos(v_i, v_j))/2

    of input x_i, key W_k x_i, query W_q x_i, product q_i·k_j, attention ω_i and output z_i − x_i, with the numbers
    that tell a shared map from a flat one. Sites are the library's own blocks, attention modules of torch, torchvision,
    timm and transformers, and any `scaled_dot_product_attention` or written-out softmax(q kᵀ) v that a forward calls,
    which is found during the first call. Compiled models run uncompiled inside the context. What a site
    computes in the first forward call is recomputed from what was captured and held against what it really computed.

    Args:
        model: The network; it is this module that must be called.
        sites: A glob, a list of names or globs, or a predicate on `Site`; all by default.
        quantities: Which of the six.
        metrics: Further metrics of the maps, of `nlprobe.stats.METRICS`; `space_time` splits the distances of clips
            into those within a frame, between frames and at one place.
        precision: Of the products behind softmax maps: in float32 the distance is within 1e-5 of its value plus 1e-9.
        prefix: How many of the first positions are no places in the image; found out for timm, torchvision and
            transformers.
        rectangle: Ranges of queries and keys whose maps, renormalised over these keys, are measured as well; every
            query must see every key.
        centres: Data-set means from another probe's `centres()`; adds `centred_dist`.
        adapters: Tried before the library's own; `nlprobe.AttentionModule` makes one in a line.
        readers: What else reads the captures, such as `nlprobe.probe.MeanMaps`.

    Returns:
        The probe, to be used as a context manager; afterwards its `frame()`, `audit()` and `energy()`.

    Raises:
        ConfigError: no such site, quantity or metric.
        CaptureError: (inside or on leaving) a site did not run, computes something that cannot be seen, or does not
            compute what was seen.

    Cost: O(N·C) time and memory, for softmax maps O(N·M·d) time in blocks of queries; never an N×M matrix.
    """
    wanted = Wanted(tuple(quantities), tuple(metrics), precision, rectangle, centres or {})
    return Probe(model, sites, wanted=wanted, prefix=prefix, adapters=adapters, readers=readers)
