"""ResNet and ResNeXt with torchvision's parameter names, and attention blocks at any place of any residual block."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from nlprobe.blocks import build_block
from nlprobe.errors import ConfigError
from nlprobe.models.config import LAYERS, ResNetConfig, Sampling
from nlprobe.models.deformable import DeformableConvolution, OffsetConvolution
from nlprobe.models.insertion import STAGES


class ResidualBlock(nn.Module):
    """What the two kinds of residual block share: the shortcut, and the three places where a block may stand.

    `after_1x1` is the end of the residual branch (after its last norm, before the add), `after_add` the sum before the
    ReLU, `after_block` the output. A place is None until a module is assigned to it.

    Shapes: (B, C_in, H, W) -> (B, C, H / stride, W / stride); of clips (B, C_in, T, H, W) -> (B, C, T, …).
    """

    expansion: int

    def __init__(self) -> None:
        super().__init__()
        self.downsample: nn.Module | None = None
        self.after_1x1: nn.Module | None = None
        self.after_add: nn.Module | None = None
        self.after_block: nn.Module | None = None
        self.relu = nn.ReLU(inplace=True)

    def branch(self, x: Tensor) -> Tensor:
        """The residual branch up to and with its last norm."""
        raise NotImplementedError

    @property
    def last_norm(self) -> nn.BatchNorm2d | nn.BatchNorm3d:
        """The norm at the end of the branch."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "b c_in *size"]) -> Float[Tensor, "b c *out"]:
        """The residual unit with whatever was inserted into it."""
        out = self.branch(x)
        if self.after_1x1 is not None:
            out = self.after_1x1(out)
        out += x if self.downsample is None else self.downsample(x)
        if self.after_add is not None:
            out = self.after_add(out)
        out = self.relu(out)
        if self.after_block is not None:
            out = self.after_block(out)
        return out


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, as in ResNet-18 and 34."""

    expansion = 1

    def __init__(
        self, channels_in: int, planes: int, sampling: Sampling, config: ResNetConfig, deformable: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels_in, planes, sampling.stride, sampling.first_dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, 1, sampling.dilation)
        self.bn2 = nn.BatchNorm2d(planes)

    def branch(self, x: Tensor) -> Tensor:
        """conv1, norm, ReLU, conv2, norm."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """`bn2`."""
        return self.bn2


class Bottleneck(ResidualBlock):
    """1x1, 3x3, 1x1 convolutions, as in ResNet-50 and deeper and in ResNeXt; the stride is on the 3x3.

    The 3x3 is plain or deformable.
    """

    expansion = 4

    def __init__(
        self, channels_in: int, planes: int, sampling: Sampling, config: ResNetConfig, deformable: bool = False
    ) -> None:
        super().__init__()
        inner = int(planes * config.base_width / 64) * config.groups
        self.conv1 = _conv1x1(channels_in, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        conv3x3 = DeformableConvolution if deformable else _conv3x3
        self.conv2 = conv3x3(inner, inner, sampling.stride, sampling.first_dilation, config.groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _conv1x1(inner, planes * self.expansion)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)

    def branch(self, x: Tensor) -> Tensor:
        """conv1, norm, ReLU, conv2, norm, ReLU, conv3, norm."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """`bn3`."""
        return self.bn3


RESIDUAL_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """A residual network for classification, or the trunk of one for something else.

    Parameter names and initialisation are torchvision's: from one seed both give the same weights. A deep stem has the
    scene-parsing project's names, conv1 and bn1 to conv3 and bn3 beside the stages. The trunk is initialised first and
    the inserted blocks after it, so networks that differ only in what is inserted have the same trunk when built from
    the same seed.

    Args:
        config: Depth, widths, classes and insertions.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        if config.stem == "plain":
            self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
        else:
            inner = width if config.stem == "deep" else width // 2
            self.conv1 = _conv3x3(3, inner, stride=2)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv2 = _conv3x3(inner, inner)
            self.bn2 = nn.BatchNorm2d(inner)
            self.conv3 = _conv3x3(inner, inner * 2)
            self.bn3 = nn.BatchNorm2d(inner * 2)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=config.ceil_pool)
        self.layer1 = _stage(config, "c2")
        self.layer2 = _stage(config, "c3")
        self.layer3 = _stage(config, "c4")
        self.layer4 = _stage(config, "c5")
        self.avgpool = nn.AdaptiveAvgPool2d(1) if config.classes else None
        self.fc = nn.Linear(config.channels("c5"), config.classes) if config.classes else None
        self._initialise()
        self.insert(config)

    def insert(self, config: ResNetConfig) -> None:
        """Put in the blocks that the configuration, otherwise this network's own, inserts."""
        self.config = config
        for insertion in config.insertions:
            for index in config.indices(insertion):
                width_here = config.channels(insertion.stage)
                block = build_block(insertion.block.block, width_here, 2, insertion.block)
                setattr(self.get_submodule(f"{LAYERS[insertion.stage]}.{index}"), insertion.place, block)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Class logits of normalised images; any height and width from 32 up, better from 64 up.

        Raises:
            ConfigError: the network is a trunk without classifier.
        """
        if self.avgpool is None or self.fc is None:
            raise ConfigError("the network is a trunk without classifier", "use its `features`, or give it `classes`")
        return self.fc(self.avgpool(self.features(images)["c5"]).flatten(1))

    def features(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """The feature maps of c2 to c5; the last is (B, C, H/output_stride, W/output_stride), lengths rounded up."""
        x = self.stem(images)
        found = {}
        for stage in STAGES:
            found[stage] = x = self.get_submodule(LAYERS[stage])(x)
        return found

    def stem(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h_out w_out"]:
        """What c2 gets: (B, `config.stem_channels()`, H/4, W/4), each length rounded up."""
        x = self.relu(self.bn1(self.conv1(images)))
        if self.config.stem != "plain":
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.relu(self.bn3(self.conv3(x)))
        return self.maxpool(x)

    def sites(self) -> list[str]:
        """Every inserted block by its site, in the order of the forward pass, such as `layer3.4:after_add`."""
        return self.config.sites()

    def residual_blocks(self) -> Iterator[BasicBlock | Bottleneck]:
        """The residual blocks in the order of the forward pass."""
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                yield module

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | DeformConv2d) and not isinstance(module, OffsetConvolution):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.eps = self.config.norm_epsilon
        if self.config.zero_init_residual:
            for block in self.residual_blocks():
                nn.init.zeros_(block.last_norm.weight)


def _stage(config: ResNetConfig, stage: str) -> nn.Sequential:
    block = RESIDUAL_BLOCKS[config.block]
    index = STAGES.index(stage)
    planes, channels = config.width * 2**index, config.channels(stage)
    channels_in = config.channels(STAGES[index - 1]) if index else config.stem_channels()
    sampling, *later = config.samplings(stage)
    deformable = stage in config.deformable
    first = block(channels_in, planes, sampling, config, deformable)
    if sampling.stride != 1 or channels_in != channels:
        first.downsample = nn.Sequential(_conv1x1(channels_in, channels, sampling.stride), nn.BatchNorm2d(channels))
    return nn.Sequential(first, *(block(channels, planes, own, config, deformable) for own in later))


def _conv1x1(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, kernel_size=1, stride=stride, bias=False)


def _conv3x3(channels_in: int, channels: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        channels_in, channels, 3, stride=stride, padding=dilation, dilation=dilation, groups=groups, bias=False
    )
