"""Networks as mmsegmentation defines them, written out on mmcv's own bricks: its names, its shapes and its forward."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ContextBlock, ConvModule, NonLocal2d, Scale
from torch import Tensor, nn

BN = {"type": "BN"}


class Trunk(nn.Module):
    """`ResNetV1c`, dilations 1 1 2 4, contracted, stride on the 3x3."""

    def __init__(self, layers: tuple[int, ...], width: int) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
            *(nn.Conv2d(half, half, 3, 1, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
            *(nn.Conv2d(half, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        )
        channels = width
        for stage, (count, stride, dilation) in enumerate(zip(layers, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            blocks = []
            for index in range(count):
                planes = width * 2**stage
                first = index == 0
                blocks.append(
                    Bottleneck(
                        channels, planes, stride if first else 1, max(dilation // 2, 1) if first else dilation, first
                    )
                )
                channels = planes * 4
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        found = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            found.append(x)
        return found


class Bottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, dilation: int, projects: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        if projects:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, planes * 4, 1, stride, bias=False), nn.BatchNorm2d(planes * 4)
            )
        self.projects = projects

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (self.downsample(x) if self.projects else x))


class Head(nn.Module):
    """`FCNHead`, and what the heads that stand on it put between its convolutions."""

    def __init__(self, c5: int, channels: int, classes: int, count: int = 2, concatenates: bool = True) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.convs = nn.Sequential(
            *(ConvModule(c5 if not i else channels, channels, 3, padding=1, norm_cfg=BN) for i in range(count))
        )
        if concatenates:
            self.conv_cat = ConvModule(c5 + channels, channels, 3, padding=1, norm_cfg=BN)
        self.concatenates = concatenates

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[3] if self.concatenates else features[2]
        y = self.between(self.convs[0](x))
        for conv in self.convs[1:]:
            y = conv(y)
        if self.concatenates:
            y = self.conv_cat(torch.cat([x, y], 1))
        return self.conv_seg(y)


class NLHead(Head):
    def __init__(self, c5: int, channels: int, classes: int, mode: str = "embedded_gaussian", scale: bool = True):
        super().__init__(c5, channels, classes)
        self.nl_block = NonLocal2d(channels, reduction=2, use_scale=scale, norm_cfg=BN, mode=mode)

    def between(self, x: Tensor) -> Tensor:
        return self.nl_block(x)


class GCHead(Head):
    def __init__(self, c5: int, channels: int, classes: int) -> None:
        super().__init__(c5, channels, classes)
        self.gc_block = ContextBlock(channels, ratio=1 / 4, pooling_type="att", fusion_types=("channel_add",))

    def between(self, x: Tensor) -> Tensor:
        return self.gc_block(x)


class DNLHead(Head):
    def __init__(self, c5: int, channels: int, classes: int, temperature: float = 0.05) -> None:
        super().__init__(c5, channels, classes)
        self.dnl_block = NonLocal2d(channels, reduction=2, norm_cfg=BN)
        self.dnl_block.conv_mask = nn.Conv2d(channels, 1, 1)
        self.temperature = temperature

    def between(self, x: Tensor) -> Tensor:
        block = self.dnl_block
        query, key, value = (conv(x).flatten(2).mT for conv in (block.theta, block.phi, block.g))
        query, key = query - query.mean(1, keepdim=True), key - key.mean(1, keepdim=True)
        pairwise = (query @ key.mT / query.shape[2] ** 0.5 / self.temperature).softmax(-1) @ value
        unary = block.conv_mask(x).flatten(2).softmax(-1) @ value
        outputs = pairwise.mT.unflatten(2, x.shape[2:]), unary.mT.unsqueeze(3)
        return x + block.conv_out(outputs[0]) + block.conv_out(outputs[1])


class CrissCross(nn.Module):
    """`mmcv.ops.CrissCrossAttention`, over a mask of the cross."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv, self.key_conv = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = Scale(0.0)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2).mT for conv in (self.query_conv, self.key_conv, self.value_conv))
        rows, columns = torch.meshgrid(*(torch.arange(size) for size in x.shape[2:]), indexing="ij")
        rows, columns = rows.flatten(), columns.flatten()
        cross = (rows[:, None] == rows) | (columns[:, None] == columns)
        logits = (query @ key.mT).masked_fill(~cross, -torch.inf)
        return x + self.gamma((logits.softmax(-1) @ value).mT.unflatten(2, x.shape[2:]))


class CCHead(Head):
    def __init__(self, c5: int, channels: int, classes: int) -> None:
        super().__init__(c5, channels, classes)
        self.cca = CrissCross(channels)

    def between(self, x: Tensor) -> Tensor:
        return self.cca(self.cca(x))


class PAM(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key_project, self.query_project = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
        self.value_project = nn.Conv2d(channels, channels, 1)
        self.gamma = Scale(0)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            conv(x).flatten(2).mT for conv in (self.query_project, self.key_project, self.value_project)
        )
        return x + self.gamma(((query @ key.mT).softmax(-1) @ value).mT.unflatten(2, x.shape[2:]))


class CAM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = Scale(0)

    def forward(self, x: Tensor) -> Tensor:
        maps = x.flatten(2)
        energy = maps @ maps.mT
        energy = energy.amax(-1, keepdim=True) - energy
        return x + self.gamma((energy.softmax(-1) @ maps).view_as(x))


