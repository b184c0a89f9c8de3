"""Follows q kᵀ through scaling, biases, masks, softmax and dropout to its product with the values."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

HIDDEN = -1e4
"""What `masked_fill` and `where` write at or under this into logits hides a key."""

_SAME = {
    "to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone", "detach", "nan_to_num",
}  # fmt: skip
_TIMES = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"}
_OVER = {"div", "div_", "__truediv__", "__itruediv__", "divide", "true_divide"}
_PLUS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_MINUS = {"sub", "sub_", "__sub__", "__isub__", "subtract"}
_DROPOUT = {"dropout", "dropout_"}


@dataclass(frozen=True)
class WrittenOut:
    """One product softmax(q kᵀ) v that code has written out; see `Product` for the fields."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor
    context: Tensor
    scale: float
    biases: tuple[Tensor, ...]
    visible: tuple[Tensor, ...]
    given: Tensor | None
    dropout: float
    dtype: torch.dtype


@dataclass(frozen=True)
class _Link:
    """What is known of a tensor on the way from q kᵀ to the weights.

    Attributes:
        query: (..., n, d).
        key: (..., m, d).
        factors: Scales that differ between heads, each (..., 1, 1).
        transposed: Whether the tensor holds the map with keys before queries.
        weights: Whether the softmax is done.
        given: The logits themselves, once what was done to them is not understood.
        dtype: The precision of the softmax.
    """

    query: Tensor | None
    key: Tensor | None
    scale: float = 1.0
    factors: tuple[Tensor, ...] = ()
    biases: tuple[Tensor, ...] = ()
    visible: tuple[Tensor, ...] = ()
    transposed: bool = False
    weights: bool = False
    given: Tensor | None = None
    dropout: float = 0.0
    dtype: torch.dtype = torch.float64


