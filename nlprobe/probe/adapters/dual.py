"""Adapters for DANet's two blocks: attention between positions, and between channels."""

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import ChannelAttention, PositionAttention
from nlprobe.probe.adapters.parts import Calls, hook_parts
from nlprobe.probe.adapters.protocol import Deliver, PairwiseCapture
from nlprobe.probe.adapters.recompute import at_least_single, linear, relative_error, rows_of
from nlprobe.probe.watch import Watch


class PositionAttentionAdapter:
    """Reads q, k, v and A·V at the block's `attention`, the output γ·A·V at its `gate`, x and z at the block.

    All six quantities, as for an embedded Gaussian non-local block: v_i is a position of x, W_k x, W_q x and of
    z − x = γ·A·V, and ω_i its row over the N positions.
    """

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a `PositionAttention`."""
        return isinstance(module, PositionAttention)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """All settings."""
        assert isinstance(module, PositionAttention)
        return module.config.block, {"channels": module.channels} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block, its attention and its gate."""
        assert isinstance(module, PositionAttention)
        block = module

        def read(args: tuple[Tensor, ...], z: Tensor, calls: Calls) -> PairwiseCapture:
            return _position_capture(block, args[0], z, calls)

        return hook_parts(block, {"attention": block.attention, "gate": block.gate}, read, deliver)


class ChannelAttentionAdapter:
    """Reads the channels and A·X at the block's `attention`, the output γ·A·X at its `gate`, x and z at the block.

    The positions of this block are channels: v_a is a channel's N values, of x and of z − x = γ·A·X, and ω_a its row
    over the C channels. The logits are −X Xᵀ (the maximum that is added to them is one number for each row and leaves
    the softmax as it is), with `prod` the row of X Xᵀ and −1 the scale. There are no projections, hence no `key` and
    `query`. With images of several sizes the data set's mean channel is not defined, nor are the energy shares.
    """

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a `ChannelAttention`."""
        return isinstance(module, ChannelAttention)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """All settings."""
        assert isinstance(module, ChannelAttention)
        return module.config.block, {"channels": module.channels} | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the block, its attention and its gate."""
        assert isinstance(module, ChannelAttention)
        block = module

        def read(args: tuple[Tensor, ...], z: Tensor, calls: Calls) -> PairwiseCapture:
            return _channel_capture(block, args[0], z, calls)

        return hook_parts(block, {"attention": block.attention, "gate": block.gate}, read, deliver)


def _position_capture(block: PositionAttention, x: Tensor, z: Tensor, calls: Calls) -> PairwiseCapture:
    query, key, value = calls["attention"][0].inputs
    context, output = calls["attention"][0].output, calls["gate"][0].output
    rows, grid = rows_of(x), tuple(x.shape[2:])

    def errors() -> dict[str, float]:
        wide = at_least_single(rows)
        return {
            "query": relative_error(linear(wide, block.query), query),
            "key": relative_error(linear(wide, block.key), key),
            "value": relative_error(linear(wide, block.value), value),
            "γ·A·V": relative_error(at_least_single(block.gate.gamma) * at_least_single(context), output),
            "x + γ·A·V": relative_error(rows + output, rows_of(z)),
        }

    return PairwiseCapture(
        x=rows,
        output=output,
        query=query.unsqueeze(1),
        key=key.unsqueeze(1),
        value=value.unsqueeze(1),
        context=context.unsqueeze(1),
        instantiation="embedded_gaussian",
        scale=1.0,
        query_grid=grid,
        key_grid=grid,
        projected=True,
        errors=errors,
    )


def _channel_capture(block: ChannelAttention, x: Tensor, z: Tensor, calls: Calls) -> PairwiseCapture:
    query, key, value = calls["attention"][0].inputs
    context, output = calls["attention"][0].output, calls["gate"][0].output
    channels = x.flatten(2)

    def errors() -> dict[str, float]:
        wide = at_least_single(channels)
        return {
            "query": relative_error(wide, query),
            "key": relative_error(wide, key),
            "value": relative_error(wide, value),
            "γ·A·X": relative_error(at_least_single(block.gate.gamma) * at_least_single(context), output),
            "x + γ·A·X": relative_error(channels + output, z.flatten(2)),
        }

    return PairwiseCapture(
        x=channels,
        output=output,
        query=query.unsqueeze(1),
        key=key.unsqueeze(1),
        value=value.unsqueeze(1),
        context=context.unsqueeze(1),
        instantiation="gaussian",
        scale=-1.0,
        query_grid=(block.channels,),
        key_grid=(),
        projected=False,
        errors=errors,
    )
