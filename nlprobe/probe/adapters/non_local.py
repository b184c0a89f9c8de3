"""Adapter for our own `NonLocal` block, in all four instantiations."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import NonLocal
from nlprobe.errors import CaptureError
from nlprobe.probe.adapters.protocol import Deliver, PairwiseCapture
from nlprobe.probe.adapters.recompute import at_least_single, linear, normed, relative_error, rows_of
from nlprobe.probe.watch import Watch


@dataclass
class _Call:
    """What one forward call has shown so far; it lives no longer than the call."""

    product: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    residual: Tensor | None = None


class NonLocalAdapter:
    """Reads q, k, v and A·V at the block's `attention`, the output at its `norm`, and x at the block itself."""

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a `NonLocal`."""
        return isinstance(module, NonLocal)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """The instantiation and all settings."""
        assert isinstance(module, NonLocal)
        settings = dict(module.config.as_dict())
        return "non_local", {"channels": module.channels, "dimension": module.dimension} | settings

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block, its attention and its norm."""
        assert isinstance(module, NonLocal)
        block = module
        call = _Call()

        def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            call.product, call.residual = None, None

        def product(_: nn.Module, args: tuple[Tensor, ...], context: Tensor) -> None:
            call.product = (args[0], args[1], args[2], context)

        def residual(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            call.residual = output

        def end(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
            if call.product is None or call.residual is None:
                missing = "attention product" if call.product is None else "output transform"
                raise CaptureError(
                    f"a `NonLocal` block ran without calling its {missing}",
                    "its forward was replaced; call `block.attention` and `block.norm`, or leave the site out",
                )
            captured, output = call.product, call.residual
            call.product, call.residual = None, None
            with torch.no_grad():
                deliver(_capture(block, args[0].detach(), z.detach(), captured, output.detach()))

        return [
            block.register_forward_pre_hook(begin),
            block.attention.register_forward_hook(product),
            block.norm.register_forward_hook(residual),
            block.register_forward_hook(end),
        ]


def _capture(
    block: NonLocal, x: Tensor, z: Tensor, product: tuple[Tensor, Tensor, Tensor, Tensor], residual: Tensor
) -> PairwiseCapture:
    query, key, value, context = (tensor.detach() for tensor in product)
    grid = tuple(x.shape[2:])
    pooled = block.config.sub_sample != "none"
    key_grid = (
        tuple(size // kernel for size, kernel in zip(grid, _pool_kernel(len(grid)), strict=True)) if pooled else grid
    )
    rows = rows_of(x)
    output = residual.reshape(rows.shape)  # (B·N, C) -> (B, N, C)
    concat = block.config.instantiation == "concat"

    def errors() -> dict[str, float]:
        found = _projection_errors(block, x, query, key, value)
        found["W_z"] = relative_error(_output_transform(block, context), output)
        found["x + W_z·A·V"] = relative_error(rows + output, rows_of(z))
        return found

    return PairwiseCapture(
        x=rows,
        output=output,
        query=query.unsqueeze(1),
        key=key.unsqueeze(1),
        value=value.unsqueeze(1),
        context=context.unsqueeze(1),
        instantiation=block.config.instantiation,
        scale=block.attention.logit_scale,
        query_grid=grid,
        key_grid=key_grid,
        projected=block.query is not None,
        errors=errors,
        weight_query=block.attention.weight_query.detach() if concat else None,
        weight_key=block.attention.weight_key.detach() if concat else None,
    )


def _projection_errors(block: NonLocal, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> dict[str, float]:
    wide = at_least_single(x)
    sources = _max_pool(wide) if block.config.sub_sample == "pool_then_project" else wide
    late = block.config.sub_sample == "project_then_pool"

    def project(layer: nn.Linear | None, grid: Tensor, pool: bool) -> Tensor:
        rows = rows_of(grid)
        projected = rows if layer is None else linear(rows, layer)
        if not pool:
            return projected
        return rows_of(_max_pool(projected.mT.unflatten(2, grid.shape[2:])))  # (B, d, *grid) -> (B, M, d)

    return {
        "query": relative_error(project(block.query, wide, False), query),
        "key": relative_error(project(block.key, sources, late), key),
        "value": relative_error(project(block.value, sources, late), value),
    }


def _output_transform(block: NonLocal, context: Tensor) -> Tensor:
    return normed(linear(at_least_single(context), block.output), block.norm)


def _pool_kernel(dimension: int) -> tuple[int, ...]:
    return {1: (2,), 2: (2, 2), 3: (1, 2, 2)}[dimension]


def _max_pool(grid: Tensor) -> Tensor:
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[grid.dim() - 2]
    return pool(grid, _pool_kernel(grid.dim() - 2))
