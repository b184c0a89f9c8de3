"""What one call of a module costs: true multiply-accumulates, and the two counters behind the paper's tables.

All count the written-out formula of a non-local block, with its two products of queries by keys, whatever the block
really computes. The 1x1 convolutions of attention blocks are linear layers on rows here, and are counted as the
convolutions that they stand for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn
from torchvision.ops import DeformConv2d

from nlprobe.blocks import (
    AsymmetricFusion,
    AsymmetricPyramid,
    ChannelGate,
    ContextBlock,
    CrissCross,
    CrissCrossAttention,
    GloRe,
    NonLocal,
    PairwiseAttention,
    PointWise,
    PointWiseBranch,
    PositionAttention,
    SourceAttention,
    SqueezeExcitation,
    UnaryTerm,
)


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Args:
        module: The module.
        inputs: Its arguments; tensors, where the module's class has a rule.
        output: What it returned; one tensor, where the module's class has a rule.
        in_block: Whether it is part of an attention block.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    output: Any
    in_block: bool


Counter = Mapping[type[nn.Module], Callable[[Call], int]]
"""Costs by class; a class that is not there, and has no base class there, has no rule."""


def _nothing(call: Call) -> int:
    return 0


def _convolution_taps(module: nn.Module) -> int:
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return prod(module.kernel_size) * module.in_channels // module.groups


def _convolution(call: Call) -> int:
    return call.output.numel() * _convolution_taps(call.module)


def _deformable(call: Call) -> int:
    """As the plain convolution; its interpolation is none of the products."""
    assert isinstance(call.module, DeformConv2d)
    return call.output.numel() * prod(call.module.kernel_size) * call.module.in_channels // call.module.groups


def _transposed(call: Call) -> int:
    """Each input number is multiplied with each tap of each output channel."""
    assert isinstance(call.module, nn.ConvTranspose2d)
    return call.inputs[0].numel() * prod(call.module.kernel_size) * call.module.out_channels // call.module.groups


def _linear(call: Call) -> int:
    assert isinstance(call.module, nn.Linear)
    return call.output.numel() * call.module.in_features


def _pairwise(call: Call) -> int:
    """N M times what makes a weight, d wide or for concat a pair, 2 d wide, and N M times the width of a value."""
    assert isinstance(call.module, PairwiseAttention)
    query, _, value = call.inputs
    width = query.shape[-1] * (2 if call.module.instantiation == "concat" else 1)
    return query.shape[0] * query.shape[1] * value.shape[1] * (width + value.shape[-1])


def _criss_cross(call: Call) -> int:
    """The H + W − 1 keys of each position's cross; the one that is computed to be hidden is not in the formula."""
    query, _, value = call.inputs
    batch, height, width, inner = query.shape
    return int(batch * height * width * (height + width - 1) * (inner + value.shape[-1]))


def _sources(call: Call) -> int:
    """The product of a given map with its values."""
    logits, value = call.inputs
    return int(logits.numel() * value.shape[-1])


def _context(call: Call) -> int:
    """The product of the map with the features; a mean has no multiplications."""
    assert isinstance(call.module, ContextBlock)
    return call.inputs[0].numel() if call.module.mask is not None else 0


def _unary(call: Call) -> int:
    """The product of the one map with the values."""
    return call.inputs[1].numel()


def _global_reasoning(call: Call) -> int:
    """The products of the assignment with the states, and with what the graph makes of them."""
    assert isinstance(call.module, GloRe)
    x, block = call.inputs[0], call.module
    positions = x.numel() // x.shape[1]
    return int(2 * positions * block.assignment.out_features * block.state.out_features)


MACS: Counter = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose2d: _transposed,
    DeformConv2d: _deformable,
    nn.Linear: _linear,
    PairwiseAttention: _pairwise,
    CrissCrossAttention: _criss_cross,
    CrissCross: _nothing,
    SourceAttention: _sources,
    PointWiseBranch: _nothing,
    PointWise: _nothing,
    NonLocal: _nothing,
    ContextBlock: _context,
    UnaryTerm: _unary,
    GloRe: _global_reasoning,
}
"""True multiply-accumulates of products; norms, activations, pooling and sums are none."""


