"""Torchvision's Faster and Mask R-CNN: their weights in our network give their boxes, masks and losses."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from models.detection_reference import SIZES, images, torchvision_detector, truths
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from nlprobe.checkpoints import about, read_foreign
from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.models import DetectionNetwork, detection_losses
from nlprobe.models.proposals import PyramidAnchors

PIXELS = {"order": "rgb", "mean": "123.675,116.28,103.53", "std": "58.395,57.12,57.375", "resize": "800"}
FROZEN = {"epsilon": "0", **PIXELS}

OLD_NAMES = (
    (r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2."),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}."),
)
"""From the names in torchvision's code to the older ones in the files that it publishes of its first version."""


def saved(path: Path, network: nn.Module, *, old: bool = False) -> Path:
    weights = {}
    for name, tensor in network.state_dict().items():
        for pattern, earlier in OLD_NAMES if old else ():
            name = re.sub(pattern, earlier, name)
        weights[name] = tensor
    torch.save(weights, path)
    return path


def ours(path: Path, settings: dict[str, str] = FROZEN) -> DetectionNetwork:
    network = read_foreign(path, settings).model
    assert isinstance(network, DetectionNetwork)
    return network


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_our_network_gives_torchvisions_boxes_and_masks(masks: bool, old: bool, tmp_path: Path) -> None:
    theirs = torchvision_detector(masks=masks)
    network = ours(saved(tmp_path / "x.pth", theirs, old=old)).double()
    shown, theirs = images().double(), theirs.double()
    with torch.no_grad():
        levels = theirs.backbone(shown)
        proposals, _ = theirs.rpn(ImageList(shown, SIZES), levels)
        expected, _ = theirs.roi_heads(levels, proposals, SIZES)
        found = network(shown, SIZES)
    assert min(len(each) for each in found) > 10
    for wanted, got in zip(expected, found, strict=True):
        torch.testing.assert_close(got.boxes, wanted["boxes"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got.scores, wanted["scores"], rtol=1e-9, atol=1e-9)
        assert torch.equal(got.labels, wanted["labels"] - 1)
        assert (got.masks is None) == (not masks)
        if masks:
            torch.testing.assert_close(got.masks, wanted["masks"][:, 0], rtol=1e-9, atol=1e-9)


def test_the_norms_of_another_epsilon_give_other_boxes(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", torchvision_detector())
    first, second = (ours(path, {**FROZEN, "epsilon": value}).double() for value in ("0", "1e-5"))
    with torch.no_grad():
        levels = [network.levels(images().double())[0] for network in (first, second)]
    assert (levels[0] - levels[1]).abs().max() > 1e-8
    with pytest.raises(ConfigError, match="epsilon=1e-6"):
        ours(path, {**FROZEN, "epsilon": "1e-6"})


def test_our_losses_are_torchvisions_on_the_same_draw_but_for_the_boxes_turning_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = torchvision_detector().train()
    network = ours(saved(tmp_path / "x.pth", theirs)).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    targets = [{"boxes": each.boxes, "labels": each.labels + 1, "masks": each.masks} for each in truths()]
    shown = images()
    torch.manual_seed(1)
    levels = theirs.backbone(shown)
    proposals, first = theirs.rpn(ImageList(shown, SIZES), levels, targets)
    _, second = theirs.roi_heads(levels, proposals, SIZES, targets)
    monkeypatch.setattr(detection_losses, "BETA", 1 / 9)
    torch.manual_seed(1)
    found = network(shown, SIZES, truths())
    names = {
        "objectness": first["loss_objectness"],
        "proposals": first["loss_rpn_box_reg"],
        "classes": second["loss_classifier"],
        "boxes": second["loss_box_reg"],
        "masks": second["loss_mask"],
    }
    assert set(found) == set(names)
    for name, expected in names.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=0)
        assert expected > 0


def test_the_anchors_are_torchvisions(tmp_path: Path) -> None:
    theirs = torchvision_detector()
    network = ours(saved(tmp_path / "x.pth", theirs))
    shown = torch.zeros(1, 3, 96, 160)  # 5 columns of P5 and 3 of P6: torchvision takes 53 pixels for its stride
    levels, pictures = network.levels(shown), ImageList(shown, [(96, 160)])
    anchors = network.proposals.anchor_generator
    assert isinstance(anchors, PyramidAnchors)
    assert torch.equal(anchors(pictures, levels)[0], theirs.rpn.anchor_generator(pictures, levels)[0])
    last = anchors(pictures, levels)[0][-18:].view(2, 3, 3, 4)
    assert (last[0, 1, 0, 0] - last[0, 0, 0, 0], last[1, 0, 0, 1] - last[0, 0, 0, 1]) == (53, 48)


@pytest.mark.slow
def test_the_second_version_gives_torchvisions_boxes_and_its_classes_have_cocos_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
    read = read_foreign(saved(tmp_path / "x.pth", theirs), PIXELS)
    assert (read.metadata["classes"][0], read.metadata["classes"][89]) == ("person", "toothbrush")
    shown, sizes = torch.randn(1, 3, 160, 224), [(150, 220)]
    with torch.no_grad():
        levels = theirs.backbone(shown)
        proposals, _ = theirs.rpn(ImageList(shown, sizes), levels)
        (expected,), _ = theirs.roi_heads(levels, proposals, sizes)
        (found,) = read.model(shown, sizes)
    assert len(found) > 10
    torch.testing.assert_close(found.boxes, expected["boxes"])
    torch.testing.assert_close(found.masks, expected["masks"][:, 0])


def test_a_file_is_described_and_asks_for_what_its_weights_do_not_tell(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", torchvision_detector())
    told = about(path)
    assert told.description == "torchvision's Mask R-CNN, version 1, 5 classes"
    assert [question.name for question in told.questions] == ["epsilon", "order", "mean", "std", "resize"]
    with pytest.raises(ConfigError, match=r"its weights do not tell `epsilon=0\|1e-5`"):
        read_foreign(path, PIXELS)
    assert read_foreign(path, FROZEN).metadata["classes"] is None


def test_other_trunks_are_refused_in_words(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = torchvision_detector().state_dict()
    basic = {name: tensor for name, tensor in weights.items() if ".conv3." not in name and ".bn3." not in name}
    torch.save(basic, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="has a trunk of basic blocks"):
        read_foreign(tmp_path / "x.pth", FROZEN)
