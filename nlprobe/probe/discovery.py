"""Finds attention that no adapter knows, by running the model once: functional products inside any module's forward."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.errors import CaptureError
from nlprobe.probe.adapters import Adapter, AttentionModule, Call, Capture, Deliver, PairwiseCapture
from nlprobe.probe.sites import Site, site_name
from nlprobe.probe.watch import Frame, Product, Watch

UNKNOWN = "it is not known where this module adds its attention to x; say so with `nlprobe.AttentionModule`"


@dataclass(frozen=True)
class FunctionalAttention(AttentionModule):
    """Attention that a module's forward computes by functions, in a class that no adapter knows.

    Queries, keys, values, scale and mask are seen; where the attention is added to x is not known, so `output` is
    absent.

    Attributes:
        unseen: Called in place of the error where a call showed no product, while a model is searched: most modules
            have no attention.
    """

    block: str = "functional"
    classes: tuple[type | str, ...] = ()
    heads: str = ""
    unseen: Callable[[nn.Module, Frame], None] | None = None

    def refuse_unseen(self, module: nn.Module, frame: Frame) -> None:
        """As always, but not while searching."""
        if self.unseen is None:
            super().refuse_unseen(module, frame)
        elif not frame.products:
            self.unseen(module, frame)

    def ends(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> tuple[Tensor | None, Tensor | None]:
        """The input, where it has the queries' rows."""
        return super().ends(module, args, kwargs, result, call)[0], None

    def captures(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> list[PairwiseCapture]:
        """As always; maps between channels are refused.

        Raises:
            CaptureError: the map is one from channel to channel.
        """
        source = self.given_source(args, kwargs)
        for product in call.frame.products:
            if source is not None and _between_channels(product, source):
                raise CaptureError(
                    f"`{type(module).__name__}` attends from channel to channel: its maps have no positions",
                    "choose the other sites with `sites=` (--site)",
                )
        return super().captures(module, args, kwargs, result, call)


def _between_channels(product: Product, x: Tensor) -> bool:
    """Whether queries are the channels of x, shared out among the heads, and their vectors run over its positions."""
    if x.dim() not in (3, 4) or product.context.dim() < 3:
        return False
    n = product.context.shape[-2]
    across = product.value.shape[-2] if product.query is None else product.query.shape[-1]
    heads = product.context.shape[-3] if product.context.dim() > 3 else 1
    layouts = [(math.prod(x.shape[1:-1]), x.shape[-1])]
    if x.dim() == 4:
        layouts.append((math.prod(x.shape[2:]), x.shape[1]))
    return any(n != positions == across and n * heads == channels for positions, channels in layouts)


class Discovery:
    """Watches every module outside of the known sites during one forward call of the model.

    Args:
        model: The model.
        sites: Its known sites.
        watch: The probe's watch.
        found: Called with the path and module of each new site; gives what takes its captures.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], watch: Watch, found: Callable[[str, nn.Module], Deliver | None]
    ) -> None:
        self._found = found
        self._deliver: dict[str, Deliver | None] = {}
        self._handles: list[RemovableHandle] = []
        known = {id(part): None for site in sites for part in site.module.modules()}
        for path, module in model.named_modules():
            if id(module) not in known and not _layer(module):
                searcher = FunctionalAttention(unseen=self._refusal(path))
                self._handles += searcher.attach(module, self._receiver(path, module), watch)
        for site in sites:
            if not isinstance(site.adapter, AttentionModule):
                self._handles += shielded(site.module, watch)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _receiver(self, path: str, module: nn.Module) -> Deliver:
        def receive(capture: Capture) -> None:
            deliver = self._delivery(path, module)
            if deliver is not None:
                deliver(capture)

        return receive

    def _refusal(self, path: str) -> Callable[[nn.Module, Frame], None]:
        """Refuses attention whose weights are changed before they are used, where that is a chosen site."""

        def refuse(module: nn.Module, frame: Frame) -> None:
            if frame.chains.changed and self._delivery(path, module) is not None:
                raise CaptureError(
                    f"the maps of `{site_name(path)}` (`{type(module).__name__}`) cannot be measured: its weights go "
                    f"through `{frame.chains.changed[0]}` before they meet the values",
                    "choose the other sites with `sites=` (--site)",
                )

        return refuse

    def _delivery(self, path: str, module: nn.Module) -> Deliver | None:
        if path not in self._deliver:
            self._deliver[path] = self._found(path, module)
        return self._deliver[path]


def _layer(module: nn.Module) -> bool:
    """Whether it is a layer of torch's without parts: what it does to logits and weights belongs to who calls it."""
    return type(module).__module__.startswith("torch.nn.modules.") and next(module.children(), None) is None


def shielded(module: nn.Module, watch: Watch) -> list[RemovableHandle]:
    """Watch a module without taking anything from it: what it computes itself is not noted for its parent either."""
    frames: list[Frame] = []

    def begin(*_: Any) -> None:
        frames.append(watch.open())

    def end(*_: Any) -> None:
        if frames:
            watch.close(frames.pop())

    return [module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)]


def functional_adapter() -> Adapter:
    """What reads a module that a search has found."""
    return FunctionalAttention()