class DAHead(nn.Module):
    def __init__(self, c5: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        for name, module in (("pam", PAM(channels)), ("cam", CAM())):
            self.add_module(f"{name}_in_conv", ConvModule(c5, channels, 3, padding=1, norm_cfg=BN))
            self.add_module(name, module)
            self.add_module(f"{name}_out_conv", ConvModule(channels, channels, 3, padding=1, norm_cfg=BN))
            self.add_module(f"{name}_conv_seg", nn.Conv2d(channels, classes, 1))

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[3]
        return self.conv_seg(
            self.pam_out_conv(self.pam(self.pam_in_conv(x))) + self.cam_out_conv(self.cam(self.cam_in_conv(x)))
        )


class Asymmetric(nn.Module):
    """`SelfAttentionBlock` as ANN sets it."""

    def __init__(self, low: int, high: int, width: int, shares: bool) -> None:
        super().__init__()
        self.key_project = ConvModule(low, width, 1, norm_cfg=BN)
        self.query_project = self.key_project if shares else ConvModule(high, width, 1, norm_cfg=BN)
        self.value_project = nn.Conv2d(low, width, 1)
        self.out_project = nn.Conv2d(width, high, 1)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        query = self.query_project(high).flatten(2).mT
        key, value = (
            torch.cat([F.adaptive_avg_pool2d(conv(low), side).flatten(2) for side in (1, 3, 6, 8)], 2)
            for conv in (self.key_project, self.value_project)
        )
        weights = (query @ key / query.shape[2] ** 0.5).softmax(-1)
        return self.out_project((weights @ value.mT).mT.unflatten(2, high.shape[2:]))


class Fusing(nn.Module):
    def __init__(self, low: int, high: int, width: int, shares: bool) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Asymmetric(low, high, width, shares)])
        self.bottleneck = ConvModule(2 * high, high, 1, norm_cfg=BN, act_cfg={"type": "ReLU"} if shares else None)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return self.bottleneck(torch.cat([self.stages[0](high, low), high], 1))


class ANNHead(nn.Module):
    def __init__(self, c5: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.fusion = Fusing(c5 // 2, c5, c5 // 8, False)
        self.bottleneck = ConvModule(c5, channels, 3, padding=1, norm_cfg=BN)
        self.context = Fusing(channels, channels, channels // 2, True)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.bottleneck(self.fusion(features[2], features[3]))
        return self.conv_seg(self.context(x, x))


class PSAHead(nn.Module):
    def __init__(self, c5: int, channels: int, classes: int, mask: tuple[int, int] = (97, 97)) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.mask = mask
        for suffix in ("", "_p"):
            self.add_module(f"reduce{suffix}", ConvModule(c5, channels, 1, norm_cfg=BN))
            predict = nn.Conv2d(channels, mask[0] * mask[1], 1, bias=False)
            self.add_module(
                f"attention{suffix}", nn.Sequential(ConvModule(channels, channels, 1, norm_cfg=BN), predict)
            )
        self.proj = ConvModule(2 * channels, c5, 1, padding=1, norm_cfg=BN)
        self.bottleneck = ConvModule(2 * c5, channels, 3, padding=1, norm_cfg=BN)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[3]
        height, width = x.shape[2:]
        aligned = bool(height % 2 and width % 2)
        size = ((height - 1) // 2 + 1, (width - 1) // 2 + 1) if aligned else (height // 2, width // 2)
        sums = []
        for suffix in ("", "_p"):
            y = F.interpolate(self.get_submodule(f"reduce{suffix}")(x), size, mode="bilinear", align_corners=aligned)
            logits = self.placed(self.get_submodule(f"attention{suffix}")(y), distributes=bool(suffix))
            sums.append((y.flatten(2) @ logits.softmax(1)).unflatten(2, size))
        y = F.interpolate(self.proj(torch.cat(sums, 1)), (height, width), mode="bilinear", align_corners=aligned)
        return self.conv_seg(self.bottleneck(torch.cat([x, y], 1)))

    def placed(self, masks: Tensor, distributes: bool) -> Tensor:
        """`PSAMask` by loops: (b, sources, receivers), 0 where a mask does not reach."""
        height, width = masks.shape[2:]
        found = masks.new_zeros(len(masks), height * width, height * width)
        reach = [(side - 1) // 2 for side in self.mask]
        for y in range(height):
            for x in range(width):
                for v in range(height):
                    for u in range(width):
                        entry = v - y + reach[0], u - x + reach[1]
                        if 0 <= entry[0] < self.mask[0] and 0 <= entry[1] < self.mask[1]:
                            here, there = y * width + x, v * width + u
                            source, receiver = (here, there) if distributes else (there, here)
                            found[:, source, receiver] = masks[:, entry[0] * self.mask[1] + entry[1], y, x]
        return found


HEADS = {
    "fcn": Head,
    "NL": NLHead,
    "GC": GCHead,
    "DNL": DNLHead,
    "DANet": DAHead,
    "criss-cross": CCHead,
    "ANN": ANNHead,
    "PSA": PSAHead,
}


class Segmentor(nn.Module):
    """`EncoderDecoder`."""

    def __init__(
        self,
        head: str,
        classes: int = 5,
        layers: tuple[int, ...] = (1, 1, 1, 1),
        width: int = 8,
        channels: int = 16,
        auxiliary: int = 8,
        aligned: bool = False,
        **settings: object,
    ) -> None:
        super().__init__()
        self.backbone = Trunk(layers, width)
        self.decode_head = HEADS[head](32 * width, channels, classes, **settings)  # type: ignore[arg-type]
        self.auxiliary_head = Head(16 * width, auxiliary, classes, 1, False)
        self.aligned = aligned

    def forward(self, images: Tensor) -> Tensor:
        scores = self.decode_head(self.backbone(images))
        return F.interpolate(scores, images.shape[2:], mode="bilinear", align_corners=self.aligned)
