"""Adapters for our own blocks whose one map serves all queries: `ContextBlock` (SNL, GC) and `SqueezeExcitation`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import ContextBlock, SqueezeExcitation
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
    """Reads the logits at the block's `mask`, context and transform at its `transform`, x and z at the block.

    v_i is a position of x and, for scale fusion, of z − x. There are no keys, queries and products, and ω_i is the one
    map for every i, so that the distances of `att` and of an added output are 0 by construction.
    """

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
        return _attach(module, module.mask, module.transform, module.config.fusion == "add", deliver)


class SqueezeExcitationAdapter:
    """The same for `SqueezeExcitation`: its one map is flat, the mean over positions, and its fusion scales.

    `att` is 0 by construction; `output` = x · (gate − 1) depends on the query through x alone.
    """

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a `SqueezeExcitation` block."""
        return isinstance(module, SqueezeExcitation)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """Its settings."""
        assert isinstance(module, SqueezeExcitation)
        return module.config.block, {"channels": module.channels} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block and its bottleneck."""
        assert isinstance(module, SqueezeExcitation)
        return _attach(module, None, module.excite, False, deliver)


def _attach(
    block: nn.Module, mask: nn.Linear | None, transform: nn.Module, additive: bool, deliver: Deliver
) -> list[RemovableHandle]:
    """Hook a block, the linear layer that makes its logits, if any, and what turns the context into t."""
    call = _Call()

    def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        call.logits = call.pooled = call.transformed = None

    def see_logits(_: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> None:
        call.logits = logits.detach().squeeze(-1)

    def see_context(_: nn.Module, args: tuple[Tensor, ...], transformed: Tensor) -> None:
        call.pooled, call.transformed = args[0].detach(), transformed.detach()

    def end(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        logits, pooled, transformed = call.logits, call.pooled, call.transformed
        call.logits = call.pooled = call.transformed = None
        if pooled is None or transformed is None or (mask is not None and logits is None):
            raise CaptureError(
                f"a `{type(block).__name__}` ran without calling its parts",
                "its forward was replaced; call the modules that it is made of, or leave the site out",
            )
        with torch.no_grad():
            deliver(_capture(mask, additive, args[0].detach(), z.detach(), logits, pooled, transformed))

    handles = [
        block.register_forward_pre_hook(begin),
        transform.register_forward_hook(see_context),
        block.register_forward_hook(end),
    ]
    if mask is not None:
        handles.append(mask.register_forward_hook(see_logits))
    return handles


def _capture(
    mask: nn.Linear | None,
    additive: bool,
    x: Tensor,
    z: Tensor,
    logits: Tensor | None,
    pooled: Tensor,
    transformed: Tensor,
) -> SingleMapCapture:
    rows = rows_of(x)
    wide = at_least_single(rows)
    gate = at_least_single(transformed).unsqueeze(1)  # (B, 1, C)

    def errors() -> dict[str, float]:
        found = {}
        if logits is None or mask is None:
            expected = wide.mean(1)
        else:
            found["W_k"] = relative_error(linear(wide, mask).squeeze(-1), logits)
            weights = torch.softmax(at_least_single(logits), -1)
            expected = torch.einsum("bn,bnc->bc", weights, wide)
        found["A·V"] = relative_error(expected, pooled)
        found["fusion"] = relative_error(wide + gate if additive else wide * torch.sigmoid(gate), rows_of(z))
        return found

    return SingleMapCapture(
        x=rows,
        output=None if additive else -wide * torch.sigmoid(-gate),  # x·σ − x without the cancellation
        shift=transformed if additive else None,
        logits=logits,
        query_grid=tuple(x.shape[2:]),
        errors=errors,
    )
