"""The numbers that make a network for semantic segmentation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nlprobe.blocks import PointWiseConfig, block_config
from nlprobe.blocks.settings import BlockConfig, unknown
from nlprobe.errors import ConfigError
from nlprobe.models.config import ResNetConfig, fitting_settings

DILATED = ResNetConfig(stem="deep", output_stride=8, dilate_first=True, classes=0)

ACTIVATIONS = ("relu", "leaky_relu")

HEADS = ("fcn", "dual_attention", "asymmetric", "point_wise")


@dataclass(frozen=True)
class SegmentationConfig:
    """A residual network with a head that gives every pixel a class (section 5.4).

    Args:
        backbone: The trunk; its `classes` are 0, as it has no classifier of its own.
        head: `fcn` (3x3, context operator, 3x3, concatenation with c5, 3x3, classifier), `dual_attention` (DANet),
            `asymmetric` (ANN) or `point_wise` (PSANet: the operator on c5 itself, concatenation with c5, 3x3,
            classifier).
        context: The operator in the `fcn` head; None for the plain one. That of the `point_wise` head, which has to be
            one without a fusion of its own.
        channels: Width of the head; 512 in the paper.
        concatenate: Whether the `fcn` head lays c5 beside its result before the last 3x3.
        activation: Behind the norms of the heads' convolutions: `relu`, or `leaky_relu` with slope 0.01, which CCNet's
            InPlaceABN applies.
        auxiliary: Channels of the auxiliary head on c4; 0 for none.
        dropout: Share of channels dropped before the classifier.
        classes: Number of classes.
        align_corners: Whether the first and last positions of the coarse scores lie on the first and last pixels, as in
            the published networks for crops of 769 = 8 · 96 + 1.

    Raises:
        ConfigError: an unknown head, a number out of its range, or settings that exclude each other.
    """

    backbone: ResNetConfig = DILATED
    head: str = "fcn"
    context: BlockConfig | None = None
    channels: int = 512
    concatenate: bool = True
    activation: str = "relu"
    auxiliary: int = 512
    dropout: float = 0.1
    classes: int = 19
    align_corners: bool = True

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise unknown("head of a segmentation network", self.head, HEADS)
        if self.activation not in ACTIVATIONS:
            raise unknown("activation of a segmentation network", self.activation, ACTIVATIONS)
        if self.backbone.classes:
            raise ConfigError(
                f"the backbone of a segmentation network has a classifier of {self.backbone.classes} classes",
                "set its `classes` to 0, and those of the network to what the data set has",
            )
        if min(self.channels, self.classes) < 1 or self.auxiliary < 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"segmentation network: {self.channels} channels, {self.auxiliary} in the auxiliary head, "
                f"{self.classes} classes, dropout {self.dropout}",
                "channels and classes are 1 or more, the auxiliary head's channels 0 or more, dropout is below 1",
            )
        if self.head == "point_wise":
            if not isinstance(self.context, PointWiseConfig) or self.context.fusion != "none" or not self.concatenate:
                raise ConfigError(
                    "the `point_wise` head lays point-wise attention beside c5",
                    "give `context` a `point_wise` block with `fusion` none, and leave `concatenate` on",
                )
        elif self.head != "fcn" and (self.context is not None or not self.concatenate):
            raise ConfigError(
                f"the `{self.head}` head has its own context operators and takes no others",
                "leave `context` and `concatenate` as they are, or take the `fcn` head",
            )

    @property
    def insertions(self) -> tuple[Any, ...]:
        """The blocks inserted into the backbone."""
        return self.backbone.insertions

    def sites(self) -> list[str]:
        """Every attention block by its site, in the order of the forward pass."""
        within = [f"backbone.{site}" for site in self.backbone.sites()]
        heads = {
            "fcn": _operator_sites(self.context),
            "point_wise": _operator_sites(self.context),
            "dual_attention": ["head.position", "head.channel"],
            "asymmetric": ["head.fusion", "head.context"],
        }
        return within + heads[self.head]

    def as_dict(self) -> dict[str, Any]:
        """A description that JSON can hold; `architecture` says which class reads it."""
        described = {field.name: getattr(self, field.name) for field in fields(self)}
        described |= {
            "backbone": self.backbone.as_dict(),
            "context": None if self.context is None else self.context.as_dict(),
        }
        return {"architecture": "segmentation", **described}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "SegmentationConfig":
        """The configuration that `as_dict` described; settings that are left out take their default.

        Raises:
            ConfigError: an unknown key, with close matches, or a value that is not understood.
        """
        known = fitting_settings(cls, settings, "segmentation", "a segmentation network", ("backbone", "context"))
        if "backbone" in known:
            known["backbone"] = ResNetConfig.from_dict(known["backbone"])
        if known.get("context") is not None:
            known["context"] = block_config(known["context"])
        return cls(**known)

    def with_insertions(self, insertions: tuple[Any, ...]) -> "SegmentationConfig":
        """The same with other blocks in the backbone."""
        return replace(self, backbone=replace(self.backbone, insertions=insertions))


def _operator_sites(context: BlockConfig | None) -> list[str]:
    """The sites of an operator in the `fcn` head; each direction of point-wise attention is one."""
    if isinstance(context, PointWiseConfig):
        return [f"head.context.{direction}" for direction in context.directions]
    return [] if context is None else ["head.context"]
