"""The residual networks against torchvision's, and blocks at every site."""

from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck

from nlprobe.blocks import PLACES, ContextConfig, NonLocal, NonLocalConfig
from nlprobe.models import ARCHITECTURES, Insertion, ResNet, ResNetConfig

SMALL = ResNetConfig(layers=(1, 2, 1, 1), width=8, classes=5)
VISIBLE = NonLocalConfig(zero_init=False)


def torchvision_twin(name: str) -> nn.Module:
    if name == "resnext101_32x4d":  # the one that torchvision has no builder for
        return torchvision.models.ResNet(TorchvisionBottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)
    return getattr(torchvision.models, name)()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_and_shapes_are_torchvisions_in_its_order(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = ResNet(ARCHITECTURES[name]).state_dict(), torchvision_twin(name).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [(key, value.shape) for key, value in theirs.items()]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvision_weights_load_strictly_and_give_its_logits_bit_for_bit(name: str, device: torch.device) -> None:
    theirs = torchvision_twin(name).to(device).eval()
    ours = ResNet(ARCHITECTURES[name]).to(device)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 96, device=device)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"resnet18", "resnet50", "resnext50_32x4d"}))
def test_the_deep_and_wide_ones_give_torchvisions_logits_too(name: str, device: torch.device) -> None:
    test_torchvision_weights_load_strictly_and_give_its_logits_bit_for_bit(name, device)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_one_seed_draws_torchvisions_weights(name: str) -> None:
    torch.manual_seed(5)
    theirs = torchvision_twin(name).state_dict()
    torch.manual_seed(5)
    ours = ResNet(ARCHITECTURES[name]).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_training_gradients_equal_torchvisions() -> None:
    theirs = torchvision.models.resnet18(num_classes=7)
    ours = ResNet(replace(ARCHITECTURES["resnet18"], classes=7))
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for network in (theirs, ours):
        network(images).square().sum().backward()
    for ours_parameter, theirs_parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours_parameter.grad, theirs_parameter.grad)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_zero_init_residual_makes_every_branch_start_at_zero(kind: str) -> None:
    network = ResNet(replace(SMALL, block=kind, zero_init_residual=True))
    assert len(list(network.residual_blocks())) == sum(SMALL.layers)
    for block in network.residual_blocks():
        assert not block.last_norm.weight.any()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("stage", ["c2", "c3", "c4", "c5"])
def test_a_block_stands_at_its_site_and_is_used(place: str, kind: str, stage: str, device: torch.device) -> None:
    config = replace(SMALL, block=kind, insertions=(Insertion(VISIBLE, stage, (-1,), place),))
    network = ResNet(config).to(device).eval()
    (site,) = network.sites()
    block = network.get_submodule(site.replace(":", "."))
    assert isinstance(block, NonLocal)
    images = torch.randn(1, 3, 64, 64, device=device)
    with torch.no_grad():
        before = network(images)
        block.output.weight.mul_(10.0)
        assert not torch.allclose(network(images), before)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_the_three_places_see_branch_sum_and_output(kind: str) -> None:
    blocks = tuple(Insertion(NonLocalConfig(), "c3", (1,), place) for place in PLACES)
    network = ResNet(replace(SMALL, block=kind, insertions=blocks)).eval()
    seen: dict[str, torch.Tensor] = {}
    unit = network.layer2[1]
    unit.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0].clone()))
    unit.last_norm.register_forward_hook(lambda module, inputs, output: seen.update(branch=output.clone()))
    for place in PLACES:
        unit.get_submodule(place).register_forward_pre_hook(
            lambda module, inputs, place=place: seen.update({place: inputs[0].clone()})
        )
    with torch.no_grad():
        network(torch.randn(1, 3, 64, 64))
    assert network.sites() == ["layer2.1:after_1x1", "layer2.1:after_add", "layer2.1:after_block"]
    assert torch.equal(seen["after_1x1"], seen["branch"])
    assert torch.equal(seen["after_add"], seen["branch"] + seen["x"])
    assert torch.equal(seen["after_block"], (seen["branch"] + seen["x"]).relu())


def test_a_block_that_starts_as_the_identity_changes_no_logit() -> None:
    blocks = (
        Insertion(NonLocalConfig(), "c4", "all", "after_add"),
        Insertion(ContextConfig.gc(4), "c3", "all", "after_1x1"),
    )
    plain, extended = ResNet(SMALL).eval(), ResNet(replace(SMALL, insertions=blocks)).eval()
    extended.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain(images), extended(images))


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (32, 32)])
def test_any_input_size_gives_logits(size: tuple[int, int]) -> None:
    config = replace(SMALL, insertions=(Insertion(NonLocalConfig(), "c3"),))
    with torch.no_grad():
        assert ResNet(config).eval()(torch.randn(2, 3, *size)).shape == (2, 5)


def test_channels_last_gives_the_same_logits() -> None:
    config = replace(SMALL, insertions=(Insertion(VISIBLE, "c4", "all", "after_add"),))
    network, images = ResNet(config).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        actual = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected)


def test_every_parameter_gets_a_gradient() -> None:
    insertions = tuple(Insertion(VISIBLE, stage, "all", "after_block") for stage in ("c2", "c3", "c4", "c5"))
    network = ResNet(replace(SMALL, insertions=insertions))
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
