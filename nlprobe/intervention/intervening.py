"""A context in which the attention of a model's sites is replaced while it runs."""

import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import PairwiseAttention
from nlprobe.errors import CaptureError, ConfigError
from nlprobe.intervention.products import MapProduct
from nlprobe.intervention.replacements import COMPUTED_ANEW, REPLACEMENTS, Predecessors, Where
from nlprobe.intervention.reruns import Arguments, OneMap, Outcome, OwnProducts, Rerun, SeenProducts
from nlprobe.probe import Probe, Site
from nlprobe.probe.adapters import Adapter, AttentionModule
from nlprobe.probe.adapters.recompute import relative_error
from nlprobe.probe.audit import TOLERANCES
from nlprobe.probe.discovery import shielded
from nlprobe.probe.measurement import Wanted
from nlprobe.probe.positions import ImageBatch
from nlprobe.probe.sites import SiteSelection, compiled
from nlprobe.probe.watch import Watch
from nlprobe.suggestions import did_you_mean

INTERVENTIONS = (*REPLACEMENTS, "off")
"""What can be done to the attention of a site, by name."""

UNCHANGED = ("mean", "shuffled", "unary")
"""What leaves a block with one map for all queries as it is, by construction."""


class Intervention:
    """Replaces the maps of a model's sites during its forward calls; made by `nlprobe.intervene`.

    Each site computes as always first, and then once more with the replacement; the model goes on with that. So the
    change of a block's output is measured on the very same input, whatever was changed before it. On leaving the
    context every hook is gone, whatever happened, and the model is as it was; entered again, it goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        sites: SiteSelection = None,
        *,
        heads: Collection[int] | None = None,
        seed: int = 0,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        if kind not in INTERVENTIONS:
            raise ConfigError(f"unknown intervention `{kind}`", did_you_mean(kind, INTERVENTIONS))
        if kind == "off" and heads is not None:
            raise ConfigError("`off` takes a whole block out, and heads were chosen", "leave the heads out")
        self.kind = kind
        self.sites: list[Site] = []
        self._model, self._selection, self._adapters = model, sites, tuple(adapters)
        self._heads = None if heads is None else sorted(set(heads))
        self._seed = seed
        self._watch = Watch()
        self._before = Predecessors()
        self._eagerly = ExitStack()
        self._handles: list[RemovableHandle] = []
        self._surveying = False
        self._verified: set[str] = set()
        self._uses: dict[str, int] = {}
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._changes: dict[str, list[Tensor]] = defaultdict(list)

    def __enter__(self) -> "Intervention":
        if self._handles:
            raise ConfigError("this intervention is already in use", "make one for each `with`")
        if compiled(self._model) or "torch._dynamo" in sys.modules:
            self._eagerly.enter_context(torch.compiler.set_stance("force_eager"))
        self._handles.append(self._model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True))
        self._handles.append(self._model.register_forward_hook(self._end))
        self._hook(self.sites)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._eagerly.close()

    def changes(self) -> dict[str, np.ndarray]:
        """By site, one number for each image so far: ‖y′ − y‖_F / ‖y‖_F, y = z − x on the same input.

        NaN where y is zero, or where it is not known what a block adds to x. For `mean` this is `mean_map_error`.
        """
        return {name: torch.cat(values).double().cpu().numpy() for name, values in self._changes.items()}

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._surveying:
            return
        if not self.sites:
            self._survey(args, kwargs)
        count = ImageBatch.of(args, kwargs).count
        self._before.images = 1 if count is None else count
        self._uses, self._sums = {}, {}

    def _survey(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the sites, and hold what is understood of them against what they compute, in one call beside."""
        found = Probe(self._model, self._selection, wanted=Wanted(quantities=()), adapters=self._adapters)
        self._surveying = True
        try:
            with found, torch.no_grad():
                self._model(*args, **kwargs)
        finally:
            self._surveying = False
        self.sites = found.sites
        self._hook(self.sites)

    def _hook(self, sites: Sequence[Site]) -> None:
        for module in self._model.modules() if sites else ():
            if isinstance(module, nn.TransformerEncoder):
                self._handles += shielded(module, self._watch)
        for site in sites:
            self._attach(site)

    def _attach(self, site: Site) -> None:
        rerun = self._rerun(site)
        self._handles += rerun.attach()

        def end(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
            if self._surveying:
                return None
            if module.training:
                raise ConfigError(f"`{site.name}` is in training mode", "put the model into evaluation mode: `.eval()`")
            given = (args, kwargs)
            before = rerun.before(given, result)
            after = self._replaced(site, rerun, given, before)
            self._note(site, before, after)
            return after.result

        self._handles.append(site.module.register_forward_hook(end, with_kwargs=True))

    def _rerun(self, site: Site) -> Rerun:
        if isinstance(site.adapter, AttentionModule):
            return SeenProducts(site, self._watch)
        if any(isinstance(part, PairwiseAttention) for part in site.module.modules()):
            return OwnProducts(site)
        one_map = OneMap(site)
        if self.kind == "off" or (one_map.has_map and self.kind != "pairwise"):
            return one_map
        raise ConfigError(
            f"`{site.name}` (`{site.block}`) has no map that `{self.kind}` could replace",
            "take `off`, or other sites (--site)",
        )

    def _replaced(self, site: Site, rerun: Rerun, given: Arguments, before: Outcome) -> Outcome:
        if self.kind == "off":
            return rerun.off(given, before)
        if isinstance(rerun, OneMap):
            return self._one_map(site, rerun, given, before)
        replacement = REPLACEMENTS[self.kind]
        first = self._uses.get(site.name, 0)

        def untouched(product: MapProduct) -> Tensor:
            if self.kind in COMPUTED_ANEW and product.query is not None:
                self._compare(site, "A·V computed anew", product.computed(), product.context)
            return product.context

        if site.name not in self._verified:
            self._compare_outcomes(site, rerun.again(given, untouched), before)
            self._verified.add(site.name)

        def replace_maps(product: MapProduct) -> Tensor:
            use = self._uses.get(site.name, 0)
            self._uses[site.name] = use + 1
            new = replacement(product, Where(site.name, use, self._seed, self._before))
            return new if self._heads is None else self._only_heads(site, new, product.context)

        after = rerun.again(given, replace_maps)
        if self._uses.get(site.name, 0) == first:
            raise CaptureError(
                f"`{site.name}` ran without a product whose maps could be replaced", "leave the site out (--site)"
            )
        return after

    def _one_map(self, site: Site, rerun: OneMap, given: Arguments, before: Outcome) -> Outcome:
        if self._heads is not None:
            raise ConfigError(f"`{site.name}` has no heads", "leave the heads out")
        if self.kind in UNCHANGED:
            return before
        if self.kind == "uniform":
            return rerun.with_logits(given, torch.zeros_like)

        def other_image(logits: Tensor) -> Tensor:
            place = (site.name, self._uses.get(site.name, 0))
            self._uses[site.name] = place[1] + 1
            first = self._before.last.get(place, (logits[:1],))[0]
            if first.shape[1:] != logits.shape[1:]:
                raise ConfigError(
                    f"`{site.name}`: two images that follow each other have maps of {first.shape[1]} and "
                    f"{logits.shape[1]} positions",
                    "give images of one size, or another intervention",
                )
            self._before.last[place] = (logits[-1:].clone(), logits[-1:])
            return torch.cat([first, logits[:-1]])

        return rerun.with_logits(given, other_image)

    def _only_heads(self, site: Site, new: Tensor, old: Tensor) -> Tensor:
        assert self._heads is not None
        count = old.shape[1]
        if not self._heads or self._heads[0] < 0 or self._heads[-1] >= count:
            raise ConfigError(f"`{site.name}` has the heads 0 to {count - 1}", "choose heads among these")
        mixed = old.clone()
        mixed[:, self._heads] = new[:, self._heads]
        return mixed

    def _compare_outcomes(self, site: Site, again: Outcome, before: Outcome) -> None:
        found, expected = (
            next(part for part in (result if isinstance(result, tuple | list) else (result,)) if _is_real(part))
            for result in (again.result, before.result)
        )
        self._compare(site, "its result, computed a second time", found, expected)

    def _compare(self, site: Site, what: str, found: Tensor, expected: Tensor) -> None:
        tolerance = TOLERANCES[expected.dtype]
        error = relative_error(found.detach(), expected.detach())
        if not error <= tolerance:
            raise CaptureError(
                f"`{site.name}`: {what} is off by {error:.1e} (at most {tolerance:.0e})",
                "nlprobe cannot replace the maps of this block; leave the site out (--site)",
            )

    def _note(self, site: Site, before: Outcome, after: Outcome) -> None:
        images = self._before.images
        if before.output is None or after.output is None:
            changed = torch.full((images,), torch.nan)
            energy = torch.ones(images)
        else:
            wide = torch.promote_types(before.output.dtype, torch.float32)
            old, new = (rows.detach().to(wide).reshape(images, -1) for rows in (before.output, after.output))
            changed, energy = (new - old).square().sum(1), old.square().sum(1)
        past = self._sums.get(site.name)
        self._sums[site.name] = (changed, energy) if past is None else (past[0] + changed, past[1] + energy)

    def _end(self, *_: object) -> None:
        if self._surveying:
            return
        for site in self.sites:
            if site.name not in self._sums:
                raise CaptureError(
                    f"`{site.name}` did not run in a forward call of the model", "choose the other sites (--site)"
                )
            changed, energy = self._sums[site.name]
            self._changes[site.name].append((changed / energy).sqrt())


def _is_real(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()


def intervene(
    model: nn.Module,
    kind: str,
    sites: SiteSelection = None,
    *,
    heads: Collection[int] | None = None,
    seed: int = 0,
    adapters: Sequence[Adapter] = (),
) -> Intervention:
    """Replace the attention maps of a model while it runs.

    Inside the returned context every forward call of `model` computes with replaced maps at the chosen sites:

    - `mean`: the mean map over queries, for all of them (section 3.2: what a query-independent block could do);
    - `uniform`: 1/|S_i| over the keys that query i may see;
    - `shuffled`: each query has the map of another query of its image;
    - `other-image`: each image has the maps of the image before it, on its own values;
    - `unary`: the map of the mean query; `pairwise`: that of q_i − q̄, both of logits without bias or mask;
    - `off`: the block as if it were not there.

    In the first call the sites are found and audited as by `nlprobe.probe`, and each is run a second time with its own
    maps, which has to give the same again. Extra cost: each site runs twice. No N×M map is built where nothing is added
    to the logits.

    Args:
        model: In evaluation mode; networks with blocks of ours, or any that `nlprobe.probe` can measure.
        kind: Which intervention.
        sites: Which sites, as for `nlprobe.probe`; all by default.
        heads: Which heads; all by default.
        seed: Seed of the order of shuffled queries.
        adapters: Further adapters.

    Raises:
        ConfigError: the intervention is unknown, or not possible at a site, with the reason.
        CaptureError: a site does not compute what is understood of it.
    """
    return Intervention(model, kind, sites, heads=heads, seed=seed, adapters=adapters)
