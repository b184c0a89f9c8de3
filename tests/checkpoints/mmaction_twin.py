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


class Shift(nn.Module):
    """`TemporalShift` around a convolution of pictures, T of them to a clip."""

    def __init__(self, net: nn.Module, frames: int, parts: int) -> None:
        super().__init__()
        self.net = net
        self.frames, self.parts = frames, parts

    def forward(self, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, self.frames))  # (b, t, c, h, w)
        fold = clips.shape[2] // self.parts
        zeros = torch.zeros_like(clips[:, :1])
        later, earlier = torch.cat([clips[:, 1:], zeros], 1), torch.cat([zeros, clips[:, :-1]], 1)
        moved = torch.cat([later[:, :, :fold], earlier[:, :, fold : 2 * fold], clips[:, :, 2 * fold :]], 2)
        return self.net(moved.flatten(0, 1))


class PictureBottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, first: bool, frames: int) -> None:
        super().__init__()
        norm = {"norm_cfg": {"type": "BN"}}
        self.conv1 = ConvModule(channels, planes, 1, **norm)
        self.conv1.conv = Shift(self.conv1.conv, frames, 8)
        self.conv2 = ConvModule(planes, planes, 3, stride, 1, **norm)
        self.conv3 = ConvModule(planes, planes * 4, 1, act_cfg=None, **norm)
        if first:
            self.downsample = ConvModule(channels, planes * 4, 1, stride, act_cfg=None, **norm)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x)))
        return F.relu(y + (self.downsample(x) if self.first else x))


class Wrapped(nn.Module):
    """`NL3DWrapper`."""

    def __init__(self, block: nn.Module, channels: int, frames: int, settings: dict[str, object]) -> None:
        super().__init__()
        self.block = block
        self.non_local_block = NonLocal3d(channels, sub_sample=True, norm_cfg={"type": "BN3d"}, **settings)  # type: ignore[arg-type]
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        clips = self.block(x).unflatten(0, (-1, self.frames)).transpose(1, 2).contiguous()
        return self.non_local_block(clips).transpose(1, 2).flatten(0, 1)


class ShiftRecogniser(nn.Module):
    """`Recognizer2D` with `ResNetTSM` and `TSMHead`."""

    def __init__(self, mode: str = "embedded_gaussian", width: int = 8, classes: int = 5, frames: int = 8) -> None:
        super().__init__()
        self.frames = frames
        self.backbone = nn.Module()
        self.backbone.conv1 = ConvModule(3, width, 7, 2, 3, norm_cfg={"type": "BN"})
        channels = width
        for stage, attending in enumerate(SLOW_ONLY_SITES):
            blocks: list[nn.Module] = []
            for index, attends in enumerate(attending):
                planes, step = width * 2**stage, 2 if stage and not index else 1
                block: nn.Module = PictureBottleneck(channels, planes, step, not index, frames)
                channels = planes * 4
                settings: dict[str, object] = {"mode": mode, "use_scale": False}
                blocks.append(Wrapped(block, channels, frames, settings) if attends else block)
            self.backbone.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.cls_head = nn.Module()
        self.cls_head.fc_cls = nn.Linear(channels, classes)

    def forward(self, clips: Tensor) -> Tensor:
        x = clips.transpose(1, 2).flatten(0, 1)
        x = F.max_pool2d(self.backbone.conv1(x), 3, 2, 1)
        for stage in range(1, 5):
            x = self.backbone.get_submodule(f"layer{stage}")(x)
        return self.cls_head.fc_cls(x.mean((2, 3))).unflatten(0, (-1, self.frames)).mean(1)
