"""Adapters for our own blocks that scale x position by position without an attention map: CBAM and gather-excite.

Of the six quantities they have two. `input` is x_i. `output` is z_i − x_i = x_i · (gate_i − 1), which depends on the
query through x_i and, but for gather-excite of global extent, through its gate. The gates are sigmoids, of one number a
position or channel: they are no distribution over the positions that a query looks at, so nothing stands for `att`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import CBAM, GatherExcite
from nlprobe.blocks.gather_excite import nearest
from nlprobe.errors import CaptureError
from nlprobe.probe.adapters.protocol import Deliver, MaplessCapture
from nlprobe.probe.adapters.recompute import at_least_single, linear, normed, relative_error, rows_of
from nlprobe.probe.watch import Watch

CBAM_HAS_NO_MAP = "its gates are sigmoids of channels and of positions, no attention of one position to others"
GATHER_EXCITE_HAS_NO_MAP = "it gathers positions channel by channel, without an attention map that channels share"

Update = Callable[[Tensor, list[Tensor]], Tensor]
"""z − x from x and what the hooked parts gave."""

Errors = Callable[[Tensor, Tensor, list[Tensor]], dict[str, float]]
"""From x, z and what the hooked parts gave, the relative errors by name."""


class CBAMAdapter:
    """Reads both gates' logits, and x and z at the block."""

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a `CBAM` block."""
        return isinstance(module, CBAM)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """Its settings."""
        assert isinstance(module, CBAM)
        return module.config.block, {"channels": module.channels} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block and its gates."""
        assert isinstance(module, CBAM)
        block = module

        def update(x: Tensor, parts: list[Tensor]) -> Tensor:
            channel, spatial = at_least_single(parts[0])[:, :, None, None], at_least_single(parts[1])
            # 1 − σ(c) σ(s) without the cancellation
            return -x * (torch.sigmoid(-channel) + torch.sigmoid(channel) * torch.sigmoid(-spatial))

        def errors(x: Tensor, z: Tensor, parts: list[Tensor]) -> dict[str, float]:
            return _cbam_errors(block, x, z, *parts)

        return _attach(block, [block.channel_gate, block.spatial_gate], update, errors, CBAM_HAS_NO_MAP, deliver)


class GatherExciteAdapter:
    """Reads what was gathered, the gate's logits before interpolation, and x and z at the block."""

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a `GatherExcite` block."""
        return isinstance(module, GatherExcite)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """Its settings."""
        assert isinstance(module, GatherExcite)
        return module.config.block, {"channels": module.channels} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block and its two operators."""
        assert isinstance(module, GatherExcite)
        block = module

        def update(x: Tensor, parts: list[Tensor]) -> Tensor:
            return -x * torch.sigmoid(-nearest(at_least_single(parts[1]), x.shape[2:]))

        def errors(x: Tensor, z: Tensor, parts: list[Tensor]) -> dict[str, float]:
            return _gather_excite_errors(block, x, z, *parts)

        return _attach(block, [block.gather, block.excite], update, errors, GATHER_EXCITE_HAS_NO_MAP, deliver)


def _attach(
    block: nn.Module, parts: list[nn.Module], update: Update, errors: Errors, no_map: str, deliver: Deliver
) -> list[RemovableHandle]:
    """Hook a block and the parts of it whose results the audit recomputes, in the order in which they run."""
    seen: list[Tensor] = []

    def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.clear()

    def see(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        seen.append(result.detach())

    def end(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        results = list(seen)
        seen.clear()
        if len(results) != len(parts):
            raise CaptureError(
                f"a `{type(block).__name__}` ran without calling its parts",
                "its forward was replaced; call the modules that it is made of, or leave the site out",
            )
        x, z = args[0].detach(), z.detach()
        wide = at_least_single(x)
        with torch.no_grad():
            deliver(
                MaplessCapture(
                    x=rows_of(x),
                    output=rows_of(update(wide, results)),
                    query_grid=tuple(x.shape[2:]),
                    errors=lambda: errors(wide, z, results),
                    not_counted=(no_map,),
                )
            )

    return [
        block.register_forward_pre_hook(begin),
        *(part.register_forward_hook(see) for part in parts),
        block.register_forward_hook(end),
    ]


def _cbam_errors(block: CBAM, x: Tensor, z: Tensor, channel: Tensor, spatial: Tensor) -> dict[str, float]:
    mlp, gate = block.channel_gate.mlp, block.spatial_gate
    reduce, expand = mlp[0], mlp[-1]
    assert isinstance(reduce, nn.Linear)
    assert isinstance(expand, nn.Linear)
    positions = x.flatten(2)
    pooled = torch.stack([positions.mean(2), positions.amax(2)])
    logits = linear(torch.relu(linear(pooled, reduce)), expand).sum(0)
    scaled = x * torch.sigmoid(at_least_single(channel))[:, :, None, None]
    over_channels = [scaled.amax(1), scaled.mean(1)]
    if block.config.order == "mean_max":
        over_channels.reverse()
    weight = at_least_single(gate.conv.weight)
    side = block.config.kernel_size // 2
    convolved = F.conv2d(torch.stack(over_channels, 1), weight, padding=side)
    return {
        "channel gate": relative_error(logits, channel),
        "spatial gate": relative_error(_normed(convolved, gate.norm), spatial),
        "x·gates": relative_error(scaled * torch.sigmoid(at_least_single(spatial)), z),
    }


def _gather_excite_errors(
    block: GatherExcite, x: Tensor, z: Tensor, gathered: Tensor, logits: Tensor
) -> dict[str, float]:
    gate = torch.sigmoid(nearest(at_least_single(logits), x.shape[2:]))
    return {
        "gather": relative_error(_gathered(block, x), gathered),
        "excite": relative_error(_excited(block, at_least_single(gathered)), logits),
        "x·gate": relative_error(x * gate, z),
    }


def _normed(grid: Tensor, norm: nn.Module) -> Tensor:
    return normed(rows_of(grid), norm).mT.unflatten(2, grid.shape[2:])


def _gathered(block: GatherExcite, x: Tensor) -> Tensor:
    extent = block.config.extent
    if block.config.variant == "theta_minus":
        if extent == "global":
            return x.flatten(2).mean(2)[:, :, None, None]
        # the mean over what of a window is inside: zeros around the map add nothing, and neither do they to the count
        total, count = (F.avg_pool2d(y, 2 * extent - 1, extent, extent - 1) for y in (x, torch.ones_like(x[:, :1])))
        return total / count
    for layer in block.gather.children():
        if isinstance(layer, nn.BatchNorm2d):
            x = _normed(x, layer)
        elif not isinstance(layer, nn.Conv2d):
            x = torch.relu(x)
        elif extent == "global":
            x = torch.einsum("bchw,chw->bc", x, at_least_single(layer.weight)[:, 0])[:, :, None, None]
        else:
            x = F.conv2d(x, at_least_single(layer.weight), stride=2, padding=1, groups=block.channels)
    return x


def _excited(block: GatherExcite, gathered: Tensor) -> Tensor:
    for layer in block.excite.children():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            weight = at_least_single(layer.weight).flatten(1)
            gathered = torch.einsum("oc,bchw->bohw", weight, gathered) + at_least_single(layer.bias)[:, None, None]
        else:
            gathered = torch.relu(gathered)
    return gathered
