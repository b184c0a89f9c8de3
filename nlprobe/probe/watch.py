"""Sees the attention products that a module computes, fused or written out; on request, puts others in their place."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nlprobe.probe.chains import Chains, WrittenOut


@dataclass(frozen=True)
class Product:
    """One attention product as the model computed it; leading dimensions as the model has them.

    Attributes:
        query: (..., n, d) as they enter the product; None where the logits come from elsewhere.
        key: (..., m, d).
        value: (..., m, dv).
        scale: Factor on query and key's product.
        biases: What was added to the logits, each broadcastable to (..., n, m); the model's hidden keys included.
        visible: Boolean masks of the same form, False where a key is hidden.
        causal: Whether query i sees keys j ≤ i only.
        given: The logits as they entered the softmax, where they are not such a product.
        context: (..., n, dv), A·V.
        dropout: The probability with which weights were dropped.
        dtype: The precision of the softmax, where it was written out in another than the model's.
    """

    query: Tensor | None
    key: Tensor | None
    value: Tensor
    context: Tensor
    scale: float = 1.0
    biases: tuple[Tensor, ...] = ()
    visible: tuple[Tensor, ...] = ()
    causal: bool = False
    given: Tensor | None = None
    dropout: float = 0.0
    dtype: torch.dtype | None = None


@dataclass(eq=False)
class Frame:
    """What was seen while one module ran; it lives no longer than the module's call.

    Attributes:
        products: The attention products, in their order.
        linear: For each watched weight, what entered and what left the last linear map with it.
        replace: Gives the A·V that the model goes on with in place of a product's own; None leaves them as they are.
    """

    weights: dict[int, str] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    linear: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    chains: Chains = field(default_factory=Chains)
    refused: str = ""
    replace: Callable[[Product], Tensor] | None = None


class Watch(TorchFunctionMode):
    """While a frame is open, every attention product is noted in the innermost open frame.

    A torch function mode: functions are called as they would have been, with the very same arguments, and what they
    give is changed where a frame has a `replace`, and nowhere else. While it is active torch skips the fused encoder
    kernels of `nn.MultiheadAttention` (`_native_multi_head_attention`) and takes the functional path, which computes
    the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frames: list[Frame] = []

    def open(
        self, weights: dict[str, Tensor] | None = None, replace: Callable[[Product], Tensor] | None = None
    ) -> Frame:
        """Begin to watch; linear maps with one of the `weights` are noted by its name, products may be replaced."""
        frame = Frame({id(weight): name for name, weight in (weights or {}).items()}, replace=replace)
        if not self._frames:
            self.__enter__()
        self._frames.append(frame)
        return frame

    def close(self, frame: Frame) -> None:
        """Stop watching, whatever happened in between."""
        if frame not in self._frames:
            return
        del self._frames[self._frames.index(frame) :]
        if not self._frames:
            self.__exit__(None, None, None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _unguarded(func)(*args, **kwargs)
        result = func(*args, **kwargs)
        if self._frames:
            name = getattr(func, "__name__", "")
            handle = _HANDLERS.get(name)
            frame = self._frames[-1]
            seen = len(frame.products)
            if handle is not None:
                handle(frame, args, kwargs, result)
            elif frame.chains:
                frame.chains.follow(name, args, kwargs, result)
            if frame.replace is not None and len(frame.products) > seen:
                return frame.replace(frame.products[-1])
        return result


def _fused(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args, strict=False)) | kwargs
    query, mask = given["query"], given.get("attn_mask")
    scale = given.get("scale")
    with torch._C.DisableTorchFunction():
        frame.products.append(
            Product(
                query=query.detach(),
                key=given["key"].detach(),
                value=given["value"].detach(),
                context=result.detach(),
                scale=1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
                biases=() if mask is None or mask.dtype == torch.bool else (mask.detach(),),
                visible=(mask,) if mask is not None and mask.dtype == torch.bool else (),
                causal=bool(given.get("is_causal", False)),
                dropout=float(given.get("dropout_p", 0.0)),
            )
        )


def _linear(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
    source, weight = (*args, *(kwargs[name] for name in ("input", "weight") if name in kwargs))[:2]
    name = frame.weights.get(id(weight))
    if name is not None:
        frame.linear[name] = (source.detach(), result.detach())


def _flexible(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    frame.refused = "flex_attention"


def _product(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor, name: str) -> None:
    with torch._C.DisableTorchFunction():
        finished = frame.chains.product(name, args, kwargs, result)
        if finished is not None:
            frame.products.append(_from_chain(finished))


def _softmax(frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
    with torch._C.DisableTorchFunction():
        frame.chains.softmax(args, kwargs, result)


def _from_chain(chain: WrittenOut) -> Product:
    return Product(
        query=chain.query,
        key=chain.key,
        value=chain.value,
        context=chain.context,
        scale=chain.scale,
        biases=chain.biases,
        visible=chain.visible,
        given=chain.given,
        dropout=chain.dropout,
        dtype=chain.dtype,
    )


def _products(name: str) -> Callable[[Frame, tuple[Any, ...], dict[str, Any], Tensor], None]:
    return lambda frame, args, kwargs, result: _product(frame, args, kwargs, result, name)


_HANDLERS: dict[str, Callable[[Frame, tuple[Any, ...], dict[str, Any], Any], None]] = {
    "scaled_dot_product_attention": _fused,
    "flex_attention": _flexible,
    "linear": _linear,
    "softmax": _softmax,
    **{name: _products(name) for name in ("matmul", "__matmul__", "bmm", "baddbmm", "einsum")},
}


def _unguarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same Python function without its look at torch function modes, so that the calls inside it are seen."""
    assert isinstance(function, FunctionType)
    scope = function.__globals__ | {"has_torch_function": lambda *_: False}
    copy = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
