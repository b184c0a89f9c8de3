"""The numbers that make a network for object detection and instance segmentation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nlprobe.blocks.settings import unknown
from nlprobe.errors import ConfigError
from nlprobe.models.config import ResNetConfig, fitting_settings

BOX_HEADS = ("2fc", "4conv1fc")
GEOMETRIES = ("mmdet1", "mmdet2", "torchvision")

TRUNK = ResNetConfig(classes=0)


@dataclass(frozen=True)
class DetectionConfig:
    """Mask R-CNN with a feature pyramid on a residual network, or its cascade (section 5.1).

    Where a position of a map lies in the image is a convention, and weights fit the one that they were trained with:

    | geometry | anchors stand | their sides | RoIAlign |
    | --- | --- | --- | --- |
    | `mmdet1`, the paper's | in the middle of each position's square | whole pixels | 2x2 samples a bin |
    | `mmdet2`, Detectron2 | at its upper left corner | exact | shifted by half a position, a sample for each in a bin |
    | `torchvision` | at its corner, by rounded strides | whole pixels | 2x2 samples a bin |

    Torchvision's strides are the image's length by the level's, rounded down: less than 64 on P6 of most images.

    Args:
        backbone: The trunk; its `classes` are 0, as it has no classifier of its own.
        channels: Channels of the feature pyramid, the proposal head, and the convolutions of box and mask heads.
        proposal_layers: 3x3 convolutions of the proposal head.
        box_head: `2fc` (two linear layers) or `4conv1fc` (four 3x3 convolutions and a linear layer).
        box_width: Width of the linear layers.
        norm: Whether the pyramid and the convolutions of box and mask heads have batch norms, and no biases.
        masks: Whether there is a mask head: Mask R-CNN, else Faster R-CNN.
        mask_layers: 3x3 convolutions of the mask head before it is upsampled.
        cascade: Three stages of heads, each for boxes that overlap more, instead of one.
        class_agnostic: One regression of a box instead of one for each class.
        classes: Number of classes, without the background.
        anchor_scale: Side of a square anchor, in strides of its level.
        geometry: See above.
        finest_box: Side of a box in pixels below twice which it is pooled from the finest level; each level above takes
            boxes of twice the side.
        proposals: Boxes that the proposal head passes on in evaluation mode, and that it takes from each level.
        training_proposals: The same in training mode.
        sampled_anchors: Anchors in the loss of the proposal head, for each image; half of them objects if possible.
        sampled_boxes: Proposals in the losses of the box and mask heads, for each image; up to a quarter objects.
        detections: Boxes that are given for an image, at most.
        score_threshold: Boxes with a lower score are not given.

    Raises:
        ConfigError: an unknown name, or a number out of its range.
    """

    backbone: ResNetConfig = TRUNK
    channels: int = 256
    proposal_layers: int = 1
    box_head: str = "2fc"
    box_width: int = 1024
    norm: bool = False
    masks: bool = True
    mask_layers: int = 4
    cascade: bool = False
    class_agnostic: bool = False
    classes: int = 80
    anchor_scale: int = 8
    geometry: str = "mmdet1"
    finest_box: int = 56
    proposals: int = 1000
    training_proposals: int = 2000
    sampled_anchors: int = 256
    sampled_boxes: int = 512
    detections: int = 100
    score_threshold: float = 0.05

    def __post_init__(self) -> None:
        if self.box_head not in BOX_HEADS:
            raise unknown("box head of a detection network", self.box_head, BOX_HEADS)
        if self.geometry not in GEOMETRIES:
            raise unknown("geometry of a detection network", self.geometry, GEOMETRIES)
        if self.backbone.classes:
            raise ConfigError(
                f"the backbone of a detection network has a classifier of {self.backbone.classes} classes",
                "set its `classes` to 0, and those of the network to what the data set has",
            )
        if self.backbone.output_stride != 32:
            raise ConfigError(
                f"the backbone of a detection network has the output stride {self.backbone.output_stride}",
                "the feature pyramid needs 32",
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < 1:
                raise ConfigError(f"`{field.name}` of a detection network is {value}", "use 1 or more")
        if not 0 <= self.score_threshold < 1:
            raise ConfigError(f"`score_threshold` is {self.score_threshold}", "use 0 or more, and less than 1")

    @property
    def insertions(self) -> tuple[Any, ...]:
        """The blocks inserted into the backbone."""
        return self.backbone.insertions

    def sites(self) -> list[str]:
        """Every attention block by its site, in the order of the forward pass."""
        return [f"backbone.{site}" for site in self.backbone.sites()]

    def as_dict(self) -> dict[str, Any]:
        """A description that JSON can hold; `architecture` says which class reads it."""
        described = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"architecture": "detection", **described, "backbone": self.backbone.as_dict()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "DetectionConfig":
        """The configuration that `as_dict` described; settings that are left out take their default.

        Raises:
            ConfigError: an unknown key, with close matches, or a value that is not understood.
        """
        known = fitting_settings(cls, settings, "detection", "a detection network", ("backbone",))
        if "backbone" in known:
            known["backbone"] = ResNetConfig.from_dict(known["backbone"])
        return cls(**known)

    def with_insertions(self, insertions: tuple[Any, ...]) -> "DetectionConfig":
        """The same with other blocks in the backbone."""
        return replace(self, backbone=replace(self.backbone, insertions=insertions))
