"""Files of random weights in each project's layout, and the outputs of the project's network and ours."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

from nlprobe.blocks import NonLocalConfig
from nlprobe.errors import CheckpointError
from nlprobe.models import ARCHITECTURES, Insertion, ResNet, ResNetConfig, load_backbone

SMALL = ResNetConfig(layers=(1, 2, 1, 1))
SCENE_PARSING = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2", "conv1.6": "conv3"}
"""Timm's modules of a deep stem, and the scene-parsing project's; timm's `bn1` is its `bn3`."""


def lively(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with norms that do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
    return network.eval()


def assert_same_logits(config: ResNetConfig, theirs: nn.Module, path: Path) -> None:
    """A network of ours with the weights in the file computes what theirs does, bit for bit."""
    ours = ResNet(config).eval()
    load_backbone(ours, path)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def scene_parsing_names(theirs: nn.Module) -> dict[str, Tensor]:
    """The weights of timm's deep-stem network as the scene-parsing project saves them: old, and with its own norms."""
    found = {}
    for name, tensor in theirs.state_dict().items():
        module, _, rest = name.rpartition(".")
        module = "bn3" if module == "bn1" else SCENE_PARSING.get(module, module)
        if rest == "num_batches_tracked":
            found[f"{module}._running_iter"] = torch.ones(1)
        else:
            found[f"{module}.{rest}"] = tensor
        if rest in ("running_mean", "running_var"):
            found[f"{module}._tmp_{rest}"] = tensor.clone()
    return found


def test_timms_resnext_is_a_file_of_ours(tmp_path: Path) -> None:
    theirs = lively(TimmResNet(Bottleneck, SMALL.layers, cardinality=32, base_width=4))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    assert_same_logits(replace(SMALL, groups=32, base_width=4), theirs, tmp_path / "model.safetensors")


@pytest.mark.slow
def test_timms_resnext101_32x4d_is_a_file_of_ours(tmp_path: Path) -> None:
    theirs = lively(timm.create_model("resnext101_32x4d"))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    assert_same_logits(ARCHITECTURES["resnext101_32x4d"], theirs, tmp_path / "weights.pth")


@pytest.mark.parametrize("stem, width", [("deep", 64), ("narrow_deep", 32)])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_timms_deep_stem_is_recognised(tmp_path: Path, block: str, stem: str, width: int) -> None:
    kind = {"basic": BasicBlock, "bottleneck": Bottleneck}[block]
    theirs = lively(TimmResNet(kind, SMALL.layers, stem_type="deep", stem_width=width))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    assert_same_logits(replace(SMALL, block=block, stem=stem), theirs, tmp_path / "weights.pth")


def test_the_scene_parsing_projects_file_is_recognised(tmp_path: Path) -> None:
    theirs = lively(TimmResNet(Bottleneck, SMALL.layers, stem_type="deep", stem_width=64))
    torch.save(scene_parsing_names(theirs), tmp_path / "resnet-imagenet.pth")
    assert_same_logits(replace(SMALL, stem="deep"), theirs, tmp_path / "resnet-imagenet.pth")


@pytest.mark.slow
def test_the_scene_parsing_projects_resnet101_fits_the_dilated_one(tmp_path: Path) -> None:
    theirs = lively(timm.create_model("resnet101s", output_stride=8))
    torch.save(scene_parsing_names(theirs), tmp_path / "resnet101-imagenet.pth")
    config = replace(ARCHITECTURES["resnet101"], stem="deep", output_stride=8)
    assert_same_logits(config, theirs, tmp_path / "resnet101-imagenet.pth")


def test_a_backbone_without_its_classifier_leaves_ours_alone_and_so_inserted_blocks() -> None:
    theirs = lively(TimmResNet(Bottleneck, SMALL.layers, stem_type="deep", stem_width=64))
    weights = {name: tensor for name, tensor in scene_parsing_names(theirs).items() if not name.startswith("fc.")}
    ours = ResNet(replace(SMALL, stem="deep", classes=7, insertions=(Insertion(NonLocalConfig(), "c3", (0,)),)))
    kept = {name: tensor.clone() for name, tensor in ours.state_dict().items() if "after" in name or "fc." in name}
    load_backbone(ours, weights, classifier=False)
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in kept.items())
    assert torch.equal(ours.bn3.running_mean, theirs.bn1.running_mean)
    with pytest.raises(CheckpointError, match=r"lacks `fc\.weight`"):
        load_backbone(ours, weights)


@pytest.mark.parametrize("stem, other", [("plain", "deep"), ("deep", "plain"), ("deep", "narrow_deep")])
def test_another_stem_is_refused_in_words(stem: str, other: str) -> None:
    weights = ResNet(replace(SMALL, width=8, stem=stem)).state_dict()
    with pytest.raises(CheckpointError, match=f"has a {stem} stem, the network a {other} one\nset `stem`.*`{stem}`"):
        load_backbone(ResNet(replace(SMALL, width=8, stem=other)), weights)


def test_shortcuts_that_average_are_refused_in_words() -> None:
    theirs = TimmResNet(Bottleneck, SMALL.layers, stem_type="deep", stem_width=64, avg_down=True)
    with pytest.raises(CheckpointError, match="shortcuts average before they project"):
        load_backbone(ResNet(replace(SMALL, stem="deep")), theirs.state_dict())


@pytest.mark.parametrize(
    "prefix, words",
    [
        ("module.", "as DataParallel does: it begins with `module.conv1.weight`"),
        ("backbone.", "as an OpenMMLab checkpoint or a detector does"),
        ("stem.", "as Detectron2 does"),
        ("resnet.embedder.", "as transformers does"),
        ("unheard_of.", "is in no known layout"),
    ],
)
def test_other_layouts_are_refused_in_words(prefix: str, words: str) -> None:
    weights = {f"{prefix}{name}": tensor for name, tensor in ResNet(replace(SMALL, width=8)).state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_backbone(ResNet(replace(SMALL, width=8)), weights)
    with pytest.raises(CheckpointError, match="it is empty"):
        load_backbone(ResNet(replace(SMALL, width=8)), {})


def test_torchvisions_file_is_recognised(tmp_path: Path) -> None:
    theirs = lively(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(SMALL.layers)))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    assert_same_logits(SMALL, theirs, tmp_path / "weights.pth")
