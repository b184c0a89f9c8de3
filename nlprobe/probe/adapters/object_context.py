"""Adapter for OCNet's object context."""

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import ObjectContext
from nlprobe.probe.adapters.parts import Calls, hook_parts
from nlprobe.probe.adapters.protocol import Deliver, PairwiseCapture
from nlprobe.probe.adapters.recompute import (
    at_least_single,
    fusion_errors,
    linear,
    relative_error,
    row_transform,
    rows_of,
)
from nlprobe.probe.watch import Watch


class ObjectContextAdapter:
    """Reads q, k, v and A·V at the block's `attention`, the context at its `output`, the result at its `fuse`.

    v_i is a position of x, and of the keys, which are the queries too (after norm and activation): their two records
    are equal. ω_i is its row over the N positions. `output` is the context W_z·A·V before the fusion: it stands beside
    x there and is not added to it, so there is no `update`.
    """

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is an `ObjectContext`."""
        return isinstance(module, ObjectContext)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """All settings."""
        assert isinstance(module, ObjectContext)
        return module.config.block, {"channels": module.channels} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block, its attention, its W_z and its fusion."""
        assert isinstance(module, ObjectContext)
        block = module
        parts = {"attention": block.attention, "output": block.output, "fuse": block.fuse}

        def read(args: tuple[Tensor, ...], z: Tensor, calls: Calls) -> PairwiseCapture:
            return _capture(block, args[0], z, calls)

        return hook_parts(block, parts, read, deliver)


def _capture(block: ObjectContext, x: Tensor, z: Tensor, calls: Calls) -> PairwiseCapture:
    query, key, value = calls["attention"][0].inputs
    context, output = calls["attention"][0].output, calls["output"][0].output
    rows, grid = rows_of(x), tuple(x.shape[2:])

    def errors() -> dict[str, float]:
        single = at_least_single(rows)
        shared = row_transform(single, block.key)
        found = {
            "query": relative_error(shared, query),
            "key": relative_error(shared, key),
            "value": relative_error(linear(single, block.value), value),
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
        query_grid=grid,
        key_grid=grid,
        projected=True,
        errors=errors,
        residual=False,
    )
