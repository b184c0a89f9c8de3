"""The context operators of segmentation written out in float64 for one image, and copies with weights far from zero."""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from nlprobe.blocks import (
    AsymmetricFusion,
    AsymmetricFusionConfig,
    AsymmetricPyramid,
    AsymmetricPyramidConfig,
    ChannelAttention,
    Disentangled,
    DisentangledConfig,
    ObjectContext,
    PositionAttention,
    RowTransform,
)

Block = TypeVar("Block", bound=nn.Module)
CHANNELS = 16


def drawn(block: Block) -> Block:
    """A block in evaluation mode whose weights, gates and norms are all at random."""
    with torch.no_grad():
        for name, tensor in block.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("norm.weight") or name.endswith("gamma"):
                tensor.uniform_(0.4, 0.9)
            elif tensor.dtype.is_floating_point:
                tensor.normal_(std=0.3)
    return block.eval()


def operators() -> dict[str, nn.Module]:
    """One of each kind, on 16 channels."""
    return {
        "position_attention": drawn(PositionAttention(CHANNELS)),
        "channel_attention": drawn(ChannelAttention(CHANNELS)),
        "object_context": drawn(ObjectContext(CHANNELS)),
        "asymmetric_pyramid": drawn(AsymmetricPyramid(CHANNELS, AsymmetricPyramidConfig(pyramid=(1, 2, 3)))),
        "asymmetric_fusion": drawn(AsymmetricFusion(CHANNELS, AsymmetricFusionConfig(4, low_channels=16))),
        "dnl_paper": drawn(Disentangled(CHANNELS)),
        "dnl_mmseg": drawn(Disentangled(CHANNELS, DisentangledConfig.mmseg())),
        "dnl_object_detection": drawn(Disentangled(CHANNELS, DisentangledConfig.object_detection())),
        "dnl_scene_parsing": drawn(Disentangled(CHANNELS, DisentangledConfig.scene_parsing())),
        "dnl_non_local_2d": drawn(Disentangled(CHANNELS, DisentangledConfig.non_local_2d())),
        "dnl_whitened_only": drawn(Disentangled(CHANNELS, DisentangledConfig(unary="none"))),
    }


def inputs_of(block: nn.Module, count: int = 2, seed: int = 1) -> tuple[Tensor, ...]:
    """What the block is called with."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, CHANNELS, 6, 7, generator=generator)
    if isinstance(block, AsymmetricFusion):
        return torch.randn(count, CHANNELS, 12, 9, generator=generator), x
    return (x,)


@torch.no_grad()
def written_out(block: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Every quantity of one image, (1, C, H, W) inputs; `pairwise` and `unary` where the block has both maps."""
    block = copy.deepcopy(block).double()
    maps = [tensor.double()[0] for tensor in inputs]
    return {
        PositionAttention: _position,
        ChannelAttention: _channel,
        ObjectContext: _object_context,
        AsymmetricPyramid: _asymmetric,
        AsymmetricFusion: _asymmetric,
        Disentangled: _disentangled,
    }[type(block)](block, *maps)


def rows(grid: Tensor) -> Tensor:
    return grid.flatten(1).T


def normed(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def transformed(layer: RowTransform, x: Tensor) -> Tensor:
    return normed(layer.norm, layer.linear(x)).relu()


def _position(block: PositionAttention, grid: Tensor) -> dict[str, Tensor]:
    x = rows(grid)
    query, key = block.query(x), block.key(x)
    prod = query @ key.T
    att = prod.softmax(1)
    output = block.gate.gamma * att @ block.value(x)
    return {"input": x, "key": key, "query": query, "prod": prod, "att": att, "output": output}


def _channel(block: ChannelAttention, grid: Tensor) -> dict[str, Tensor]:
    x = grid.flatten(1)  # a channel is a row
    prod = x @ x.T
    att = (prod.amax(1, keepdim=True) - prod).softmax(1)
    return {"input": x, "prod": prod, "att": att, "output": block.gate.gamma * att @ x}


def _object_context(block: ObjectContext, grid: Tensor) -> dict[str, Tensor]:
    x = rows(grid)
    key = transformed(block.key, x)
    prod = key @ key.T
    att = (prod / math.sqrt(key.shape[1])).softmax(1)
    output = block.output(att @ block.value(x))
    return {"input": x, "key": key, "query": key, "prod": prod, "att": att, "output": output}


def _asymmetric(block: AsymmetricPyramid | AsymmetricFusion, low: Tensor, high: Tensor | None = None):
    x = rows(low if high is None else high)
    query = transformed(block.key if isinstance(block, AsymmetricPyramid) else block.query, x)
    spatial = low.shape[1:]

    def cells(source: Tensor) -> Tensor:
        grid = source.T.unflatten(1, spatial)
        return torch.cat(
            [nn.functional.adaptive_avg_pool2d(grid, size).flatten(1) for size in block.config.pyramid], 1
        ).T

    key, value = cells(transformed(block.key, rows(low))), cells(block.value(rows(low)))
    prod = query @ key.T
    att = (prod / math.sqrt(key.shape[1])).softmax(1)
    output = block.output(att @ value)
    return {"input": x, "key": key, "query": query, "prod": prod, "att": att, "output": output}


def _disentangled(block: Disentangled, grid: Tensor) -> dict[str, Tensor]:
    config, x = block.config, rows(grid)
    query, key, value = block.query(x), block.key(x), block.value(x)
    if config.whitening == "positions":
        query, key = query - query.mean(0), key - key.mean(0)
    elif config.whitening == "image":
        query, key = query - query.mean(), key - key.mean()
    elif config.whitening == "mixed":
        query, key = query - query.mean(1, keepdim=True), key - key.mean(0)
    prod = query @ key.T
    pairwise = (prod * config.logit_scale(CHANNELS)).softmax(1)
    found = {"input": x, "key": key, "query": query, "prod": prod}

    def project(y: Tensor) -> Tensor:
        projected = block.output(y)
        return normed(block.norm, projected) if isinstance(block.norm, nn.BatchNorm1d) else projected

    if config.unary == "none":
        return found | {"att": pairwise, "output": project(pairwise @ value)}
    if config.unary == "own":
        unary = block.context.mask(x).softmax(0).squeeze(1)
        t = block.context.transform((unary @ x)[None])
        return found | {"att": pairwise, "unary": unary, "output": project(pairwise @ value) + t}
    unary = block.unary.mask(x).softmax(0).squeeze(1)
    if config.output == "gamma":
        att = block.gate.gamma * pairwise + unary
        output = att @ value
    else:
        att = pairwise + unary
        apart = config.output == "project_apart"
        output = project(pairwise @ value) + project((unary @ value)[None]) if apart else project(att @ value)
    return found | {"att": att, "pairwise": pairwise, "unary": unary, "output": output}
