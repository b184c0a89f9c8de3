"""Adapter for our own `CrissCross` block, whose steps are the calls of one site."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import CrissCross
from nlprobe.errors import CaptureError
from nlprobe.probe.adapters.protocol import CrossCapture, Deliver
from nlprobe.probe.adapters.recompute import at_least_single, linear, relative_error
from nlprobe.probe.watch import Watch


@dataclass
class _Step:
    """One step: its input (b, h, w, c), what entered its product, and A·V."""

    x: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    context: Tensor


@dataclass
class _Call:
    """What one forward call has shown so far; it lives no longer than the call.

    Attributes:
        x: The input of the step under way.
        open: A step that has run, until the input of the next one, or z, shows what became of it.
        products: Queries and keys of all steps.
        start: The input of the first step.
        total: γ y, summed over the steps.
    """

    x: Tensor | None = None
    open: _Step | None = None
    products: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    start: Tensor | None = None
    total: Tensor | None = None


class CrissCrossAdapter:
    """Reads x of each step at the block's `query`, q, k, v and A·V at its `attention`, and z at the block itself.

    v_i is a position of a step's x, W_k x and W_q x, and of what the step adds, γ·A·V. ω_i is the row over the column
    and the row of i, zero elsewhere; head `composed` has the row over all positions that the steps together make, and
    the output of the whole block.
    """

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a `CrissCross`."""
        return isinstance(module, CrissCross)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """All settings."""
        assert isinstance(module, CrissCross)
        return "criss_cross", {"channels": module.channels} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block, its query and its attention; one capture a step."""
        assert isinstance(module, CrissCross)
        block = module
        call = _Call()

        def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal call
            call = _Call()

        def source(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].detach()
            if call.open is not None:
                finish(rows, last=False)
            call.x = rows
            call.start = rows if call.start is None else call.start

        def product(_: nn.Module, args: tuple[Tensor, ...], context: Tensor) -> None:
            if call.x is not None:
                query, key, value = (tensor.detach() for tensor in args)
                call.open = _Step(call.x, query, key, value, context.detach())

        def finish(following: Tensor, *, last: bool) -> None:
            step, call.open = call.open, None
            assert step is not None
            with torch.no_grad():
                update = at_least_single(block.gamma.gamma.detach()) * at_least_single(step.context)
                call.total = update if call.total is None else call.total + update
                call.products.append((step.query, step.key))
                deliver(_capture(block, step, update, following, call if last else None))

        def end(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
            steps = len(call.products) + (call.open is not None)
            if call.open is None or steps != block.config.recurrence:
                raise CaptureError(
                    f"a `CrissCross` block of {block.config.recurrence} steps ran its attention {steps} times",
                    "its forward was replaced; call `block.step` once for each step, or leave the site out",
                )
            finish(z.detach().permute(0, 2, 3, 1), last=True)
            begin(block, ())

        return [
            block.register_forward_pre_hook(begin),
            block.query.register_forward_pre_hook(source),
            block.attention.register_forward_hook(product),
            block.register_forward_hook(end),
        ]


def _capture(block: CrissCross, step: _Step, update: Tensor, following: Tensor, whole: _Call | None) -> CrossCapture:
    """The capture of a step; the last one comes with what all of them did."""

    def errors() -> dict[str, float]:
        rows = at_least_single(step.x)
        found = {
            name: relative_error(linear(rows, layer), captured)
            for name, layer, captured in (
                ("query", block.query, step.query),
                ("key", block.key, step.key),
                ("value", block.value, step.value),
            )
        }
        found["x + γ·A·V"] = relative_error(rows + update, following)
        return found

    several = whole is not None and len(whole.products) > 1
    return CrossCapture(
        x=step.x.flatten(1, 2),
        output=update.flatten(1, 2),
        query=step.query,
        key=step.key,
        value=step.value,
        context=step.context,
        errors=errors,
        all_queries=torch.stack([query for query, _ in whole.products]) if whole is not None and several else None,
        all_keys=torch.stack([key for _, key in whole.products]) if whole is not None and several else None,
        first_x=None if whole is None or whole.start is None else whole.start.flatten(1, 2),
        whole_output=None if whole is None or whole.total is None else whole.total.flatten(1, 2),
    )
