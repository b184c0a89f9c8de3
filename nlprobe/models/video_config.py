"""The numbers that make a network for clips of video."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nlprobe.errors import ConfigError
from nlprobe.models.config import ARCHITECTURES, ResNetConfig, fitting_settings
from nlprobe.models.insertion import STAGES, Insertion

SLOW_ONLY = (1, 1, 1, 3, 3)
"""Frames that the kernels of the stem, c2, c3, c4 and c5 span in the Slow pathway of SlowFast networks."""

TRUNK = replace(ARCHITECTURES["resnet50"], classes=0, zero_init_residual=True)


@dataclass(frozen=True)
class VideoConfig:
    """A residual network whose convolutions see time, with a classifier (section 5.3).

    Args:
        backbone: The network for pictures that this one is the inflation of: depth, widths and attention blocks. Its
            `classes` are 0, its stem is plain and its output stride 32.
        temporal: How many frames the kernels span, each odd: that of the stem, and in c2, c3, c4 and c5 that of the
            first convolution of every residual block. (1, 1, 1, 3, 3) is Slow-only.
        kernels: The same block by block, a tuple for each of c2 to c5, where the blocks of a stage differ, as every
            second one of I3D spans one frame only; without, all blocks of a stage are as `temporal` says.
        stem_stride: Frames from one position of the stem to the next; 1 in Slow-only.
        pool_stride: Frames from one position of the max-pool behind the stem to the next.
        pool_frames: Frames that it takes the maximum of.
        halve: Whether a max-pool of two frames stands behind c2, as in I3D.
        shift: The share of channels, 1 / shift, that the first convolution of every residual block sees of the next
            frame, and as many of the frame before, in place of its own (temporal shift networks); 0 for none.
        pad_pool: Whether the max-pool behind the stem pads its map by one position in space; the code of "Non-local
            Neural Networks" does not.
        dropout: Share of the pooled features dropped before the classifier.
        classes: Number of classes.

    Raises:
        ConfigError: a number out of its range, or a backbone that cannot be inflated.
    """

    backbone: ResNetConfig = TRUNK
    temporal: tuple[int, ...] = SLOW_ONLY
    kernels: tuple[tuple[int, ...], ...] = ()
    stem_stride: int = 1
    pool_stride: int = 1
    pool_frames: int = 1
    halve: bool = False
    shift: int = 0
    pad_pool: bool = True
    dropout: float = 0.5
    classes: int = 400

    def __post_init__(self) -> None:
        if self.backbone.classes:
            raise ConfigError(
                f"the backbone of a video network has a classifier of {self.backbone.classes} classes",
                "set its `classes` to 0, and those of the network to what the data set has",
            )
        if self.backbone.stem != "plain" or self.backbone.output_stride != 32:
            raise ConfigError(
                f"a video network with a {self.backbone.stem} stem and an output stride of "
                f"{self.backbone.output_stride}",
                "leave `stem` at `plain` and `output_stride` at 32",
            )
        odd = all(type(frames) is int and frames > 0 and frames % 2 for frames in self.temporal)
        if len(self.temporal) != 1 + len(STAGES) or not odd:
            raise ConfigError(
                f"`temporal` of a video network is {self.temporal}",
                "give five odd numbers of frames, for the stem, c2, c3, c4 and c5, such as (1, 1, 1, 3, 3)",
            )
        if self.kernels and tuple(map(len, self.kernels)) != self.backbone.layers:
            raise ConfigError(
                f"`kernels` of a video network is {self.kernels}",
                f"give a tuple for each stage, of {', '.join(map(str, self.backbone.layers))} numbers, or none",
            )
        if any(type(frames) is not int or frames < 1 or frames % 2 == 0 for stage in self.kernels for frames in stage):
            raise ConfigError(f"`kernels` of a video network is {self.kernels}", "give odd numbers of frames")
        if self.shift < 0 or self.shift == 1:
            raise ConfigError(f"`shift` of a video network is {self.shift}", "use 2 or more, such as 8, or 0 for none")
        numbers = (self.stem_stride, self.pool_stride, self.pool_frames)
        if min(numbers) < 1:
            raise ConfigError(f"`stem_stride`, `pool_stride` and `pool_frames` are {numbers}", "use 1 or more")
        if not 0 <= self.dropout < 1 or self.classes < 1:
            raise ConfigError(
                f"video network: {self.classes} classes, dropout {self.dropout}",
                "classes are 1 or more, dropout is at least 0 and below 1",
            )

    @property
    def insertions(self) -> tuple[Insertion, ...]:
        """The blocks inserted into the network."""
        return self.backbone.insertions

    def frames(self, stage: str) -> tuple[int, ...]:
        """How many frames the first convolution of each residual block of a stage spans."""
        index = STAGES.index(stage)
        return self.kernels[index] if self.kernels else (self.temporal[1 + index],) * self.backbone.layers[index]

    def sites(self) -> list[str]:
        """Every attention block by its site, in the order of the forward pass, such as `layer2.1:after_block`."""
        return self.backbone.sites()

    def as_dict(self) -> dict[str, Any]:
        """A description that JSON can hold; `architecture` says which class reads it."""
        described = {field.name: getattr(self, field.name) for field in fields(self)}
        described |= {"backbone": self.backbone.as_dict(), "temporal": list(self.temporal)}
        described["kernels"] = [list(stage) for stage in self.kernels]
        return {"architecture": "video", **described}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "VideoConfig":
        """The configuration that `as_dict` described; settings that are left out take their default.

        Raises:
            ConfigError: an unknown key, with close matches, or a value that is not understood.
        """
        whole = dict(settings)
        if isinstance(whole.get("temporal"), list):
            whole["temporal"] = tuple(whole["temporal"])
        if isinstance(whole.get("kernels"), list):
            whole["kernels"] = tuple(tuple(stage) for stage in whole["kernels"])
        known = fitting_settings(cls, whole, "video", "a video network", ("backbone",))
        if "backbone" in known:
            known["backbone"] = ResNetConfig.from_dict(known["backbone"])
        return cls(**known)

    def with_insertions(self, insertions: tuple[Insertion, ...]) -> "VideoConfig":
        """The same with other blocks."""
        return replace(self, backbone=replace(self.backbone, insertions=insertions))
