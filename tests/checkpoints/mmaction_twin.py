"""Slow-only and I3D networks as mmaction2 defines them, written out on mmcv's bricks."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, NonLocal3d
from torch import Tensor, nn

NORM = {"conv_cfg": {"type": "Conv3d"}, "norm_cfg": {"type": "BN3d"}}

I3D = ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))
"""Which residual blocks of ResNet-50 see three frames."""

SLOW_ONLY = ((0, 0, 0), (0, 0, 0, 0), (1,) * 6, (1, 1, 1))

SLOW_ONLY_SITES = ((0, 0, 0), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 0, 0))
I3D_SITES = ((0, 0, 0), (0, 1, 0, 1), (0, 1, 0, 1, 0, 1), (0, 0, 0))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, first: bool, sees: int, block: object) -> None:
        super().__init__()
        frames = 3 if sees else 1
        self.conv1 = ConvModule(channels, planes, (frames, 1, 1), padding=(frames // 2, 0, 0), **NORM)
        self.conv2 = ConvModule(planes, planes, (1, 3, 3), (1, stride, stride), (0, 1, 1), **NORM)
        self.conv3 = ConvModule(planes, planes * 4, 1, act_cfg=None, **NORM)
        if first:
            self.downsample = ConvModule(channels, planes * 4, 1, (1, stride, stride), act_cfg=None, **NORM)
        self.first = first
        if block is not None:
            self.non_local_block = NonLocal3d(planes * 4, sub_sample=True, norm_cfg={"type": "BN3d"}, **block)  # type: ignore[arg-type]
        self.attends = block is not None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x)))
        y = F.relu(y + (self.downsample(x) if self.first else x))
        return self.non_local_block(y) if self.attends else y


class Trunk(nn.Module):
    def __init__(
        self,
        i3d: bool,
        width: int,
        sees: tuple[tuple[int, ...], ...],
        sites: tuple[tuple[int, ...], ...],
        block: object,
    ) -> None:
        super().__init__()
        self.i3d = i3d
        frames, stride = (5, 2) if i3d else (1, 1)
        self.conv1 = ConvModule(3, width, (frames, 7, 7), (stride, 2, 2), (frames // 2, 3, 3), **NORM)
        channels = width
        for stage, (inflated, attending) in enumerate(zip(sees, sites, strict=True)):
            blocks = []
            for index, (own, attends) in enumerate(zip(inflated, attending, strict=True)):
                step = 2 if stage and not index else 1
                held = block if attends else None
                blocks.append(Bottleneck(channels, width * 2**stage, step, not index, own, held))
                channels = width * 2**stage * 4
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(self.conv1(x), (1, 3, 3), (2 if self.i3d else 1, 2, 2), (0, 1, 1))
        x = self.layer1(x)
        if self.i3d:
            x = F.max_pool3d(x, (2, 1, 1))
        return self.layer4(self.layer3(self.layer2(x)))


class Classifier(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_cls(x.mean((2, 3, 4)))


class Recogniser(nn.Module):
    """`Recognizer3D`."""

    def __init__(
        self, kind: str, mode: str = "embedded_gaussian", scaled: bool = True, width: int = 8, classes: int = 5
    ) -> None:
        super().__init__()
        block = {"mode": mode, "use_scale": scaled}
        i3d = kind == "i3d"
        sees, sites = (I3D, I3D_SITES) if i3d else (SLOW_ONLY, SLOW_ONLY_SITES)
        self.backbone = Trunk(i3d, width, sees, sites, block)
        self.cls_head = Classifier(width * 32, classes)

    def forward(self, clips: Tensor) -> Tensor:
        return self.cls_head(self.backbone(clips))


def clips(frames: int, side: int = 48) -> Tensor:
    """Two clips of noise."""
    return torch.randn(2, 3, frames, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
