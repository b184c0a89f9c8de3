"""Adapter for timm's `GlobalContext`: one map for all queries, with scale fusion (`gc`) or additive fusion (`gca`)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.errors import CaptureError
from nlprobe.probe.adapters.protocol import Deliver, SingleMapCapture
from nlprobe.probe.adapters.recompute import at_least_single, relative_error, rows_of
from nlprobe.probe.watch import Watch

CLASS = "timm.layers.global_context.GlobalContext"


@dataclass
class _Call:
    """What one forward call has shown so far; it lives no longer than the call."""

    logits: Tensor | None = None
    context: Tensor | None = None
    scaled: Tensor | None = None
    added: Tensor | None = None


class TimmGlobalContext:
    """Reads the logits at `conv_attn`, context and transform at the fusion's MLP, x and z at the block.

    The paper's GC block is the additive one; timm's MLP has a layer norm and a reduction of 1/8 where the paper has
    1/16. A block with both fusions adds a vector to scaled rows: its output is query-dependent through x alone.
    """

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is timm's block."""
        return any(f"{cls.__module__}.{cls.__qualname__}" == CLASS for cls in type(module).__mro__)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """Its pooling and its fusion."""
        fusions = [name for name in ("scale", "add") if getattr(module, f"mlp_{name}") is not None]
        pooling = "average" if module.conv_attn is None else "attention"
        return "timm.GlobalContext", {"pooling": pooling, "fusion": " and ".join(fusions)}

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block, its mask and its MLPs."""
        call = _Call()

        def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            call.logits = call.context = call.scaled = call.added = None

        def mask(_: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> None:
            call.logits = logits.detach().flatten(1)

        def scale(_: nn.Module, args: tuple[Tensor, ...], transformed: Tensor) -> None:
            call.context, call.scaled = args[0].detach().flatten(1), transformed.detach()

        def add(_: nn.Module, args: tuple[Tensor, ...], transformed: Tensor) -> None:
            call.context, call.added = args[0].detach().flatten(1), transformed.detach()

        def end(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
            if call.context is None:
                raise CaptureError("a `GlobalContext` ran without its MLP", "leave the site out (--site)")
            with torch.no_grad():
                found = _capture(module, args[0].detach(), z.detach(), replace(call))
            call.logits = call.context = call.scaled = call.added = None
            deliver(found)

        handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
        for name, hook in (("conv_attn", mask), ("mlp_scale", scale), ("mlp_add", add)):
            if isinstance(part := getattr(module, name), nn.Module):
                handles.append(part.register_forward_hook(hook))
        return handles


def _capture(module: nn.Module, x: Tensor, z: Tensor, call: _Call) -> SingleMapCapture:
    rows, result = at_least_single(rows_of(x)), at_least_single(rows_of(z))
    additive = call.scaled is None

    def errors() -> dict[str, float]:
        assert call.context is not None
        if call.logits is None:
            weights = rows.new_ones(rows.shape[:2]) / rows.shape[1]
        else:
            weights = torch.softmax(at_least_single(call.logits), -1)
        fused = rows
        if call.scaled is not None:
            assert isinstance(module.gate, nn.Module)
            fused = fused * type(module.gate).forward(module.gate, at_least_single(call.scaled)).flatten(1).unsqueeze(1)
        if call.added is not None:
            fused = fused + at_least_single(call.added).flatten(1).unsqueeze(1)
        return {
            "A·V": relative_error(torch.einsum("bn,bnc->bc", weights, rows), call.context),
            "fusion": relative_error(fused, result),
        }

    return SingleMapCapture(
        x=rows_of(x),
        output=None if additive else result - rows,
        shift=call.added.flatten(1) if additive and call.added is not None else None,
        logits=call.logits,
        query_grid=tuple(x.shape[2:]),
        errors=errors,
    )
