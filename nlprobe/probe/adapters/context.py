"""Adapter for our own `ContextBlock`: SNL, GC and SE, whose one map serves all queries."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import ContextBlock
from nlprobe.errors import CaptureError
from nlprobe.probe.adapters.protocol import Deliver, SingleMapCapture
from nlprobe.probe.adapters.recompute import at_least_single, linear, relative_error, rows_of
from nlprobe.probe.watch import Watch


@dataclass
class _Call:
    """What one forward call has shown so far; it lives no longer than the call."""

    logits: Tensor | None = None
    pooled: Tensor | None = None
    transformed: Tensor | None = None


class ContextAdapter:
    """Reads the logits at the block's `mask`, context and transform at its `transform`, x and z at the block."""

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a `ContextBlock`."""
        return isinstance(module, ContextBlock)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """All settings of the framework of section 4.2."""
        assert isinstance(module, ContextBlock)
        return "context", {"channels": module.channels} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block, its mask and its transform."""
        assert isinstance(module, ContextBlock)
        block = module
        call = _Call()

        def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            call.logits = call.pooled = call.transformed = None

        def mask(_: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> None:
            call.logits = logits.detach().squeeze(-1)

        def transform(_: nn.Module, args: tuple[Tensor, ...], transformed: Tensor) -> None:
            call.pooled, call.transformed = args[0].detach(), transformed.detach()

        def end(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
            logits, pooled, transformed = call.logits, call.pooled, call.transformed
            call.logits = call.pooled = call.transformed = None
            if pooled is None or transformed is None or (block.mask is not None and logits is None):
                raise CaptureError(
                    "a `ContextBlock` ran without calling its mask or its transform",
                    "its forward was replaced; call `block.mask` and `block.transform`, or leave the site out",
                )
            with torch.no_grad():
                deliver(_capture(block, args[0].detach(), z.detach(), logits, pooled, transformed))

        handles = [
            block.register_forward_pre_hook(begin),
            block.transform.register_forward_hook(transform),
            block.register_forward_hook(end),
        ]
        if block.mask is not None:
            handles.append(block.mask.register_forward_hook(mask))
        return handles


def _capture(
    block: ContextBlock, x: Tensor, z: Tensor, logits: Tensor | None, pooled: Tensor, transformed: Tensor
) -> SingleMapCapture:
    rows = rows_of(x)
    additive = block.config.fusion == "add"
    wide = at_least_single(rows)
    gate = at_least_single(transformed).unsqueeze(1)  # (B, 1, C)

    def errors() -> dict[str, float]:
        found = {}
        if logits is None or block.mask is None:
            expected = wide.mean(1)
        else:
            found["W_k"] = relative_error(linear(wide, block.mask).squeeze(-1), logits)
            weights = torch.softmax(at_least_single(logits), -1)
            expected = torch.einsum("bn,bnc->bc", weights, wide)
        found["A·V"] = relative_error(expected, pooled)
        found["fusion"] = relative_error(wide + gate if additive else wide * torch.sigmoid(gate), rows_of(z))
        return found

    return SingleMapCapture(
        x=rows,
        output=None if additive else wide * torch.sigmoid(gate) - wide,
        shift=transformed if additive else None,
        logits=logits,
        query_grid=tuple(x.shape[2:]),
        errors=errors,
    )
