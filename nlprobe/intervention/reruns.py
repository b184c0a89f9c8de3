"""Running an attention block once more with other maps: one class for each way in which blocks compute their A·V."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import ContextBlock, PairwiseAttention
from nlprobe.intervention.products import MapProduct
from nlprobe.probe.adapters import AttentionModule, Call
from nlprobe.probe.sites import Site
from nlprobe.probe.watch import Product, Watch

Replace = Callable[[MapProduct], Tensor]
"""From a product to the A·V that takes its place."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What a block gave.

    Attributes:
        result: What its forward returned.
        output: z − x, one row for each set of positions or image; None where it is not known.
    """

    result: Any
    output: Tensor | None


@runtime_checkable
class Rerun(Protocol):
    """A site whose forward can be run once more, from within a hook on its end."""

    def attach(self) -> list[RemovableHandle]:
        """The hooks that it needs beside."""

    def before(self, given: Arguments, result: Any) -> Outcome:
        """What the untouched forward gave, which has just ended."""

    def again(self, given: Arguments, replace: Replace) -> Outcome:
        """The forward with what `replace` makes of each product."""

    def off(self, given: Arguments, before: Outcome) -> Outcome:
        """The block as if it were not there."""


class OwnProducts:
    """A block of ours: its products are modules, its output is added to x."""

    def __init__(self, site: Site) -> None:
        self.block = site.module
        self._parts = [part for part in self.block.modules() if isinstance(part, PairwiseAttention)]
        self._replace: Replace | None = None

    def attach(self) -> list[RemovableHandle]:
        """Hooks on the products, which do nothing but while the block runs once more."""

        def swap(part: nn.Module, args: tuple[Any, ...], context: Tensor) -> Tensor | None:
            if self._replace is None:
                return None
            assert isinstance(part, PairwiseAttention)
            query, key, value = (tensor.to(context.dtype) for tensor in args)
            product = MapProduct.of_module(part, query, key, value, context)
            return self._replace(product).squeeze(1)

        return [part.register_forward_hook(swap) for part in self._parts]

    def before(self, given: Arguments, result: Any) -> Outcome:
        """The result with z − x."""
        return Outcome(result, difference(result, given[0][0]))

    def again(self, given: Arguments, replace: Replace) -> Outcome:
        """The forward with other A·V."""
        self._replace = replace
        try:
            result = self.block.forward(*given[0], **given[1])
        finally:
            self._replace = None
        return self.before(given, result)

    def off(self, given: Arguments, before: Outcome) -> Outcome:
        """The input, as z = x."""
        return Outcome(given[0][0], _zeros(before.output))


class OneMap(OwnProducts):
    """A block of ours with one map for all queries, or with none: what there is to replace are the map's logits."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._mask = self.block.mask if isinstance(self.block, ContextBlock) else None

    @property
    def has_map(self) -> bool:
        """Whether the block has a map with logits."""
        return self._mask is not None

    def with_logits(self, given: Arguments, replace: Callable[[Tensor], Tensor]) -> Outcome:
        """The forward with other logits (B, N, 1)."""
        assert self._mask is not None
        handle = self._mask.register_forward_hook(lambda _module, _args, logits: replace(logits))
        try:
            result = self.block.forward(*given[0], **given[1])
        finally:
            handle.remove()
        return self.before(given, result)


class SeenProducts:
    """A block whose products are seen as it computes them, fused or written out."""

    def __init__(self, site: Site, watch: Watch) -> None:
        assert isinstance(site.adapter, AttentionModule)
        self.block, self._adapter, self._watch = site.module, site.adapter, watch
        self._calls: list[Call] = []

    def attach(self) -> list[RemovableHandle]:
        """Hooks that watch the untouched forward."""

        def begin(*_: Any) -> None:
            self._calls.append(Call(self._watch.open(self._adapter.watched(self.block))))

        def output(_module: nn.Module, _args: tuple[Any, ...], result: Any) -> None:
            if self._calls:
                self._calls[-1].output = result if isinstance(result, Tensor) else None

        handles = [self.block.register_forward_pre_hook(begin)]
        if self._adapter.output:
            handles.append(self.block.get_submodule(self._adapter.output).register_forward_hook(output))
        return handles

    def before(self, given: Arguments, result: Any) -> Outcome:
        """Its result, and the rows of its output where the adapter knows them."""
        call = self._calls.pop()
        self._watch.close(call.frame)
        return self._outcome(given, result, call)

    def again(self, given: Arguments, replace: Replace) -> Outcome:
        """The forward with other A·V."""

        def replaced(product: Product) -> Tensor:
            capture = self._adapter.capture(self.block, product, None, None, several=True)
            return replace(MapProduct.of_capture(capture)).reshape(product.context.shape)

        with self._watched(replaced) as call:
            result = self.block.forward(*given[0], **given[1])
        return self._outcome(given, result, call)

    def off(self, given: Arguments, before: Outcome) -> Outcome:
        """The input where the block adds its output itself, else an output of zeros."""
        if self._adapter.residual:
            return Outcome(given[0][0], _zeros(before.output))
        if isinstance(before.result, Tensor):
            return Outcome(_zeros(before.result), _zeros(before.output))
        parts = list(before.result)
        first = next(place for place, part in enumerate(parts) if isinstance(part, Tensor))
        parts[first] = _zeros(parts[first])
        return Outcome(type(before.result)(parts), _zeros(before.output))

    @contextmanager
    def _watched(self, replace: Callable[[Product], Tensor]) -> Iterator[Call]:
        call = Call(self._watch.open(self._adapter.watched(self.block), replace))
        self._calls.append(call)
        try:
            yield call
        finally:
            self._calls.remove(call)
            self._watch.close(call.frame)

    def _outcome(self, given: Arguments, result: Any, call: Call) -> Outcome:
        return Outcome(result, self._adapter.ends(self.block, *given, result, call)[1])


def difference(z: Tensor, x: Tensor) -> Tensor:
    """One row of z − x for each image."""
    return (z - x).flatten(1)


def _zeros(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.new_zeros(tensor.shape)
