"""Dilated stages and the deep stem against the networks of torchvision and timm, with their weights."""

from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

from nlprobe.models import ARCHITECTURES, ResNet, ResNetConfig

SMALL = ResNetConfig(layers=(1, 2, 2, 2))
TIMM_STEM = {"conv1.0.": "conv1.", "conv1.1.": "bn1.", "conv1.3.": "conv2.", "conv1.4.": "bn2.", "conv1.6.": "conv3."}


def deep_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm's deep-stem networks with our names."""
    found = {}
    for name, tensor in state.items():
        prefix = next((each for each in TIMM_STEM if name.startswith(each)), None)
        ours = TIMM_STEM[prefix] + name.removeprefix(prefix) if prefix else name
        found[ours.replace("bn1.", "bn3.") if name.startswith("bn1.") else ours] = tensor
    return found


def lively(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with norms that do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
    return network.eval()


def assert_same_features(ours: ResNet, theirs: nn.Module, size: tuple[int, int] = (97, 65)) -> None:
    """Outputs of c4 and c5, and the logits, are equal bit for bit."""
    seen: dict[str, list[Tensor]] = {"layer3": [], "layer4": []}
    for network in (ours, theirs):
        for name, found in seen.items():
            network.get_submodule(name).register_forward_hook(lambda _, __, out, found=found: found.append(out.clone()))
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs(images))
    for ours_out, theirs_out in seen.values():
        assert torch.equal(ours_out, theirs_out)
    stride = ours.config.output_stride
    assert seen["layer4"][0].shape[2:] == tuple(-(-length // stride) for length in size)


@pytest.mark.parametrize("output_stride, replaced", [(16, [False, False, True]), (8, [False, True, True])])
@pytest.mark.parametrize("groups, base_width", [(1, 64), (32, 4)])
def test_dilated_stages_are_torchvisions_bit_for_bit(
    output_stride: int, replaced: list[bool], groups: int, base_width: int
) -> None:
    theirs = lively(
        torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck,
            list(SMALL.layers),
            groups=groups,
            width_per_group=base_width,
            replace_stride_with_dilation=replaced,
        )
    )
    ours = ResNet(replace(SMALL, groups=groups, base_width=base_width, output_stride=output_stride))
    ours.load_state_dict(theirs.state_dict())
    assert_same_features(ours, theirs)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_dilated_basic_blocks_are_timms_bit_for_bit(output_stride: int) -> None:
    theirs = lively(TimmResNet(BasicBlock, SMALL.layers, output_stride=output_stride))
    ours = ResNet(replace(SMALL, block="basic", output_stride=output_stride))
    ours.load_state_dict(theirs.state_dict())
    assert_same_features(ours, theirs)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_with_the_first_block_dilated_too_only_its_3x3_convolution_differs(output_stride: int) -> None:
    kept = SMALL.layers
    theirs = lively(
        torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck,
            list(kept),
            replace_stride_with_dilation=[False, output_stride == 8, True],
        )
    )
    ours = ResNet(replace(SMALL, output_stride=output_stride, dilate_first=True))
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        assert not torch.allclose(ours.eval()(images), theirs(images))
    for stage, dilation in ((theirs.layer3, output_stride == 8 and 2), (theirs.layer4, 32 // output_stride)):
        if dilation:
            stage[0].conv2.dilation = stage[0].conv2.padding = (dilation, dilation)
    assert_same_features(ours, theirs)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_deep_stem_is_timms_bit_for_bit(block: str) -> None:
    kind = {"basic": BasicBlock, "bottleneck": Bottleneck}[block]
    theirs = lively(TimmResNet(kind, SMALL.layers, stem_type="deep", stem_width=64, output_stride=8))
    ours = ResNet(replace(SMALL, block=block, stem="deep", output_stride=8))
    ours.load_state_dict(deep_names(theirs.state_dict()))
    assert_same_features(ours, theirs)


def test_the_deep_resnet101_has_as_many_parameters_as_timms() -> None:
    with torch.device("meta"):
        ours = ResNet(replace(ARCHITECTURES["resnet101"], stem="deep", output_stride=8))
        theirs = timm.create_model("resnet101s")
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters()) == 44_672_936
    stem = 3 * 64 * 9 + 64 * 64 * 9 + 64 * 128 * 9 + 2 * (64 + 64 + 128)
    assert sum(parameter.numel() for name, parameter in ours.named_parameters() if "layer" not in name[:5]) == (
        stem + 2048 * 1000 + 1000
    )


def test_769_pixels_are_97_positions_at_stride_8() -> None:
    network = ResNet(replace(SMALL, width=8, stem="deep", output_stride=8, dilate_first=True)).eval()
    with torch.no_grad():
        x = network.stem(torch.zeros(1, 3, 769, 769))
        assert x.shape == (1, 16, 193, 193)
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = stage(x)
    assert x.shape == (1, 256, 97, 97)


def test_the_weights_of_every_dilation_are_the_same() -> None:
    plain = ResNet(replace(SMALL, width=8))
    for settings in ({"output_stride": 16}, {"output_stride": 8}, {"output_stride": 8, "dilate_first": True}):
        ResNet(replace(plain.config, **settings)).load_state_dict(plain.state_dict())
