"""Adapters for the blocks of the asymmetric non-local network, whose keys are the cells of a pyramid."""

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import AsymmetricFusion, AsymmetricPyramid
from nlprobe.probe.adapters.parts import Calls, hook_parts
from nlprobe.probe.adapters.protocol import Deliver, PairwiseCapture
from nlprobe.probe.adapters.recompute import (
    at_least_single,
    fusion_errors,
    linear,
    pyramid,
    relative_error,
    row_transform,
    rows_of,
)
from nlprobe.probe.watch import Watch


class AsymmetricAdapter:
    """Reads q, k, v and A·V at the block's `attention`, the context at its `output`, the result at its `fuse`.

    v_i is a position of x (the high map of an `AsymmetricFusion`) and of the queries; a v_j of `key` is one of the M
    pyramid cells, 110 by default. ω_i is a row over these M cells, which are no grid: they overlap, and no map can be
    drawn of them. `output` is the context W_z·A·V before the fusion: it stands beside x there and is not added to it,
    so there is no `update`.
    """

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is one of the two blocks."""
        return isinstance(module, AsymmetricPyramid | AsymmetricFusion)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """All settings."""
        assert isinstance(module, AsymmetricPyramid | AsymmetricFusion)
        return module.config.block, {"channels": module.channels} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block, its attention, its W_z and its fusion."""
        assert isinstance(module, AsymmetricPyramid | AsymmetricFusion)
        block = module
        parts = {"attention": block.attention, "output": block.output, "fuse": block.fuse}

        def read(args: tuple[Tensor, ...], z: Tensor, calls: Calls) -> PairwiseCapture:
            return _capture(block, args[0], args[-1], z, calls)

        return hook_parts(block, parts, read, deliver)


def _capture(
    block: AsymmetricPyramid | AsymmetricFusion, low: Tensor, high: Tensor, z: Tensor, calls: Calls
) -> PairwiseCapture:
    query, key, value = calls["attention"][0].inputs
    context, output = calls["attention"][0].output, calls["output"][0].output
    rows = rows_of(high)

    def errors() -> dict[str, float]:
        sources, spatial = at_least_single(rows_of(low)), tuple(low.shape[2:])
        projection = block.query if isinstance(block, AsymmetricFusion) else block.key
        sizes = block.config.pyramid
        found = {
            "query": relative_error(row_transform(rows, projection), query),
            "key": relative_error(pyramid(row_transform(sources, block.key), spatial, sizes), key),
            "value": relative_error(pyramid(linear(sources, block.value), spatial, sizes), value),
            "W_z": relative_error(linear(at_least_single(context), block.output), output),
        }
        dropped = block.training and block.config.dropout > 0
        return found | fusion_errors(block.fuse, output, rows, calls["fuse"][0].output, None if dropped else z)

    return PairwiseCapture(
        x=rows,
        output=output,
        query=query.unsqueeze(1),
        key=key.unsqueeze(1),
        value=value.unsqueeze(1),
        context=context.unsqueeze(1),
        instantiation="embedded_gaussian",
        scale=block.attention.logit_scale,
        query_grid=tuple(high.shape[2:]),
        key_grid=(),
        projected=True,
        errors=errors,
        self_attention=False,
        residual=False,
    )
