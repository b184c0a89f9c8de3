"""Slow-only networks: residual networks for clips, with attention blocks at any place of any residual block."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks import build_block
from nlprobe.models.config import LAYERS
from nlprobe.models.insertion import STAGES
from nlprobe.models.resnet import ResidualBlock
from nlprobe.models.video_config import VideoConfig


class VideoBasicBlock(ResidualBlock):
    """A k x3x3 and a 1x3x3 convolution, k frames long; the stride is on the first, and in space only.

    Shapes: (B, C_in, T, H, W) -> (B, C, T, H / stride, W / stride).
    """

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int, frames: int, config: VideoConfig) -> None:
        super().__init__()
        self.shift = config.shift
        self.conv1 = _conv(channels_in, planes, frames, 3, stride)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = _conv(planes, planes, 1, 3)
        self.bn2 = nn.BatchNorm3d(planes)

    def branch(self, x: Tensor) -> Tensor:
        """conv1, norm, ReLU, conv2, norm."""
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(shifted(x, self.shift))))))

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        """`bn2`."""
        return self.bn2


class VideoBottleneck(ResidualBlock):
    """k x1x1, 1x3x3, 1x1x1 convolutions, k frames long; the stride is on the second, and in space only.

    Shapes: (B, C_in, T, H, W) -> (B, C, T, H / stride, W / stride).
    """

    expansion = 4

    def __init__(self, channels_in: int, planes: int, stride: int, frames: int, config: VideoConfig) -> None:
        super().__init__()
        self.shift = config.shift
        groups = config.backbone.groups
        inner = int(planes * config.backbone.base_width / 64) * groups
        self.conv1 = _conv(channels_in, inner, frames, 1)
        self.bn1 = nn.BatchNorm3d(inner)
        self.conv2 = _conv(inner, inner, 1, 3, stride, groups)
        self.bn2 = nn.BatchNorm3d(inner)
        self.conv3 = _conv(inner, planes * self.expansion, 1, 1)
        self.bn3 = nn.BatchNorm3d(planes * self.expansion)

    def branch(self, x: Tensor) -> Tensor:
        """conv1, norm, ReLU, conv2, norm, ReLU, conv3, norm."""
        out = self.relu(self.bn1(self.conv1(shifted(x, self.shift))))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out))

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        """`bn3`."""
        return self.bn3


def shifted(x: Float[Tensor, "b c t h w"], parts: int) -> Float[Tensor, "b c t h w"]:
    """The first 1 / parts of the channels taken from the next frame, as many from the one before, zeros at the ends.

    With `parts` 0 it is x itself.
    """
    if not parts:
        return x
    fold = x.shape[1] // parts
    moved = x.clone()
    moved[:, :fold, :-1], moved[:, :fold, -1] = x[:, :fold, 1:], 0
    moved[:, fold : 2 * fold, 1:], moved[:, fold : 2 * fold, 0] = x[:, fold : 2 * fold, :-1], 0
    return moved


class VideoResNet(nn.Module):
    """A residual network for clips: its residual network for pictures with kernels that span frames.

    The names of its parameters are those of the residual network for pictures, so that weights of that can be inflated
    (`inflation.py`). Every convolution pads with zeros, in time too: the first and the last frame see fewer neighbours.
    In Slow-only networks no layer strides in time, so every feature map has as many frames as the clip.

    The network is initialised first and the inserted blocks after it, so networks that differ only in what is inserted
    have the same trunk when built from the same seed.

    Args:
        config: Depth, widths, temporal kernels, classes and insertions.
    """

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.width
        self.conv1 = _conv(3, width, config.temporal[0], 7, stride=2, time_stride=config.stem_stride)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        padding = (0, 1, 1) if config.pad_pool else 0
        size, stride = (config.pool_frames, 3, 3), (config.pool_stride, 2, 2)
        self.maxpool = nn.MaxPool3d(kernel_size=size, stride=stride, padding=padding)
        self.halve = nn.MaxPool3d(kernel_size=(2, 1, 1)) if config.halve else None
        self.layer1 = _stage(config, "c2")
        self.layer2 = _stage(config, "c3")
        self.layer3 = _stage(config, "c4")
        self.layer4 = _stage(config, "c5")
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(config.backbone.channels("c5"), config.classes)
        self._initialise()
        for insertion in config.insertions:
            for index in config.backbone.indices(insertion):
                channels = config.backbone.channels(insertion.stage)
                block = build_block(insertion.block.block, channels, 3, insertion.block)
                setattr(self.get_submodule(f"{LAYERS[insertion.stage]}.{index}"), insertion.place, block)

    def forward(self, clips: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b classes"]:
        """Class logits of normalised clips of any length; any height and width from 32 up, better from 64 up."""
        pooled = self.avgpool(self.features(clips)["c5"]).flatten(1)  # (b, c)
        return self.fc(self.dropout(pooled))

    def features(self, clips: Float[Tensor, "b 3 t h w"]) -> dict[str, Tensor]:
        """The feature maps of c2 to c5; the last is (B, C, T, H/32, W/32), lengths rounded up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(clips))))
        found = {}
        for stage in STAGES:
            found[stage] = x = self.get_submodule(LAYERS[stage])(x)
            if stage == "c2" and self.halve is not None:
                x = self.halve(x)
        return found

    def sites(self) -> list[str]:
        """Every inserted block by its site, in the order of the forward pass, such as `layer2.1:after_block`."""
        return self.config.sites()

    def residual_blocks(self) -> Iterator[VideoBasicBlock | VideoBottleneck]:
        """The residual blocks in the order of the forward pass."""
        for module in self.modules():
            if isinstance(module, VideoBasicBlock | VideoBottleneck):
                yield module

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        if self.config.backbone.zero_init_residual:
            for block in self.residual_blocks():
                nn.init.zeros_(block.last_norm.weight)


_RESIDUAL_BLOCKS: dict[str, type[VideoBasicBlock] | type[VideoBottleneck]] = {
    "basic": VideoBasicBlock,
    "bottleneck": VideoBottleneck,
}


def _stage(config: VideoConfig, stage: str) -> nn.Sequential:
    backbone = config.backbone
    block = _RESIDUAL_BLOCKS[backbone.block]
    index = STAGES.index(stage)
    planes, channels, frames = backbone.width * 2**index, backbone.channels(stage), config.frames(stage)
    channels_in = backbone.channels(STAGES[index - 1]) if index else backbone.stem_channels()
    stride = backbone.sampling(stage).stride
    first = block(channels_in, planes, stride, frames[0], config)
    if stride != 1 or channels_in != channels:
        first.downsample = nn.Sequential(_conv(channels_in, channels, 1, 1, stride), nn.BatchNorm3d(channels))
    later = (block(channels, planes, 1, own, config) for own in frames[1:])
    return nn.Sequential(first, *later)


def _conv(
    channels_in: int, channels: int, frames: int, side: int, stride: int = 1, groups: int = 1, time_stride: int = 1
) -> nn.Conv3d:
    """Without bias, padded so that it keeps the number of frames, height and width but for the strides."""
    return nn.Conv3d(
        channels_in,
        channels,
        (frames, side, side),
        stride=(time_stride, stride, stride),
        padding=(frames // 2, side // 2, side // 2),
        groups=groups,
        bias=False,
    )