def _paper_convolution(call: Call) -> int:
    bias = int(call.module.bias is not None)
    return call.output.numel() * (_convolution_taps(call.module) + bias)


def _paper_transposed(call: Call) -> int:
    """All taps at every output, although a stride of 2 lets one in four meet an input."""
    assert isinstance(call.module, nn.ConvTranspose2d)
    bias = int(call.module.bias is not None)
    taps = prod(call.module.kernel_size) * call.module.in_channels // call.module.groups
    return int(call.output.numel() * (taps + bias))


def _biased_linear(call: Call) -> int:
    assert isinstance(call.module, nn.Linear)
    return call.output.numel() * (call.module.in_features + int(call.module.bias is not None))


def _paper_linear(call: Call) -> int:
    assert isinstance(call.module, nn.Linear)
    if call.in_block:
        return _biased_linear(call)
    return call.output.numel() * (2 * call.module.in_features - 1)


def _window(call: Call) -> int:
    """The taps of a pool."""
    assert isinstance(call.module, nn.MaxPool2d | nn.MaxPool3d | nn.AvgPool2d | nn.AvgPool3d)
    size = call.module.kernel_size
    return prod(size) if isinstance(size, tuple) else size ** (call.output.dim() - 2)


def _paper_max_pool(call: Call) -> int:
    return call.output.numel() * _window(call)


def _paper_average_pool(call: Call) -> int:
    """One more than the taps of each output, here those of the whole map."""
    return call.inputs[0].numel() + call.output.numel()


def _paper_average_windows(call: Call) -> int:
    return call.output.numel() * (_window(call) + 1)


def _paper_non_local(call: Call) -> int:
    """The max-pool of the input, 2x2 or for clips 1x2x2: every window has four taps."""
    assert isinstance(call.module, NonLocal)
    return call.inputs[0].numel() if call.module.config.sub_sample != "none" else 0


def _paper_context(call: Call) -> int:
    """The product of the map with the features, or the average pool."""
    assert isinstance(call.module, ContextBlock)
    x = call.inputs[0]
    return x.numel() + (0 if call.module.mask is not None else x.shape[0] * x.shape[1])


def _paper_squeeze(call: Call) -> int:
    """The average pool."""
    x = call.inputs[0]
    return x.numel() + x.shape[0] * x.shape[1]


def _paper_channel_gate(call: Call) -> int:
    """The average pool and the max-pool over positions."""
    x = call.inputs[0]
    return 2 * x.numel() + x.shape[0] * x.shape[1]


PAPER_COUNTER: Counter = {
    nn.Conv1d: _paper_convolution,
    nn.Conv2d: _paper_convolution,
    nn.Conv3d: _paper_convolution,
    nn.ConvTranspose2d: _paper_transposed,
    DeformConv2d: _deformable,
    nn.Linear: _paper_linear,
    nn.BatchNorm1d: lambda call: 4 * call.output.numel(),
    nn.BatchNorm2d: lambda call: 4 * call.output.numel(),
    nn.BatchNorm3d: lambda call: 4 * call.output.numel(),
    nn.ReLU: lambda call: call.output.numel(),
    nn.MaxPool2d: _paper_max_pool,
    nn.MaxPool3d: _paper_max_pool,
    nn.AdaptiveAvgPool2d: _paper_average_pool,
    nn.AdaptiveAvgPool3d: _paper_average_pool,
    nn.AvgPool2d: _paper_average_windows,
    nn.AvgPool3d: _paper_average_windows,
    SqueezeExcitation: _paper_squeeze,
    ChannelGate: _paper_channel_gate,
    PairwiseAttention: _pairwise,
    CrissCrossAttention: _criss_cross,
    CrissCross: _nothing,
    SourceAttention: _sources,
    PointWiseBranch: _nothing,
    PointWise: _nothing,
    NonLocal: _paper_non_local,
    ContextBlock: _paper_context,
    UnaryTerm: _unary,
    GloRe: _global_reasoning,
}
"""The counter that gives the "FLOPs (G)" of Tables 5, 7, 8, 9, 10 and 11, where a G is 2^30.

Multiply-accumulates and biases of convolutions, 4 for each output of a batch norm, 1 of a ReLU, the taps of a max-pool,
one more than the taps of an average pool, 2 in - 1 of a linear layer, and products as they are; a softmax, layer norm,
sigmoid, sum, scale, interpolation, or mean or maximum over channels costs nothing.
"""


