"""Small detection networks of ours and torchvision's, and objects to train them on."""

from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import Bottleneck

from nlprobe.models import DetectionConfig, ResNetConfig

TRUNK = ResNetConfig(layers=(1, 1, 1, 1), block="basic", width=4, classes=0)
TINY = DetectionConfig(
    backbone=TRUNK,
    channels=8,
    box_width=16,
    mask_layers=2,
    classes=5,
    anchor_scale=4,
    finest_box=16,
    proposals=40,
    training_proposals=60,
    sampled_anchors=32,
    sampled_boxes=24,
    detections=10,
)


@dataclass(frozen=True)
class Truth:
    """The objects of an image."""

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None


def truths() -> list[Truth]:
    """Of a picture of 90x120 with three objects, and of one of 96x100 with none."""
    masks = torch.zeros(3, 90, 120, dtype=torch.bool)
    masks[0, 10:50, 20:60] = masks[1, 30:80, 50:110] = masks[2, 60:70, 5:25] = True
    masks[0, :20] = False
    boxes = torch.tensor([[20.0, 10.0, 60.0, 50.0], [50.0, 30.0, 110.0, 80.0], [5.0, 60.0, 25.0, 70.0]])
    nothing = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 96, 100, dtype=torch.bool))
    return [Truth(boxes, torch.tensor([4, 0, 2]), masks), nothing]


SIZES = [(90, 120), (96, 100)]


def images() -> Tensor:
    """Two images of 96x128 in which the pictures above lie."""
    found = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(3))
    found[0, :, 90:] = found[0, :, :, 120:] = found[1, :, :, 100:] = 0
    return found


PASSED = {"test": 60, "train": 100}
"""Proposals that torchvision's network passes on."""


def torchvision_detector(*, masks: bool = True) -> nn.Module:
    """Torchvision's Mask or Faster R-CNN with one block a stage and random weights whose norms do something."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        trunk = torchvision.models.ResNet(
            Bottleneck, [1, 1, 1, 1], norm_layer=torchvision.ops.FrozenBatchNorm2d, num_classes=1
        )
        backbone = _resnet_fpn_extractor(trunk, 5)
        anchors = AnchorGenerator(tuple((32 * 2**level,) for level in range(5)), ((0.5, 1.0, 2.0),) * 5)
        passed = {f"rpn_{when}_nms_top_n_{mode}": n for when in ("pre", "post") for mode, n in PASSED.items()}
        kind = MaskRCNN if masks else FasterRCNN
        network = kind(backbone, 6, rpn_anchor_generator=anchors, box_detections_per_img=15, **passed)
        for module in network.modules():
            if isinstance(module, torchvision.ops.FrozenBatchNorm2d):
                module.eps = 0.0
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.running_mean, 0.0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()
