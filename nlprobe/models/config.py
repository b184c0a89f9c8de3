"""The numbers that make a residual network, and the published architectures by name."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from nlprobe.blocks import PLACES
from nlprobe.blocks.settings import unknown
from nlprobe.errors import ConfigError
from nlprobe.models.insertion import STAGES, Insertion

LAYERS = {"c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}

STEMS = ("plain", "deep", "narrow_deep")
OUTPUT_STRIDES = (32, 16, 8)

_EXPANSION = {"basic": 1, "bottleneck": 4}


@dataclass(frozen=True)
class Sampling:
    """How a stage samples its input.

    Args:
        stride: Of its first residual block.
        first_dilation: Of the first 3x3 convolution of the first residual block, the one that has the stride.
        dilation: Of every other 3x3 convolution.
    """

    stride: int
    first_dilation: int
    dilation: int


@dataclass(frozen=True)
class ResNetConfig:
    """A residual network.

    Args:
        layers: Residual blocks in c2, c3, c4 and c5.
        block: `basic` (two 3x3) or `bottleneck` (1x1, 3x3, 1x1).
        groups: Groups of the bottleneck's 3x3 convolution; 32 or 64 in ResNeXt.
        base_width: Channels of a group, in c2 and where `width` is 64; 4 in ResNeXt. Torchvision's `width_per_group`.
        width: Channels of the stem and planes of c2; 64 in every published network.
        stem: `plain` (one 7x7 convolution) or `deep` (three 3x3 of `width`, `width` and 2 `width` channels, the first
            with the stride), which the scene-parsing project's ResNets have, and with them CCNet and the paper's
            Cityscapes networks; or `narrow_deep`, the same of half as many channels (`width` / 2 twice, then `width`),
            which OpenMMLab's ResNetV1c and timm's `resnet50c` have.
        ceil_pool: Whether the max-pool behind the stem rounds sizes up, as CCNet's does; a map of even size then has a
            position more.
        output_stride: Pixels of the input for one position of c5: 32, or 16 or 8 with the stride of c5, or of c4 and
            c5, replaced by dilation (2 in c5; 2 in c4 and 4 in c5). The weights are those of stride 32.
        dilate_first: Whether the convolution that had the stride is dilated as the rest of its stage is. Without, it
            keeps the dilation of the stage before it, as in torchvision, timm, and the scene-parsing project; CCNet
            dilates it. The weights fit both.
        dilations: Of the 3x3 convolutions of each residual block of c5, which DANet has as (4, 8, 16); empty for what
            `output_stride` says.
        deformable: Stages whose 3x3 convolutions are deformable (DCN), such as ("c3", "c4", "c5") in Table 7.
        norm_epsilon: What the norms add to the variance; 0 in torchvision's published detectors.
        classes: Outputs of the classifier; 0 for a trunk without one, of which `features` is used.
        zero_init_residual: Start the last norm of every residual branch at zero.
        insertions: Attention blocks, and where they stand.

    Raises:
        ConfigError: numbers that make no network, or two blocks at one site.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    block: str = "bottleneck"
    groups: int = 1
    base_width: int = 64
    width: int = 64
    stem: str = "plain"
    ceil_pool: bool = False
    output_stride: int = 32
    dilate_first: bool = False
    dilations: tuple[int, ...] = ()
    deformable: tuple[str, ...] = ()
    norm_epsilon: float = 1e-5
    classes: int = 1000
    zero_init_residual: bool = False
    insertions: tuple[Insertion, ...] = ()

    def __post_init__(self) -> None:
        if self.block not in _EXPANSION:
            raise unknown("kind of residual block", self.block, _EXPANSION)
        if self.stem not in STEMS:
            raise unknown("stem of a residual network", self.stem, STEMS)
        if self.stem == "narrow_deep" and self.width % 2:
            raise ConfigError(f"a `narrow_deep` stem halves the width, which is {self.width}", "take an even `width`")
        if self.output_stride not in OUTPUT_STRIDES:
            raise ConfigError(f"`output_stride` is {self.output_stride}", "use 32, 16 or 8")
        if self.dilate_first and self.output_stride == 32:
            raise ConfigError("`dilate_first` without any dilation", "set `output_stride` to 16 or 8, or leave it out")
        if len(self.layers) != len(STAGES) or not all(type(count) is int for count in self.layers):
            raise ConfigError(f"`layers={self.layers}` does not name four stages", "give four whole numbers, c2 to c5")
        numbers = {"layers": min(self.layers), "groups": self.groups, "base_width": self.base_width}
        for name, number in {**numbers, "width": self.width}.items():
            if number < 1:
                raise ConfigError(f"`{name}` is {number}", "use 1 or more")
        if self.classes < 0:
            raise ConfigError(f"`classes` is {self.classes}", "use 1 or more, or 0 for a trunk without classifier")
        if self.block == "basic" and (self.groups != 1 or self.base_width != 64):
            raise ConfigError(
                f"a basic block has no groups: `groups={self.groups}`, `base_width={self.base_width}`",
                "leave them at 1 and 64, or use block `bottleneck`",
            )
        if self.dilations and (len(self.dilations) != self.layers[-1] or min(self.dilations) < 1):
            raise ConfigError(
                f"`dilations` is {self.dilations}, and c5 has {self.layers[-1]} residual blocks",
                "give a number of 1 or more for each of them, or none",
            )
        if self.dilations and self.output_stride == 32:
            raise ConfigError("`dilations` of c5, which is not dilated", "set `output_stride` to 16 or 8")
        for stage in self.deformable:
            if stage not in STAGES:
                raise unknown("stage of a residual network", stage, STAGES)
        if self.deformable and self.block == "basic":
            raise ConfigError("a basic block has no deformable convolution", "use block `bottleneck`")
        if self.norm_epsilon < 0:
            raise ConfigError(f"`norm_epsilon` is {self.norm_epsilon}", "use 1e-5, or 0 or more")
        sites = self.sites()
        for site in sites:
            if sites.count(site) > 1:
                raise ConfigError(f"two blocks at the site `{site}`", "a site holds one block: choose another place")

    def channels(self, stage: str) -> int:
        """Channels of a stage's output."""
        return self.width * 2 ** STAGES.index(stage) * _EXPANSION[self.block]

    def stem_channels(self) -> int:
        """Channels of the stem's output."""
        return self.width * 2 if self.stem == "deep" else self.width

    def sampling(self, stage: str) -> Sampling:
        """Stride and dilations of a stage."""
        index = STAGES.index(stage)
        full = 4 * 2**index  # input pixels for one of the stage's positions where nothing is dilated
        dilation = max(1, full // self.output_stride)
        before = max(1, full // 2 // self.output_stride)
        stride = 2 if index > 0 and full <= self.output_stride else 1
        return Sampling(stride, dilation if self.dilate_first else before, dilation)

    def samplings(self, stage: str) -> tuple[Sampling, ...]:
        """Stride and dilations of each residual block of a stage."""
        first = self.sampling(stage)
        if stage == STAGES[-1] and self.dilations:
            return tuple(Sampling(1, dilation, dilation) for dilation in self.dilations)
        later = Sampling(1, first.dilation, first.dilation)
        return first, *(later for _ in range(self.layers[STAGES.index(stage)] - 1))

    def indices(self, insertion: Insertion) -> tuple[int, ...]:
        """The residual blocks of its stage that an insertion gives a block to."""
        return insertion.indices(self.layers[STAGES.index(insertion.stage)])

    def sites(self) -> list[str]:
        """Every inserted block by its site, in the order of the forward pass, such as `layer3.4:after_add`."""
        found = [
            (STAGES.index(insertion.stage), index, PLACES.index(insertion.place))
            for insertion in self.insertions
            for index in self.indices(insertion)
        ]
        return [f"{LAYERS[STAGES[stage]]}.{index}:{PLACES[place]}" for stage, index, place in sorted(found)]

    def as_dict(self) -> dict[str, Any]:
        """A description that JSON can hold; `architecture` says which class reads it."""
        described = asdict(replace(self, insertions=()))
        described |= {"layers": list(self.layers), "dilations": list(self.dilations)}
        described["deformable"] = list(self.deformable)
        described["insertions"] = [insertion.as_dict() for insertion in self.insertions]
        return {"architecture": "resnet", **described}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "ResNetConfig":
        """The configuration that `as_dict` described; settings that are left out take their default.

        Raises:
            ConfigError: an unknown key, with close matches, or a value that is not understood.
        """
        whole = dict(settings)
        for name in ("layers", "dilations", "deformable", "insertions"):
            if name in whole:
                whole[name] = tuple(whole[name])
        known = fitting_settings(cls, whole, "resnet", "a residual network")
        known["insertions"] = tuple(Insertion.from_dict(each) for each in known.get("insertions", ()))
        return cls(**known)


def fitting_settings(
    config: type[Any], settings: Mapping[str, Any], architecture: str, what: str, nested: Collection[str] = ()
) -> dict[str, Any]:
    """The settings of a configuration class that `settings` describe, with the types of their defaults.

    Args:
        config: The frozen dataclass.
        settings: By name; `architecture` is left out of what is returned.
        architecture: What that has to be, if it is there.
        what: What the class configures, for messages.
        nested: Names of settings that are configurations themselves, whose types are not compared.

    Raises:
        ConfigError: another architecture, an unknown key, with close matches, or a value of another type.
    """
    settings = dict(settings)
    given = settings.pop("architecture", architecture)
    if given != architecture:
        raise ConfigError(f"`{given}` is not the architecture `{architecture}`", "read it with models.build")
    defaults = {field.name: field.default for field in fields(config)}
    for name, value in settings.items():
        if name not in defaults:
            raise unknown(f"setting of {what}", name, defaults)
        if name not in nested and type(value) is not type(defaults[name]):
            raise ConfigError(f"`{name}` of {what} cannot be `{value!r}`", f"default: {defaults[name]!r}")
    return settings


ARCHITECTURES = {
    "resnet18": ResNetConfig(layers=(2, 2, 2, 2), block="basic"),
    "resnet34": ResNetConfig(layers=(3, 4, 6, 3), block="basic"),
    "resnet50": ResNetConfig(layers=(3, 4, 6, 3)),
    "resnet101": ResNetConfig(layers=(3, 4, 23, 3)),
    "resnet152": ResNetConfig(layers=(3, 8, 36, 3)),
    "resnext50_32x4d": ResNetConfig(layers=(3, 4, 6, 3), groups=32, base_width=4),
    "resnext101_32x4d": ResNetConfig(layers=(3, 4, 23, 3), groups=32, base_width=4),
    "resnext101_64x4d": ResNetConfig(layers=(3, 4, 23, 3), groups=64, base_width=4),
}
