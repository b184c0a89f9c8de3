"""Adapter for modules that compute softmax(q kᵀ) v themselves, fused or written out, described in a few words."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.errors import CaptureError
from nlprobe.probe.adapters.layout import HIDDEN_BELOW, as_rows, mask_of, sets_and_heads
from nlprobe.probe.adapters.protocol import Deliver, PairwiseCapture
from nlprobe.probe.adapters.recompute import at_least_single, linear, relative_error
from nlprobe.probe.watch import Frame, Product, Watch


@dataclass
class Call:
    """What one forward call of a module has shown; it lives no longer than the call.

    Attributes:
        frame: The attention products in it.
        output: What the output sub-module returned.
    """

    frame: Frame
    output: Tensor | None = None


@dataclass(frozen=True)
class AttentionModule:
    """Says where a class of modules has its input, output, heads and windows.

    Queries, keys, values, scale and mask are seen in the product that its forward computes, fused or written out.

    Attributes:
        block: What the kind of block is called.
        classes: The classes, as types or by qualified name ("timm.layers.attention.Attention"); sub-classes match too.
        source: The forward's argument that holds x, by position or name.
        output: The sub-module whose result is z − x; "" for the module's own result.
        layout: Axes of x and of the output: "b n c", "n b c", "n c", "b h w c" or "b c h w".
        heads: Attribute with the number of heads, for products in which heads and sets share a dimension.
        projection: The sub-module W_o (linear, a 1×1 convolution or the identity) that takes A·V, heads side by side,
            straight to the output; the audit recomputes it. "" where something lies between.
        windows: Whether an image has several sets of positions (windows); rows of x that are zero fill them up, and are
            left out as queries.
        cross: Whether keys and queries come from different inputs.
        key_groups: Attribute with the number of queries' heads that share a head of keys, where the keys come repeated.
        hidden_below: The bias at and under which a key counts as hidden.
        residual: Whether the module adds its output to x itself.
        prefix: How many of the first positions are no places in the image, where the class says it better than the
            model.
        settings: Attributes to show.
        where: A further condition.
    """

    block: str
    classes: tuple[type | str, ...]
    source: int | str = 0
    output: str = ""
    layout: str = "b n c"
    heads: str = "num_heads"
    projection: str = ""
    windows: bool = False
    cross: bool = False
    key_groups: str = ""
    hidden_below: float = HIDDEN_BELOW
    residual: bool = False
    prefix: int | None = None
    settings: tuple[str, ...] = ("num_heads", "scale", "dropout")
    where: Callable[[nn.Module], bool] | None = None

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is of one of the classes."""
        if self.where is not None and not self.where(module):
            return False
        names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
        return any(cls in names if isinstance(cls, str) else isinstance(module, cls) for cls in self.classes)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """Its kind, class and plain settings."""
        plain: dict[str, object] = {"class": type(module).__name__}
        for name in self.settings:
            value = getattr(module, name, None)
            if isinstance(value, bool | int | float | str):
                plain[name] = value
        return self.block, plain

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the module and its output; the products in between are seen by `watch`."""
        calls: list[Call] = []

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(Call(watch.open(self.watched(module))))

        def output(_: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            if calls:
                calls[-1].output = _first_tensor(result)

        def end(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            if not calls:
                return
            call = calls.pop()
            watch.close(call.frame)
            if result is None:  # the forward raised
                return
            self.refuse_unseen(module, call.frame)
            with torch.no_grad():
                for capture in self.captures(module, args, kwargs, result, call):
                    deliver(capture)

        handles = [
            module.register_forward_pre_hook(begin, with_kwargs=True),
            module.register_forward_hook(end, with_kwargs=True, always_call=True),
        ]
        if self.output:
            handles.append(module.get_submodule(self.output).register_forward_hook(output))
        return handles

    def watched(self, module: nn.Module) -> dict[str, Tensor]:
        """Weights of functional linear maps whose input and output this adapter wants to see."""
        return {}

    def refuse_unseen(self, module: nn.Module, frame: Frame) -> None:
        """Raise if a call showed no attention product.

        Raises:
            CaptureError: with what was seen in its place.
        """
        if not frame.products:
            raise CaptureError(
                f"`{type(module).__name__}` ran without an attention product that can be seen: {_instead(frame)}",
                "switch it to `scaled_dot_product_attention` or written-out attention, or leave the site out (--site)",
            )

    def captures(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> list[PairwiseCapture]:
        """One capture for each product of a call; input and output are known where there is one product only."""
        products = call.frame.products
        x, out = self.ends(module, args, kwargs, result, call)
        if len(products) > 1:
            x, out = None, None
        crossed = self.crosses(module, args, kwargs)
        found = [self.capture(module, product, x, out, several=len(products) > 1) for product in products]
        placed = [self.placed(module, self.given_source(args, kwargs), one) for one in found]
        return [replace(one, self_attention=not crossed and one.n_queries == one.n_keys) for one in placed]

    def placed(self, module: nn.Module, source: Tensor | None, capture: PairwiseCapture) -> PairwiseCapture:
        """With the grid that the layout or the module's `window_size` gives its positions; as it is without one."""
        grid: tuple[int, ...] = ()
        if source is not None and source.dim() == 4 and self.layout in ("b h w c", "b c h w"):
            grid = tuple(source.shape[1:3] if self.layout == "b h w c" else source.shape[2:])
        elif self.windows and isinstance(size := getattr(module, "window_size", None), tuple | list):
            grid = tuple(size)
        if math.prod(grid) != capture.n_queries or not grid:
            return capture
        return replace(
            capture, query_grid=grid, key_grid=grid if capture.n_keys == capture.n_queries else (capture.n_keys,)
        )

    def crosses(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the keys of this call come from another input than the queries."""
        return self.cross

    def given_source(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The argument that holds x; None where it is no tensor."""
        if isinstance(self.source, int):
            x = args[self.source] if len(args) > self.source else next(iter(kwargs.values()), None)
        else:
            x = kwargs[self.source] if self.source in kwargs else args[0] if args else None
        return x if isinstance(x, Tensor) else None

    def ends(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> tuple[Tensor | None, Tensor | None]:
        """The rows (s, n, c) of x and of the output, where they are what the adapter says."""
        x = self.given_source(args, kwargs)
        out = call.output if self.output else _first_tensor(result)
        return tuple(
            as_rows(tensor.detach(), self.layout) if isinstance(tensor, Tensor) and tensor.dim() > 1 else None
            for tensor in (x, out)
        )  # type: ignore[return-value]

    def capture(
        self, module: nn.Module, product: Product, x: Tensor | None, out: Tensor | None, *, several: bool = False
    ) -> PairwiseCapture:
        """A product in the form that the probe measures."""
        heads = getattr(module, self.heads, None)
        heads = heads if isinstance(heads, int) else None
        query, key, value, context, given = (
            None if tensor is None else sets_and_heads(tensor, heads)
            for tensor in (product.query, product.key, product.value, product.context, product.given)
        )
        assert value is not None
        assert context is not None
        missing: list[str] = []
        if query is not None and key is not None:
            query, key = _expanded(query, context), _expanded(key, context)
            repeated = getattr(module, self.key_groups, 1) if self.key_groups else 1
            if repeated > 1 and key.shape[1] == query.shape[1]:
                key = key[:, ::repeated]
        if query is None:
            missing.append("key, query and prod: the logits are not a product of queries and keys that can be seen")
        value = _expanded(value, context)
        s, n = context.shape[0], context.shape[2]
        ends = {"input": x, "output": out}
        for name, tensor in ends.items():
            if tensor is None or tensor.shape[:2] != (s, n):
                ends[name] = None
                reason = "the module computes several products" if several else "its rows are not those of the queries"
                missing.append(f"{name}: {reason}")
        captured = PairwiseCapture(
            x=ends["input"],
            output=ends["output"],
            query=query,
            key=key,
            value=value,
            context=context,
            instantiation="embedded_gaussian",
            scale=product.scale,
            query_grid=(),
            key_grid=(),
            projected=True,
            mask=mask_of(product, heads, self.hidden_below),
            given=given,
            windows=self.windows,
            valid=_not_padding(ends["input"]) if self.windows else None,
            dropout=product.dropout,
            dtype=product.dtype,
            residual=self.residual,
            not_counted=tuple(missing),
        )
        return replace(captured, errors=lambda: self.errors(module, captured))

    def errors(self, module: nn.Module, capture: PairwiseCapture) -> dict[str, float]:
        """W_o·A·V + b against the output, where the projection takes A·V straight to it; padding is left out."""
        if not self.projection or capture.output is None:
            return {}
        layer = module.get_submodule(self.projection)
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.Identity):
            raise CaptureError(
                f"the `projection` of `{self.block}` is a `{type(layer).__name__}`, which is no linear map",
                "leave `projection` out where something else lies between A·V and the output",
            )
        expected, found = self.merged(at_least_single(capture.context)), capture.output
        if not isinstance(layer, nn.Identity):
            expected = linear(expected, layer)
        if capture.valid is not None:
            expected, found = expected[capture.valid], found[capture.valid]
        return {"W_o": relative_error(expected, found)}

    def merged(self, context: Tensor) -> Tensor:
        """A·V (s, h, n, dv) with its heads side by side, as the projection takes it: (s, n, h·dv)."""
        return context.transpose(1, 2).flatten(2)


def _not_padding(x: Tensor | None) -> Tensor | None:
    """Windows are filled up with rows of zeros, which nothing else is; None where there are none."""
    if x is None:
        return None
    real = (x != 0).any(-1)
    return None if bool(real.all()) else real


def _expanded(tensor: Tensor, context: Tensor) -> Tensor:
    """Sets of size 1 that stand for all of them, and a leading layout that only broadcasts, written as views."""
    return tensor.expand(context.shape[0], -1, -1, -1) if tensor.shape[0] == 1 != context.shape[0] else tensor


def _first_tensor(result: Any) -> Tensor | None:
    if isinstance(result, Tensor):
        return result
    if isinstance(result, tuple | list):
        return next((item for item in result if isinstance(item, Tensor)), None)
    return None


def _instead(frame: Frame) -> str:
    if frame.refused:
        return f"it uses `{frame.refused}`, whose score function nlprobe cannot read"
    if frame.chains.lost:
        return f"its weights go through `{frame.chains.lost[0]}` before they meet the values"
    return "neither `scaled_dot_product_attention` nor a softmax whose result is multiplied with values was called"
