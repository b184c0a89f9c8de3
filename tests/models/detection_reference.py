"""Small detection networks of ours and torchvision's, and objects to train them on."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
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


def torchvision_detector(*, masks: bool = True) -> nn.Module:
    """Torchvision's Mask or Faster R-CNN, narrow, with one block a stage and norms that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        trunk = torchvision.models.ResNet(
            Bottleneck, [1, 1, 1, 1], norm_layer=torchvision.ops.FrozenBatchNorm2d, num_classes=1
        )
        stages = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
        backbone = BackboneWithFPN(trunk, stages, [256, 512, 1024, 2048], 16)
        settings = {
            "rpn_anchor_generator": AnchorGenerator(
                tuple((32 * 2**level,) for level in range(5)), ((0.5, 1.0, 2.0),) * 5
            ),
            "box_head": TwoMLPHead(16 * 49, 24),
            "box_predictor": FastRCNNPredictor(24, 6),
        }
        if masks:
            settings |= {
                "mask_head": MaskRCNNHeads(16, (16,) * 4, 1),
                "mask_predictor": MaskRCNNPredictor(16, 16, 6),
            }
        network = MaskRCNN(backbone, **settings) if masks else FasterRCNN(backbone, **settings)
        for module in network.modules():
            if isinstance(module, torchvision.ops.FrozenBatchNorm2d):
                module.eps = 0.0
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.running_mean, 0.0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


PARTS = ("classes", "boxes")


def box_head(state: dict[str, Tensor], name: str, pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and deltas of a box head in evaluation mode, from its weights alone."""
    body = f"{name}.body"
    layer = 0
    while f"{body}.{layer}.0.weight" in state:  # convolutions, with a norm or without
        pooled = F.conv2d(pooled, state[f"{body}.{layer}.0.weight"], state.get(f"{body}.{layer}.0.bias"), padding=1)
        if f"{body}.{layer}.1.weight" in state:
            norm = {part: state[f"{body}.{layer}.1.{part}"] for part in ("weight", "bias")}
            mean, variance = (state[f"{body}.{layer}.1.running_{part}"] for part in ("mean", "var"))
            pooled = F.batch_norm(pooled, mean, variance, **norm)
        pooled = F.relu(pooled)
        layer += 1
    x = pooled.flatten(1)
    layer += 1
    while f"{body}.{layer}.weight" in state:
        x = F.relu(F.linear(x, state[f"{body}.{layer}.weight"], state[f"{body}.{layer}.bias"]))
        layer += 2
    logits, deltas = (F.linear(x, state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"]) for part in PARTS)
    return logits, deltas.view(len(deltas), -1, 4)


def mask_head(state: dict[str, Tensor], name: str, pooled: Tensor) -> Tensor:
    """Mask logits of all classes in evaluation mode, from the weights alone; without norms."""
    layer = 0
    while f"{name}.body.{layer}.0.weight" in state:
        weight, bias = state[f"{name}.body.{layer}.0.weight"], state[f"{name}.body.{layer}.0.bias"]
        pooled = F.relu(F.conv2d(pooled, weight, bias, padding=1))
        layer += 1
    last = f"{name}.masks"
    x = F.conv_transpose2d(pooled, state[f"{last}.conv5_mask.weight"], state[f"{last}.conv5_mask.bias"], stride=2)
    return F.conv2d(F.relu(x), state[f"{last}.mask_fcn_logits.weight"], state[f"{last}.mask_fcn_logits.bias"])


def moved(box: Tensor, delta: Tensor, deviations: tuple[float, ...], size: tuple[int, int]) -> Tensor:
    """A box after its regression, cut to the picture: (x, y) by shares of the sides, sides by factors."""
    x, y, width, height = (float(number) * deviation for number, deviation in zip(delta, deviations, strict=True))
    sides = box[2] - box[0], box[3] - box[1]
    centre = (box[0] + box[2]) / 2 + x * sides[0], (box[1] + box[3]) / 2 + y * sides[1]
    half = sides[0] * math.exp(width) / 2, sides[1] * math.exp(height) / 2
    corners = [centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1]]
    limits = (size[1], size[0], size[1], size[0])
    return torch.stack([corner.clamp(0, limit) for corner, limit in zip(corners, limits, strict=True)])


def overlap(first: Tensor, second: Tensor) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(float(width), 0.0) * max(float(height), 0.0)
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (first, second)]
    return shared / (sum(areas) - shared)
