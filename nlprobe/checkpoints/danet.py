"""Checkpoints of DANet's own repository: a dilated ResNet, and attention between positions and between channels.

| there | here |
| --- | --- |
| `pretrained.` | `backbone.` |
| `head.conv5a`, `conv51` | `head.position_reduce`, `position_smooth` |
| `head.conv5c`, `conv52` | `head.channel_reduce`, `channel_smooth` |
| `head.sa`, `head.sc` | `head.position`, `head.channel` |
| `head.conv6`, `conv7`, `conv8` | `head.position_classifier`, `channel_classifier`, `classifier` |

The ImageNet classifier of the trunk is in the file and has no use, and neither has `auxlayer`.
"""

from collections.abc import Sequence

from nlprobe.checkpoints.answers import PIXELS, Answers, Question
from nlprobe.checkpoints.mapping import LeftOut, Rename, Rules, by_rules
from nlprobe.checkpoints.openmmlab import residual_layers
from nlprobe.checkpoints.project import Project, Weights
from nlprobe.models.build import Config
from nlprobe.models.config import ResNetConfig
from nlprobe.models.segmentation_config import SegmentationConfig

_CLASSIFIER = "head.conv8.1.weight"


class DANet(Project):
    """junfu1115/DANet."""

    name = "danet"
    title = "DANet"

    def recognises(self, weights: Weights) -> bool:
        """Whether a head with both attentions stands on a pretrained trunk."""
        return {"head.sa.gamma", "head.sc.gamma", _CLASSIFIER, "pretrained.conv1.weight"} <= set(weights)

    def describe(self, weights: Weights) -> str:
        """Depth and classes."""
        layers = residual_layers(weights, "pretrained.")
        return f"DANet on a ResNet of {sum(layers)} residual blocks, {len(weights[_CLASSIFIER])} classes"

    def questions(self, weights: Weights) -> Sequence[Question]:
        """The dilations of c5, and those of pictures."""
        return (Question("dilations", "4,8,16", "of c5's residual blocks: `multi_dilation`, or 4 for all"), *PIXELS)

    def config(self, weights: Weights, answers: Answers) -> SegmentationConfig:
        """The network for segmentation."""
        layers = residual_layers(weights, "pretrained.")
        given = answers.integers("dilations")
        return SegmentationConfig(
            backbone=ResNetConfig(
                layers=layers,
                block="bottleneck" if "pretrained.layer1.0.conv3.weight" in weights else "basic",
                width=len(weights["pretrained.conv1.weight"]),
                output_stride=8,
                dilations=() if given == (4,) else given,
                classes=0,
            ),
            head="dual_attention",
            channels=weights[_CLASSIFIER].shape[1],
            auxiliary=0,
            classes=len(weights[_CLASSIFIER]),
            align_corners=True,
        )

    def rename(self, config: Config) -> Rename:
        """Trunk and head."""
        return by_rules(_RULES)

    def first_convolution(self, config: Config) -> str:
        """In the stem."""
        return "backbone.conv1.weight"


_PARTS = {"5a": "position_reduce", "51": "position_smooth", "5c": "channel_reduce", "52": "channel_smooth"}
_RULES: Rules = [
    (r"pretrained\.fc\..*", LeftOut("the ImageNet classifier of its trunk")),
    (r"auxlayer\..*", LeftOut("a layer that its forward does not use")),
    (r"pretrained\.(.*)", r"backbone.\1"),
    *((rf"head\.conv{theirs}\.0\.(.*)", rf"head.{ours}.conv.\1") for theirs, ours in _PARTS.items()),
    *((rf"head\.conv{theirs}\.1\.(.*)", rf"head.{ours}.norm.\1") for theirs, ours in _PARTS.items()),
    (r"head\.sa\.(query|key|value)_conv\.(.*)", r"head.position.\1.\2"),
    (r"head\.sa\.gamma", r"head.position.gate.gamma"),
    (r"head\.sc\.gamma", r"head.channel.gate.gamma"),
    (r"head\.conv6\.1\.(.*)", r"head.position_classifier.conv.\1"),
    (r"head\.conv7\.1\.(.*)", r"head.channel_classifier.conv.\1"),
    (r"head\.conv8\.1\.(.*)", r"head.classifier.conv.\1"),
]
