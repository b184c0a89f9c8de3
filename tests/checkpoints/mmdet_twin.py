"""Detectors as mmdetection and its forks define them, written out on mmcv's bricks: names, shapes and forwards."""

import itertools

import torch
import torch.nn.functional as F
from mmcv.cnn import ContextBlock, ConvModule, NonLocal2d
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

BN = {"type": "BN"}


class AbsoluteNorm(nn.BatchNorm2d):
    """InPlaceABN with the identity as its activation: it multiplies by |γ| + ε."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        scale = self.weight.abs() + self.eps
        return F.batch_norm(x, self.running_mean, self.running_var, scale, self.bias, eps=self.eps)


class Simple(nn.Module):
    """The fork's `ContextBlock(simple=True)`: the simplified non-local block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_value = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv_mask = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv_mask(x).flatten(2).softmax(2)
        context = x.flatten(2) @ weights.mT
        return x + self.conv_value(context.unsqueeze(3))


class MultiplyingNonLocal(NonLocal2d):
    """mmdetection's non-local block of 2019, which multiplies by √d where it means to divide."""

    def embedded_gaussian(self, theta_x: Tensor, phi_x: Tensor) -> Tensor:
        return (theta_x @ phi_x / theta_x.shape[-1] ** -0.5).softmax(-1)


