"""Torchvision's Mask R-CNN: its weights in our network give its boxes, its masks and its losses."""

import re
from dataclasses import replace

import pytest
import torch
import torchvision
from models.detection_reference import SIZES, images, torchvision_detector, truths
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from nlprobe.errors import CheckpointError
from nlprobe.models import DetectionNetwork, build, detection_losses, load_strictly
from nlprobe.models.detection_layouts import is_torchvision_detector, our_detector_names, torchvision_config

OLD_NAMES = (
    (r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2."),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}."),
)


def ours(weights: dict[str, Tensor]) -> DetectionNetwork:
    """Our network with the weights of torchvision's."""
    smaller = {"proposals": 60, "training_proposals": 100, "detections": 15}
    network = build(replace(torchvision_config(weights), **smaller), seed=0)
    counters = lambda name: name.endswith("num_batches_tracked")  # noqa: E731
    load_strictly(network, our_detector_names(weights, "theirs"), "theirs", counters)
    return network.eval()


def published_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names in the files that torchvision publishes, which are older than its code."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, old in OLD_NAMES:
            name = re.sub(pattern, old, name)
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_our_network_gives_torchvisions_boxes_and_masks(masks: bool, old: bool) -> None:
    theirs = torchvision_detector(masks=masks).double()
    weights = published_names(theirs.state_dict()) if old else theirs.state_dict()
    assert is_torchvision_detector(weights)
    network = ours(weights).double()
    shown = images().double()
    with torch.no_grad():
        levels = theirs.backbone(shown)
        proposals, _ = theirs.rpn(ImageList(shown, SIZES), levels)
        expected, _ = theirs.roi_heads(levels, proposals, SIZES)
        found = network(shown, SIZES)
    assert [len(each) for each in found] == [15, 15]
    for wanted, got in zip(expected, found, strict=True):
        torch.testing.assert_close(got.boxes, wanted["boxes"], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got.scores, wanted["scores"], rtol=1e-10, atol=1e-10)
        assert torch.equal(got.labels, wanted["labels"] - 1)
        assert (got.masks is None) == (not masks)
        if masks:
            torch.testing.assert_close(got.masks, wanted["masks"][:, 0], rtol=1e-10, atol=1e-10)


def test_our_losses_are_torchvisions_on_the_same_draw_but_for_the_boxes_turning_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = torchvision_detector().train()
    network = ours(theirs.state_dict()).train()
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
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=0)
        assert expected > 0


def test_strides_between_the_anchors_are_torchvisions_only_where_it_is_asked_for() -> None:
    theirs = torchvision_detector()
    network = ours(theirs.state_dict())
    shown = torch.zeros(1, 3, 96, 160)  # 5 columns of P5 and 3 of P6: torchvision takes 53 pixels for its stride
    levels = network.levels(shown)
    anchors = network.proposals.anchor_generator
    pictures = ImageList(shown, [(96, 160)])
    assert torch.equal(anchors(pictures, levels)[0], theirs.rpn.anchor_generator(pictures, levels)[0])
    last = anchors(pictures, levels)[0][-18:].view(2, 3, 3, 4)
    assert (last[0, 1, 0, 0] - last[0, 0, 0, 0], last[1, 0, 0, 1] - last[0, 0, 0, 1]) == (53, 48)
    exact = build(replace(network.config, anchor_strides="exact"), seed=0).proposals.anchor_generator
    last = exact(pictures, levels)[0][-18:].view(2, 3, 3, 4)
    assert (last[0, 1, 0, 0] - last[0, 0, 0, 0], last[1, 0, 0, 1] - last[0, 0, 0, 1]) == (64, 64)


def test_the_configuration_is_told_from_the_weights() -> None:
    make = torchvision.models.detection
    for name, settings in {
        "maskrcnn_resnet50_fpn": {"norm_epsilon": 1e-5, "box_head": "2fc", "norm": False, "layers": 1, "masks": True},
        "fasterrcnn_resnet50_fpn": {
            "norm_epsilon": 1e-5,
            "box_head": "2fc",
            "norm": False,
            "layers": 1,
            "masks": False,
        },
        "maskrcnn_resnet50_fpn_v2": {"norm_epsilon": 1e-5, "box_head": "4conv1fc", "norm": True, "layers": 2},
    }.items():
        with torch.device("meta"):
            weights = getattr(make, name)(weights=None, weights_backbone=None).state_dict()
        config = torchvision_config(weights)
        assert (config.backbone.layers, config.classes, config.anchor_strides) == ((3, 4, 6, 3), 90, "divided")
        assert (config.box_head, config.norm, config.proposal_layers) == (
            settings["box_head"],
            settings["norm"],
            settings["layers"],
        )
        assert config.masks == settings.get("masks", True)
        with torch.device("meta"):
            wanted = {key: tensor.shape for key, tensor in build(config).state_dict().items()}
        assert wanted == {key: tensor.shape for key, tensor in our_detector_names(weights, "theirs").items()}
        frozen = {key: tensor for key, tensor in weights.items() if not key.endswith("num_batches_tracked")}
        assert torchvision_config(frozen).backbone.norm_epsilon == 0.0


def test_weights_of_another_detector_are_refused_in_words() -> None:
    with torch.device("meta"):
        weights = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    assert not is_torchvision_detector(weights)
    with pytest.raises(CheckpointError, match=r"holds `head\..*`, which no Faster or Mask R-CNN of torchvision"):
        our_detector_names(weights, "the file")