class Chains:
    """The tensors of one module's call that stand between a product and its use; they are referred to weakly.

    Attributes:
        lost: The functions that changed weights before they met values.
        changed: Those among them whose weights are a softmax of queries' and keys' product: attention for certain.
    """

    def __init__(self) -> None:
        self._links = WeakTensorKeyDictionary()
        self.lost: list[str] = []
        self.changed: list[str] = []

    def __bool__(self) -> bool:
        return len(self._links) > 0

    def product(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> WrittenOut | None:
        """Note a matrix product; the finished attention if it is the one with the values."""
        if name == "einsum":
            return self._einsum(args, result)
        bias, scale = None, 1.0
        if name == "baddbmm":
            names = ("input", "batch1", "batch2")
            named = dict(zip(names, args, strict=False)) | kwargs
            first, second = named["batch1"], named["batch2"]
            scale, beta = float(named.get("alpha", 1)), float(named.get("beta", 1))
            bias = (
                named["input"].detach() * beta if beta not in (0.0, 1.0) else named["input"].detach() if beta else None
            )
        else:
            first, second = (*args, *kwargs.values())[:2]
        if not isinstance(second, Tensor) or first.dim() < 2 or second.dim() < 2:
            return None
        finished = self._finish(first, second, result)
        if finished is None and first not in self._links and second not in self._links:
            biases = () if bias is None else (bias,)
            self._links[result] = _Link(first.detach(), second.detach().mT, scale=scale, biases=biases)
        return finished

    def softmax(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """Note a softmax over the keys; over the queries' axis, the map is held transposed."""
        logits = args[0] if args else kwargs["input"]
        axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if not isinstance(logits, Tensor) or logits.dim() < 2 or axis is None:
            return
        axis = axis % logits.dim()
        if axis < logits.dim() - 2:
            return
        across = axis == logits.dim() - 2  # then the queries are the tensor's columns
        link = self._links.get(logits)
        if link is None or link.weights or link.given is not None:
            query, key = (None, None) if link is None or link.weights else (link.query, link.key)
            link = _Link(query, key, given=logits.detach().mT if across else logits.detach())
        else:
            query, key = (link.key, link.query) if across != link.transposed else (link.query, link.key)
            biases = tuple(bias.mT if across else bias for bias in link.biases)
            visible = tuple(mask.mT if across else mask for mask in link.visible)
            link = replace(link, query=query, key=key, biases=biases, visible=visible)
        self._links[result] = replace(link, weights=True, transposed=across, dtype=result.dtype)

    def follow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Carry what is known over to the result of a function that is applied to a tensor on the way."""
        if name == "__setitem__" and args[0] in self._links:
            self._overwritten(args[0])
        if not isinstance(result, Tensor):
            return
        with torch._C.DisableTorchFunction():
            for place, source in enumerate(args[:3]):
                if isinstance(source, Tensor) and source in self._links:
                    link = self._links[source]
                    derived = _derived(link, name, place, source, args, kwargs, result)
                    if derived is None and name not in ("__get__", "size", "dim"):
                        if link.weights:
                            self._lose(link, name)
                        elif result.shape == source.shape:
                            # what was done to the logits is not understood: they are taken as they are
                            derived = replace(link, given=result)
                    if derived is not None:
                        self._links[result] = derived
                    elif result is source:
                        del self._links[source]
                    return

    def _overwritten(self, tensor: Tensor) -> None:
        """A part of the tensor was replaced: logits are taken as they are, weights are lost."""
        link = self._links.pop(tensor)
        if link.weights:
            self._lose(link, "an assignment")
        else:
            self._links[tensor] = replace(link, given=tensor)

    def _lose(self, link: _Link, name: str) -> None:
        self.lost.append(name)
        if link.query is not None:
            self.changed.append(name)

    def _finish(self, first: Tensor, second: Tensor, result: Tensor) -> WrittenOut | None:
        link = self._links.get(first)
        if link is not None and link.weights and not link.transposed:
            return _written_out(link, second.detach(), result.detach())
        link = self._links.get(second)
        if link is not None and link.weights and link.transposed:
            return _written_out(link, first.detach().mT, result.detach().mT)
        return None

    def _einsum(self, args: tuple[Any, ...], result: Tensor) -> WrittenOut | None:
        operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        if not isinstance(args[0], str) or len(operands) != 2 or "." in args[0]:
            return None
        left, _, out = args[0].replace(" ", "").partition("->")
        labels = left.split(",")
        for weights, values in ((0, 1), (1, 0)):
            link = self._links.get(operands[weights])
            if link is not None and link.weights:
                return _weighted(link, labels[weights], labels[values], out, operands[values].detach(), result.detach())
        if any(operand in self._links for operand in operands) or len(out) < 2:
            return None
        n, m = out[-2], out[-1]
        pair = [(labels[i], operands[i].detach()) for i in (0, 1)]
        if n not in pair[0][0]:
            pair.reverse()
        shared = [label for label in pair[0][0] if label in pair[1][0] and label not in out]
        (query_labels, query), (key_labels, key) = pair
        batch = out[:-2]
        wanted = [set(batch + end + "".join(shared)) for end in (n, m)]
        fits = n in query_labels and m in key_labels and set(query_labels) <= wanted[0] and set(key_labels) <= wanted[1]
        if fits and len(shared) == 1:
            self._links[result] = _Link(
                _arranged(query, query_labels, batch + n + shared[0]), _arranged(key, key_labels, batch + m + shared[0])
            )
        return None


def _derived(
    link: _Link, name: str, place: int, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
) -> _Link | None:
    """What is known of `result`, or None where that is no longer a map's logits or weights that we understand."""
    if name in _DROPOUT and link.weights:
        probability = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
        training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
        return replace(link, dropout=float(probability) if training else link.dropout)
    if name in _SAME and (link.weights or link.given is None):
        return link if result.shape == source.shape else None
    if link.given is not None and not link.weights:
        return replace(link, given=result) if result.shape == source.shape else None
    if _is_view(source, result):
        return _viewed(link, source, result)
    if link.weights:
        return None
    other = next((value for at, value in enumerate((*args, *kwargs.values())) if at != place), None)
    if name in _TIMES or (name in _OVER and place == 0):
        return _scaled(link, other, over=name in _OVER)
    if name in _PLUS or (name in _MINUS and place == 0):
        if not isinstance(other, Tensor):
            return link
        alpha = float(kwargs.get("alpha", 1)) * (-1 if name in _MINUS else 1)
        bias = other.detach()
        if result.shape != source.shape:
            return None
        return replace(link, biases=(*link.biases, bias if alpha == 1 else bias * alpha))
    if name in ("masked_fill", "masked_fill_", "where"):
        return _filled(link, name, place, args, kwargs, result.shape == source.shape)
    return None


def _scaled(link: _Link, other: Any, *, over: bool) -> _Link | None:
    if isinstance(other, Tensor) and other.numel() > 1:
        if other.dim() < 2 or other.shape[-2:] != (1, 1) or link.biases or link.visible or link.transposed:
            return None
        return replace(link, factors=(*link.factors, other.detach().reciprocal() if over else other.detach()))
    if not isinstance(other, Tensor | int | float):
        return None
    factor = 1 / float(other) if over else float(other)
    if any(not bool(torch.isfinite(bias).all()) for bias in link.biases):
        return None if factor <= 0 else replace(link, scale=link.scale * factor, biases=_times(link.biases, factor))
    return replace(link, scale=link.scale * factor, biases=_times(link.biases, factor))


def _times(biases: tuple[Tensor, ...], factor: float) -> tuple[Tensor, ...]:
    return tuple(bias * factor for bias in biases)


def _filled(
    link: _Link, name: str, place: int, args: tuple[Any, ...], kwargs: dict[str, Any], same: bool
) -> _Link | None:
    if name == "where":
        condition = args[0] if args else kwargs["condition"]
        if place not in (1, 2) or not same:
            return None
        value = args[2] if place == 1 else args[1]
        visible = condition if place == 1 else ~condition
    else:
        mask = kwargs.get("mask", args[1] if len(args) > 1 else None)
        value = kwargs.get("value", args[2] if len(args) > 2 else None)
        if mask is None or not same:
            return None
        visible = ~mask
    if isinstance(value, Tensor) and value.numel() > 1:
        return None
    if value is None or not float(value) <= HIDDEN:
        return None
    return replace(link, visible=(*link.visible, visible))


def _is_view(source: Tensor, result: Tensor) -> bool:
    return source.data_ptr() == result.data_ptr() and source.numel() == result.numel() and source is not result


def _viewed(link: _Link, source: Tensor, result: Tensor) -> _Link | None:
    if result.dim() < 2:
        return None
    if result.shape[-2:] == source.shape[-2:] and result.stride()[-2:] == source.stride()[-2:]:
        if result.shape == source.shape:
            return link
        if source.is_contiguous() and result.is_contiguous():
            return _regrouped(link, source, result)
        return None
    swapped = result.shape[:-2] == source.shape[:-2] and result.stride()[:-2] == source.stride()[:-2]
    if swapped and result.stride()[-2:] == source.stride()[:-3:-1] and result.shape[-2:] == source.shape[:-3:-1]:
        if link.biases or link.visible or link.factors:
            return replace(link, transposed=not link.transposed) if link.weights else None
        return replace(link, transposed=not link.transposed)
    return None


def _regrouped(link: _Link, source: Tensor, result: Tensor) -> _Link | None:
    """The leading dimensions were split or merged: those of everything else are too."""
    old, new = source.shape[:-2], result.shape[:-2]

    def leading(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or math.prod(tensor.shape[:-2]) == 1:
            return tensor if tensor is None else tensor.reshape(*[1] * len(new), *tensor.shape[-2:])
        return tensor.expand(*old, *tensor.shape[-2:]).reshape(*new, *tensor.shape[-2:])

    def all_of(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(found for tensor in tensors if (found := leading(tensor)) is not None)

    return replace(
        link,
        query=leading(link.query),
        key=leading(link.key),
        given=leading(link.given),
        factors=all_of(link.factors),
        biases=all_of(link.biases),
        visible=all_of(link.visible),
    )


def _written_out(link: _Link, value: Tensor, context: Tensor) -> WrittenOut:
    query = link.query
    if query is not None:
        for factor in link.factors:
            query = query * factor
    return WrittenOut(
        query=query,
        key=link.key,
        value=value,
        context=context,
        scale=link.scale,
        biases=link.biases,
        visible=link.visible,
        given=link.given,
        dropout=link.dropout,
        dtype=link.dtype,
    )


def _weighted(link: _Link, map_labels: str, labels: str, out: str, value: Tensor, result: Tensor) -> WrittenOut | None:
    rows, columns = (-1, -2) if link.transposed else (-2, -1)
    batch = map_labels[:-2]
    widths = [label for label in labels if label not in map_labels]
    if len(map_labels) < 2:
        return None
    n, m = map_labels[rows], map_labels[columns]
    if n in labels or m not in labels or m in out or len(widths) != 1:
        return None
    if sorted(out) != sorted(batch + n + widths[0]):
        return None
    context = _arranged(result, out, batch + n + widths[0])
    return _written_out(link, _arranged(value, labels, batch + m + widths[0]), context)


def _arranged(tensor: Tensor, labels: str, wanted: str) -> Tensor:
    """Axes in the wanted order; an axis that the tensor does not have gets size 1."""
    present = [labels.index(label) for label in wanted if label in labels]
    arranged = tensor.permute(present)
    for axis, label in enumerate(wanted):
        if label not in labels:
            arranged = arranged.unsqueeze(axis)
    return arranged
