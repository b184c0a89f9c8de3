"""The asymmetric blocks: their formulas with pyramid cells cut out one by one."""

import dataclasses
import json
import math

import pytest
import torch
from blocks_reference import assert_value_and_gradients, batch_norm, convolved, randomised, relative_error
from torch import Tensor, nn

from nlprobe.blocks import (
    AsymmetricFusion,
    AsymmetricFusionConfig,
    AsymmetricPyramid,
    AsymmetricPyramidConfig,
    RowTransform,
)
from nlprobe.blocks.asymmetric import PyramidPooling
from nlprobe.errors import ConfigError

PYRAMID = AsymmetricPyramidConfig(dropout=0.0)
FUSION = AsymmetricFusionConfig(reduction=2, low_channels=6, dropout=0.0)


def transformed(layer: RowTransform, x: Tensor) -> Tensor:
    normed = batch_norm(layer.norm, convolved(layer.linear, x))
    leaky = torch.where(normed > 0, normed, 0.01 * normed)
    return {nn.ReLU: normed.relu(), nn.LeakyReLU: leaky, nn.Identity: normed}[type(layer.activation)]


def cells(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The mean of every cell of every grid, (B, C, M)."""
    height, width = x.shape[2:]
    means = []
    for size in sizes:
        for row in range(size):
            for column in range(size):
                rows = slice(row * height // size, math.ceil((row + 1) * height / size))
                columns = slice(column * width // size, math.ceil((column + 1) * width / size))
                means.append(x[:, :, rows, columns].mean((2, 3)))
    return torch.stack(means, 2)


def fused(block: AsymmetricPyramid | AsymmetricFusion, x: Tensor, query: Tensor, low: Tensor) -> Tensor:
    sizes = block.config.pyramid
    key, value = cells(transformed(block.key, low), sizes), cells(convolved(block.value, low), sizes)
    weights = (query.flatten(2).mT @ key * key.shape[1] ** -0.5).softmax(-1)
    context = convolved(block.output, (value @ weights.mT).unflatten(2, x.shape[2:]))
    return transformed(block.fuse, torch.cat([context, x], 1))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("spatial", [(9, 11), (8, 8), (5, 4)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"activation": "leaky_relu", "norm_bias": True, "pyramid": (1, 2)}], ids=str)
def test_the_pyramid_block_is_its_written_out_formula(settings, spatial: tuple[int, int], training: bool) -> None:
    block = randomised(AsymmetricPyramid(8, dataclasses.replace(PYRAMID, **settings))).double().train(training)
    x = torch.randn(2, 8, *spatial, dtype=torch.float64)
    assert_value_and_gradients(block, lambda x: fused(block, x, transformed(block.key, x), x), [x])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("low_spatial", [(9, 11), (16, 12)], ids=str)
def test_the_fusion_block_is_its_written_out_formula(low_spatial: tuple[int, int], training: bool) -> None:
    block = randomised(AsymmetricFusion(8, FUSION)).double().train(training)
    low, high = (torch.randn(2, c, *size, dtype=torch.float64) for c, size in ((6, low_spatial), (8, (9, 11))))
    assert_value_and_gradients(
        block, lambda low, high: fused(block, high, transformed(block.query, high), low), [low, high]
    )


def test_the_fusion_has_no_activation_and_the_pyramid_has_one() -> None:
    x = torch.randn(2, 8, 9, 9)
    assert (randomised(AsymmetricPyramid(8, PYRAMID))(x) >= 0).all()
    assert (randomised(AsymmetricFusion(8, FUSION))(x[:, :6], x) < 0).any()


def test_there_are_110_keys_whatever_the_size_of_the_image() -> None:
    for height, width in ((8, 8), (97, 97), (24, 33), (3, 5)):
        rows = torch.randn(1, height * width, 4)
        pooled = PyramidPooling()(rows, (height, width))
        assert pooled.shape == (1, 110, 4)
        assert relative_error(pooled.mT, cells(rows.mT.unflatten(2, (height, width)), (1, 3, 6, 8))) < 1e-5
    assert AsymmetricPyramidConfig().keys == AsymmetricFusionConfig().keys == 110


def test_moving_positions_between_cells_changes_the_output() -> None:
    block = randomised(AsymmetricPyramid(8, PYRAMID)).double().eval()
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64)
    order = torch.randperm(81)
    shuffled = block(x.flatten(2)[..., order].unflatten(2, (9, 9))).flatten(2)
    assert relative_error(shuffled, block(x).flatten(2)[..., order]) > 1e-6


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_the_formula(bias: bool) -> None:
    def count(block: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in block.parameters())

    shared = AsymmetricPyramid(512, AsymmetricPyramidConfig(norm_bias=bias))
    assert count(shared) == 3 * 512 * 256 + 256 + 512 + 1024 * 512 + 2 * 256 + 2 * 512 + bias * (256 + 512)
    fusion = AsymmetricFusion(2048, AsymmetricFusionConfig(norm_bias=bias))
    projections = 2048 * 256 + 2 * 1024 * 256 + 256 + 256 * 2048 + 2048  # query; key and value; W_z
    assert count(fusion) == projections + 4096 * 2048 + 4 * 256 + 2 * 2048 + bias * (2 * 256 + 2048)


@pytest.mark.parametrize("config", [AsymmetricPyramidConfig(4, (1, 2), "leaky_relu", True, 0.1, False), FUSION])
def test_settings_survive_json_and_print(config) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.as_dict()))) == config
    block = (AsymmetricPyramid if isinstance(config, AsymmetricPyramidConfig) else AsymmetricFusion)(8, config)
    for field in dataclasses.fields(config):
        assert f"{field.name}={getattr(config, field.name)!r}" in str(block)


def test_inputs_that_do_not_fit_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"pools over the cells of an image, and got .* `\(2, 8, 4\)`"):
        AsymmetricPyramid(8)(torch.randn(2, 8, 4))
    with pytest.raises(ConfigError, match=r"`AsymmetricFusion` of 6 channels got an input of shape `\(2, 8, 4, 4\)`"):
        AsymmetricFusion(8, FUSION)(torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4))
