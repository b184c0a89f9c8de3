"""Deformable convolution: its formula written out, its start as the plain one, and trunks that have it."""

import json
from dataclasses import replace
from math import floor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.models import ResNetConfig, build, config_from_dict, load_backbone
from nlprobe.models.deformable import DeformableConvolution

PLAIN = ResNetConfig(layers=(1, 2, 1, 1), width=8, classes=0)
DEFORMED = replace(PLAIN, deformable=("c3", "c5"))


def at(x: Tensor, y: float, z: float) -> Tensor:
    """x (C, H, W) between positions; zero outside."""
    value = torch.zeros(x.shape[0], dtype=x.dtype)
    for row in (floor(y), floor(y) + 1):
        for column in (floor(z), floor(z) + 1):
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                value += (1 - abs(y - row)) * (1 - abs(z - column)) * x[:, row, column]
    return value


@pytest.mark.parametrize("stride, dilation, groups", [(1, 1, 1), (2, 1, 2), (1, 2, 4)])
def test_it_is_the_written_out_formula(stride: int, dilation: int, groups: int) -> None:
    layer = DeformableConvolution(4, 8, stride, dilation, groups).double()
    torch.nn.init.normal_(layer.offset.weight, std=0.3)
    torch.nn.init.normal_(layer.offset.bias, std=0.5)
    x = torch.randn(1, 4, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        offsets = F.conv2d(x, layer.offset.weight, layer.offset.bias, stride, dilation, dilation)[0]
        found = layer(x)[0]
        assert found.shape[1:] == offsets.shape[1:]
        expected = torch.zeros_like(found)
        width_in, width = 4 // groups, 8 // groups
        for row in range(found.shape[1]):
            for column in range(found.shape[2]):
                for tap in range(9):
                    down = row * stride + (tap // 3 - 1) * dilation + float(offsets[2 * tap, row, column])
                    right = column * stride + (tap % 3 - 1) * dilation + float(offsets[2 * tap + 1, row, column])
                    seen = at(x[0], down, right)
                    for group in range(groups):
                        own = slice(group * width, (group + 1) * width)
                        weight = layer.weight[own, :, tap // 3, tap % 3]
                        expected[own, row, column] += weight @ seen[group * width_in : (group + 1) * width_in]
    torch.testing.assert_close(found, expected)


def test_it_starts_as_the_plain_convolution_and_learns_to_look_elsewhere() -> None:
    layer = DeformableConvolution(4, 8, 2).double()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, stride=2, padding=1))
    layer(x).square().sum().backward()
    assert layer.offset.weight.grad.abs().max() > 0
    assert layer.offset.bias.grad.shape == (18,)


def test_a_trunk_has_the_plain_ones_weights_and_results_before_it_has_learnt() -> None:
    plain, deformed = build(PLAIN, seed=2).eval(), build(DEFORMED, seed=2).eval()
    state = deformed.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    added = {name.removesuffix(".weight") for name in set(state) - set(plain.state_dict()) if name.endswith(".weight")}
    assert added == {"layer2.0.conv2.offset", "layer2.1.conv2.offset", "layer4.0.conv2.offset"}
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(deformed.features(images).values(), plain.features(images).values(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_published_weights_have_no_offsets_and_load() -> None:
    plain, deformed = build(replace(PLAIN, classes=5), seed=0), build(DEFORMED, seed=1)
    before = {name: tensor.clone() for name, tensor in deformed.state_dict().items() if ".offset." in name}
    load_backbone(deformed, plain.state_dict(), classifier=False)
    state = deformed.state_dict()
    assert torch.equal(state["layer2.1.conv2.weight"], plain.state_dict()["layer2.1.conv2.weight"])
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


def test_configurations_survive_json_and_those_that_make_no_network_are_refused() -> None:
    assert config_from_dict(json.loads(json.dumps(DEFORMED.as_dict()))) == DEFORMED
    with pytest.raises(ConfigError, match="unknown stage of a residual network: `c6`"):
        replace(PLAIN, deformable=("c6",))
    with pytest.raises(ConfigError, match="a basic block has no deformable convolution"):
        replace(PLAIN, block="basic", deformable=("c3",))


def test_the_epsilon_of_the_trunks_norms_is_a_setting() -> None:
    network = build(replace(PLAIN, norm_epsilon=0.0), seed=0)
    assert {module.eps for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {0.0}
    with pytest.raises(ConfigError, match="`norm_epsilon` is -1"):
        replace(PLAIN, norm_epsilon=-1.0)