def _segmentation_context(call: Call) -> int:
    assert isinstance(call.module, ContextBlock)
    return call.inputs[0].numel() if call.module.mask is None else 0


def _projected_again(call: Call) -> int:
    """Queries, keys and values of DANet's attention between positions, which the counter counts twice."""
    assert isinstance(call.module, PositionAttention)
    rows = _positions(call.inputs[0])
    return sum(rows * _taps_and_bias(layer) for layer in (call.module.query, call.module.key, call.module.value))


def _asymmetric_again(call: Call) -> int:
    """Queries, keys and values of ANN with their norms, activations and pools, which the counter counts twice.

    The query of the pyramid block is computed with its keys here; the counter saw it computed on its own, and twice.
    """
    block = call.module
    assert isinstance(block, AsymmetricPyramid | AsymmetricFusion)
    low, high = _positions(call.inputs[0]), _positions(call.inputs[-1])
    width = block.value.out_features
    pools = len(block.config.pyramid) * 2 * low * width
    norms = 3 * width  # 2 for the norm and 1 for the activation of every number
    keys = low * (_taps_and_bias(block.key.linear) + norms)
    values = low * _taps_and_bias(block.value)
    if isinstance(block, AsymmetricFusion):
        return pools + keys + values + high * (_taps_and_bias(block.query.linear) + norms)
    return pools + keys + values + 2 * keys


def _positions(x: Any) -> int:
    return x.numel() // x.shape[1]


def _taps_and_bias(layer: nn.Linear) -> int:
    return layer.out_features * (layer.in_features + int(layer.bias is not None))


SEGMENTATION_COUNTER: Counter = {
    nn.Conv1d: _paper_convolution,
    nn.Conv2d: _paper_convolution,
    nn.Conv3d: _paper_convolution,
    nn.ConvTranspose2d: _paper_transposed,
    DeformConv2d: _deformable,
    nn.Linear: _biased_linear,
    nn.BatchNorm1d: lambda call: 2 * call.output.numel(),
    nn.BatchNorm2d: lambda call: 2 * call.output.numel(),
    nn.BatchNorm3d: lambda call: 2 * call.output.numel(),
    nn.ReLU: lambda call: call.output.numel(),
    nn.MaxPool2d: lambda call: call.inputs[0].numel(),
    nn.MaxPool3d: lambda call: call.inputs[0].numel(),
    nn.AdaptiveAvgPool2d: lambda call: call.inputs[0].numel(),
    nn.AdaptiveAvgPool3d: lambda call: call.inputs[0].numel(),
    nn.AvgPool2d: lambda call: call.inputs[0].numel(),
    nn.AvgPool3d: lambda call: call.inputs[0].numel(),
    SqueezeExcitation: lambda call: call.inputs[0].numel(),
    ChannelGate: lambda call: 2 * call.inputs[0].numel(),
    PairwiseAttention: _pairwise,
    CrissCrossAttention: _criss_cross,
    CrissCross: _nothing,
    SourceAttention: _sources,
    PointWiseBranch: _nothing,
    PointWise: _nothing,
    NonLocal: _nothing,
    ContextBlock: _segmentation_context,
    UnaryTerm: _nothing,
    GloRe: _global_reasoning,
    PositionAttention: _projected_again,
    AsymmetricPyramid: _asymmetric_again,
    AsymmetricFusion: _asymmetric_again,
}
"""The counter that gives the "FLOPs (G)" of Tables 12 and 13, where a G is 10^9.

Multiply-accumulates and biases of convolutions, 2 for each output of a batch norm, 1 of a ReLU, 1 for each input of a
pool, and the products of blocks that compare positions, but not the product of a GC block's map with the features.
The projections of DANet and ANN count twice.
"""

WITHOUT_MACS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._BatchNorm,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.GroupNorm,
    nn.Identity,
    nn.LayerNorm,
    nn.LeakyReLU,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.ReLU,
)
"""Modules known to have no products; they are reported with the rest that was not counted."""
