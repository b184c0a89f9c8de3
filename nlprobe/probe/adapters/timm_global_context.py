"""Adapter for timm's `GlobalContext`: one map for all queries, with scale fusion (`gc`) or additive fusion (`gca`)."""

from dataclasses import dataclass

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
    transformed: Tensor | None = None


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
        additive = module.mlp_scale is None

        def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            call.logits = call.context = call.transformed = None

        def mask(_: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> None:
            call.logits = logits.detach().flatten(1)

        def transform(_: nn.Module, args: tuple[Tensor, ...], transformed: Tensor) -> None:
            call.context, call.transformed = args[0].detach().flatten(1), transformed.detach().flatten(1)

        def end(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
            if call.context is None or call.transformed is None:
                raise CaptureError("a `GlobalContext` ran without its MLP", "leave the site out (--site)")
            with torch.no_grad():
                found = _capture(args[0].detach(), z.detach(), call.logits, call.context, call.transformed, additive)
            call.logits = call.context = call.transformed = None
            deliver(found)

        mlp = module.mlp_add if additive else module.mlp_scale
        assert isinstance(mlp, nn.Module)
        handles = [
            module.register_forward_pre_hook(begin),
            mlp.register_forward_hook(transform),
            module.register_forward_hook(end),
        ]
        if isinstance(module.conv_attn, nn.Module):
            handles.append(module.conv_attn.register_forward_hook(mask))
        return handles


def _capture(
    x: Tensor, z: Tensor, logits: Tensor | None, context: Tensor, transformed: Tensor, additive: bool
) -> SingleMapCapture:
    rows, result = at_least_single(rows_of(x)), at_least_single(rows_of(z))

    def errors() -> dict[str, float]:
        wide = rows
        weights = wide.new_ones(wide.shape[:2]) / wide.shape[1] if logits is None else None
        if weights is None:
            assert logits is not None
            weights = torch.softmax(at_least_single(logits), -1)
        found = {"A·V": relative_error(torch.einsum("bn,bnc->bc", weights, wide), context)}
        if additive:
            found["fusion"] = relative_error(wide + at_least_single(transformed).unsqueeze(1), result)
        return found

    return SingleMapCapture(
        x=rows_of(x),
        output=None if additive else result - rows,
        shift=transformed if additive else None,
        logits=logits,
        query_grid=tuple(x.shape[2:]),
        errors=errors,
    )
