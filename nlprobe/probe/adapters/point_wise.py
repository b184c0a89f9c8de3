"""Adapter for the branches of our own `PointWise` block, each a site of its own."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import PointWiseBranch
from nlprobe.errors import CaptureError
from nlprobe.probe.adapters.protocol import Deliver, PairwiseCapture
from nlprobe.probe.adapters.recompute import at_least_single, linear, relative_error, rows_of
from nlprobe.probe.watch import Watch


@dataclass
class _Call:
    """What one forward call has shown so far; it lives no longer than the call."""

    product: tuple[Tensor, Tensor, Tensor] | None = None


class PointWiseAdapter:
    """Reads the given logits, v and A·V at the branch's `attention`, x and y at the branch itself.

    The rows of `att` are those of receivers over sources, in both directions. `input` is x_i = v_i, the reduced and
    shrunken features that enter the branch; `output` is y_i = (A·V)_i / F, which is not added to anything. There are no
    keys, queries and products.
    """

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a branch."""
        return isinstance(module, PointWiseBranch)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """Its direction and the block's settings."""
        assert isinstance(module, PointWiseBranch)
        return "point_wise", {"width": module.width, "direction": module.direction} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the branch and its attention."""
        assert isinstance(module, PointWiseBranch)
        branch = module
        call = _Call()

        def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            call.product = None

        def product(_: nn.Module, args: tuple[Tensor, ...], context: Tensor) -> None:
            call.product = (args[0].detach(), args[1].detach(), context.detach())

        def end(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            if call.product is None:
                raise CaptureError(
                    f"the `{branch.direction}` branch of a `PointWise` block ran without calling its attention",
                    "its forward was replaced; call `branch.attention`, or leave the site out",
                )
            captured, call.product = call.product, None
            with torch.no_grad():
                deliver(_capture(branch, args[0].detach(), y.detach(), *captured))

        return [
            branch.register_forward_pre_hook(begin),
            branch.attention.register_forward_hook(product),
            branch.register_forward_hook(end),
        ]


def _capture(
    branch: PointWiseBranch, x: Tensor, y: Tensor, logits: Tensor, value: Tensor, context: Tensor
) -> PairwiseCapture:
    grid = tuple(x.shape[2:])

    def errors() -> dict[str, float]:
        rows = at_least_single(rows_of(x))
        return {
            "logits": relative_error(_logits(branch, rows, grid), logits),
            "value": relative_error(rows, value),
            "A·V / F": relative_error(at_least_single(context) / branch.config.normalisation, rows_of(y)),
        }

    return PairwiseCapture(
        x=rows_of(x),
        output=rows_of(y),
        query=None,
        key=None,
        value=value.unsqueeze(1),
        context=context.unsqueeze(1),
        instantiation="embedded_gaussian",
        scale=1.0,
        query_grid=grid,
        key_grid=grid,
        projected=False,
        errors=errors,
        given=logits.unsqueeze(1),
        residual=False,
        not_counted=(
            "`key`, `query` and `prod`: the logits are predicted",
            "`update`: the branch adds nothing to its input",
        ),
    )


def _logits(branch: PointWiseBranch, rows: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The map that the branch's masks make, placed position by position; with one map of its own."""
    hidden = linear(rows, branch.hidden.linear).flatten(0, 1)
    hidden = _batch_norm(hidden, branch.hidden.norm).view(rows.shape).relu()
    masks = linear(hidden, branch.mask)
    if not branch.config.compact:
        masks = _placed(masks.unflatten(2, (branch.config.mask_height, branch.config.mask_width)), grid)
    return masks.mT if branch.direction == "distribute" else masks


def _placed(masks: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(b, n, mh, mw) → (b, n, n): the mask of each position laid over the image with its centre on it."""
    batch, n, *mask = masks.shape
    placed = masks.new_zeros(batch, n, *grid)
    for at in range(n):
        inside, taken = [], []
        for place, size, length in zip(divmod(at, grid[1]), grid, mask, strict=True):
            first = place - (length - 1) // 2  # where the mask's first entry lies
            start, stop = max(first, 0), min(first + length, size)
            inside.append(slice(start, stop))
            taken.append(slice(start - first, stop - first))
        placed[:, at, inside[0], inside[1]] = masks[:, at, taken[0], taken[1]]
    return placed.flatten(2)


def _batch_norm(rows: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    weight, bias = at_least_single(norm.weight), at_least_single(norm.bias)
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return F.batch_norm(rows, None, None, weight, bias, training=True, eps=norm.eps)
    mean, variance = at_least_single(norm.running_mean), at_least_single(norm.running_var)
    return F.batch_norm(rows, mean, variance, weight, bias, training=False, eps=norm.eps)