class Disentangled(nn.Module):
    """The fork's `NonLocal2dGc`."""

    def __init__(self, channels: int, temperature: float = 0.05) -> None:
        super().__init__()
        self.conv_query, self.conv_key = (nn.Conv2d(channels, channels // 4, 1) for _ in range(2))
        self.conv_value = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv_mask = nn.Conv2d(channels, 1, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2).mT for conv in (self.conv_query, self.conv_key, self.conv_value))
        query, key = query - query.mean(1, keepdim=True), key - key.mean(1, keepdim=True)
        pairwise = (query @ key.mT / query.shape[2] ** 0.5 / self.temperature).softmax(2) @ value
        unary = self.conv_mask(x).flatten(2).softmax(2) @ value
        return x + (self.gamma * pairwise).mT.unflatten(2, x.shape[2:]) + unary.mT.unsqueeze(3)


BLOCKS = {
    "gc": ("context_block", lambda c: ContextBlock(c, 1 / 4)),
    "gc16": ("context_block", lambda c: ContextBlock(c, 1 / 16)),
    "se": ("context_block", lambda c: ContextBlock(c, 1 / 4, "avg", ("channel_mul",))),
    "snl": ("context_block", Simple),
    "nl": ("nonlocal_block", lambda c: NonLocal2d(c, reduction=4)),
    "nl-times": ("nonlocal_block", lambda c: MultiplyingNonLocal(c, reduction=4)),
    "dnl": ("nl_gc_block", Disentangled),
}


class Bottleneck(nn.Module):
    def __init__(
        self,
        channels: int,
        planes: int,
        stride: int,
        projects: bool,
        groups: int,
        norm: type[nn.BatchNorm2d],
        deformable: str,
        block: str,
        place: str,
    ) -> None:
        super().__init__()
        inner = planes if groups == 1 else int(planes * 4 / 64 * groups)
        self.stride, self.groups, self.place = stride, groups, place
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = norm(inner)
        self.conv3 = nn.Conv2d(inner, planes * 4, 1, bias=False)
        self.bn3 = norm(planes * 4)
        offset = nn.Conv2d(inner, 18, 3, stride, 1)
        if deformable == "1":
            self.conv2_offset = offset
        if deformable == "2":
            self.conv2.conv_offset = offset
        self.offset = [offset] if deformable else []
        if projects:
            self.downsample = nn.Sequential(nn.Conv2d(channels, planes * 4, 1, stride, bias=False), norm(planes * 4))
        self.projects = projects
        self.block = ""
        if block:
            self.block, make = BLOCKS[block]
            self.add_module(self.block, make(planes * 4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        if self.offset:
            y = deform_conv2d(y, self.offset[0](y), self.conv2.weight, stride=self.stride, padding=1)
        else:
            y = self.conv2(y)
        y = self.bn3(self.conv3(F.relu(self.bn2(y))))
        if self.block and self.place == "after_1x1":
            y = self.get_submodule(self.block)(y)
        y = y + (self.downsample(x) if self.projects else x)
        if self.block and self.place == "after_add":
            y = self.get_submodule(self.block)(y)
        return F.relu(y)


class Trunk(nn.Module):
    """`ResNet` or `ResNeXt` with blocks in the residual blocks that `sites` names, such as `layer3.4`."""

    def __init__(
        self,
        layers: tuple[int, ...],
        width: int,
        groups: int,
        norm: type[nn.BatchNorm2d],
        deformable: str,
        block: str,
        sites: object,
        place: str,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = norm(width)
        channels = width
        for stage, count in enumerate(layers):
            blocks = []
            for index in range(count):
                planes, name = width * 2**stage, f"layer{stage + 1}.{index}"
                held = (
                    block if sites == "c3-c5" and stage else block if isinstance(sites, tuple) and name in sites else ""
                )
                stride = 2 if stage and not index else 1
                moves = deformable if stage else ""
                blocks.append(Bottleneck(channels, planes, stride, not index, groups, norm, moves, held, place))
                channels = planes * 4
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        found = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            found.append(x)
        return found


class Pyramid(nn.Module):
    """`FPN` with a fifth level."""

    def __init__(self, inputs: list[int], channels: int, norm: dict[str, str] | None) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList([ConvModule(c, channels, 1, norm_cfg=norm, act_cfg=None) for c in inputs])
        self.fpn_convs = nn.ModuleList(
            [ConvModule(channels, channels, 3, padding=1, norm_cfg=norm, act_cfg=None) for _ in inputs]
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        x = [conv(feature) for conv, feature in zip(self.lateral_convs, features, strict=True)]
        for level in (3, 2, 1):
            x[level - 1] = x[level - 1] + F.interpolate(x[level], x[level - 1].shape[2:], mode="nearest")
        found = [conv(level) for conv, level in zip(self.fpn_convs, x, strict=True)]
        return [*found, F.max_pool2d(found[-1], 1, 2)]


class ProposalHead(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, 3, 1)
        self.rpn_reg = nn.Conv2d(channels, 12, 1)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.rpn_conv(level))
        return self.rpn_cls(x), self.rpn_reg(x)


class BoxHead(nn.Module):
    """`SharedFCBBoxHead`, `ConvFCBBoxHead`: version 1 has the background first, version 2 last."""

    def __init__(
        self, channels: int, width: int, classes: int, version: int, agnostic: bool, convolutions: int
    ) -> None:
        super().__init__()
        self.shared_convs = nn.ModuleList(
            [ConvModule(channels, channels, 3, padding=1, norm_cfg=BN) for _ in range(convolutions)]
        )
        sizes = [channels * 49, width] if convolutions else [channels * 49, width, width]
        self.shared_fcs = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.fc_cls = nn.Linear(width, classes + 1)
        self.fc_reg = nn.Linear(width, 4 if agnostic else 4 * (classes + 1 if version == 1 else classes))

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.shared_convs:
            pooled = conv(pooled)
        x = pooled.flatten(1)
        for linear in self.shared_fcs:
            x = F.relu(linear(x))
        return self.fc_cls(x), self.fc_reg(x)


class MaskHead(nn.Module):
    """`FCNMaskHead`."""

    def __init__(self, channels: int, classes: int, version: int, norm: dict[str, str] | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvModule(channels, channels, 3, padding=1, norm_cfg=norm) for _ in range(4)])
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.conv_logits = nn.Conv2d(channels, classes + 1 if version == 1 else classes, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        for conv in self.convs:
            pooled = conv(pooled)
        return self.conv_logits(F.relu(self.upsample(pooled)))


class Detector(nn.Module):
    """`MaskRCNN`, `FasterRCNN`, `CascadeRCNN` of either version."""

    def __init__(
        self,
        version: int = 2,
        layers: tuple[int, ...] = (1, 1, 1, 1),
        width: int = 8,
        channels: int = 8,
        box_width: int = 16,
        classes: int = 3,
        groups: int = 1,
        block: str = "",
        sites: object = "c3-c5",
        place: str = "after_1x1",
        cascade: bool = False,
        heavy: bool = False,
        deforms: bool = False,
        masks: bool = True,
        absolute: bool = False,
    ) -> None:
        super().__init__()
        norm = AbsoluteNorm if absolute else nn.BatchNorm2d
        own = BN if heavy else None
        self.backbone = Trunk(layers, width, groups, norm, str(version) if deforms else "", block, sites, place)
        self.neck = Pyramid([width * 4 * 2**stage for stage in range(4)], channels, own)
        self.rpn_head = ProposalHead(channels)
        count = 3 if cascade else 1
        boxes = [BoxHead(channels, box_width, classes, version, cascade, 4 if heavy else 0) for _ in range(count)]
        heads: dict[str, list[nn.Module]] = {"bbox_head": list(boxes)}
        if masks:
            heads["mask_head"] = [MaskHead(channels, classes, version, own) for _ in range(count)]
        holder = self if version == 1 else nn.Module()
        for name, held in heads.items():
            holder.add_module(name, nn.ModuleList(held) if cascade else held[0])
        if version == 2:
            self.roi_head = holder
        if absolute:
            _make_absolute(self)
        self.boxes, self.masks = [boxes], [heads.get("mask_head", [])]

    def forward(self, images: Tensor, pooled: Tensor, larger: Tensor) -> dict[str, list[Tensor]]:
        """Levels, what is predicted on them, and what of pooled boxes and masks."""
        levels = self.neck(self.backbone(images))
        predicted = [self.rpn_head(level) for level in levels]
        return {
            "levels": levels,
            "objectness": [each[0] for each in predicted],
            "anchors": [each[1] for each in predicted],
            "classes": [head(pooled)[0] for head in self.boxes[0]],
            "boxes": [head(pooled)[1] for head in self.boxes[0]],
            "masks": [head(larger) for head in self.masks[0]],
        }


def _make_absolute(module: nn.Module) -> None:
    """InPlaceABN in place of all other norms, which the fork's configuration has everywhere."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.__class__ = AbsoluteNorm
