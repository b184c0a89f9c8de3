"""Checkpoints of CCNet's own repository: a dilated ResNet with a deep stem, and criss-cross attention in the head.

| there | here |
| --- | --- |
| `head.conva`, `convb`, `bottleneck.0` (first release: `conv1a`, …) | `head.reduce`, `head.smooth`, `head.fuse` |
| `head.cca` (first release: `pc`) | `head.context` |
| `head.bottleneck.3`, `dsn.0`, `dsn.3` | `head.classifier`, `auxiliary.reduce`, `auxiliary.classifier` |

All norms are InPlaceABN: they multiply by |γ| + ε, and those of the heads have a leaky ReLU behind them. The max-pool
behind the stem rounds sizes up. The auxiliary head's first convolution has a bias in front of its norm, from whose mean
it is taken off.
"""

from collections.abc import Sequence

from nlprobe.blocks import CrissCrossConfig
from nlprobe.checkpoints.answers import PIXELS, Answers, Question
from nlprobe.checkpoints.mapping import Rename, Rules, by_rules
from nlprobe.checkpoints.openmmlab import residual_layers
from nlprobe.checkpoints.project import Project, Weights
from nlprobe.errors import CheckpointError
from nlprobe.models.build import Config
from nlprobe.models.config import ResNetConfig
from nlprobe.models.segmentation_config import SegmentationConfig

_NORM_EPSILON = 1e-5
_BIAS, _MEAN = "dsn.0.bias", "dsn.1.running_mean"


class CCNet(Project):
    """speedinghzl/CCNet."""

    name = "ccnet"
    title = "CCNet"

    def recognises(self, weights: Weights) -> bool:
        """Whether a head with criss-cross attention stands on a network with a deep stem."""
        return any(f"head.{part}.query_conv.weight" in weights for part in ("cca", "pc")) and "conv3.weight" in weights

    def describe(self, weights: Weights) -> str:
        """Depth and classes."""
        classes = len(weights["head.bottleneck.3.weight"])
        return f"CCNet on a ResNet of {sum(residual_layers(weights, ''))} residual blocks, {classes} classes"

    def questions(self, weights: Weights) -> Sequence[Question]:
        """The recurrence, and those of pictures."""
        return (Question("recurrence", "NUMBER", "how often criss-cross attention is applied; 2 in the paper"), *PIXELS)

    def config(self, weights: Weights, answers: Answers) -> SegmentationConfig:
        """The network for segmentation."""
        part = "cca" if "head.cca.query_conv.weight" in weights else "pc"
        inner, width = weights[f"head.{part}.query_conv.weight"].shape[:2]
        if "layer1.0.conv3.weight" not in weights:
            raise CheckpointError(f"{answers.source} has basic blocks", "networks of bottlenecks are read")
        return SegmentationConfig(
            backbone=ResNetConfig(
                layers=residual_layers(weights, ""),
                width=len(weights["conv1.weight"]),
                stem="deep",
                output_stride=8,
                dilate_first=True,
                ceil_pool=True,
                classes=0,
            ),
            context=CrissCrossConfig(width // inner, answers.integer("recurrence", 1)),
            channels=width,
            auxiliary=len(weights["dsn.0.weight"]) if "dsn.0.weight" in weights else 0,
            activation="leaky_relu",
            classes=len(weights["head.bottleneck.3.weight"]),
            align_corners=True,
        )

    def rename(self, config: Config) -> Rename:
        """Trunk, head and auxiliary head."""
        return by_rules(_RULES)

    def prepared(self, weights: Weights, config: Config, answers: Answers) -> Weights:
        """Norms with the weight that they multiply by, and the auxiliary head's bias in the mean of its norm."""
        found = dict(weights)
        for name in weights:
            if name.endswith(".weight") and f"{name.removesuffix('weight')}running_var" in weights:
                found[name] = weights[name].abs() + _NORM_EPSILON
        if _BIAS in weights:
            found[_MEAN] = weights[_MEAN] - found.pop(_BIAS)
        return found

    def first_convolution(self, config: Config) -> str:
        """In the stem."""
        return "backbone.conv1.weight"


_RULES: Rules = [
    (r"((?:conv\d|bn\d|layer\d\.\d+\.(?:conv\d|bn\d|downsample\.\d))\.\w+)", r"backbone.\1"),
    (r"head\.conv1?a\.0\.(.*)", r"head.reduce.conv.\1"),
    (r"head\.conv1?a\.1\.(.*)", r"head.reduce.norm.\1"),
    (r"head\.conv1?b\.0\.(.*)", r"head.smooth.conv.\1"),
    (r"head\.conv1?b\.1\.(.*)", r"head.smooth.norm.\1"),
    (r"head\.(?:cca|pc)\.(query|key|value)_conv\.(.*)", r"head.context.\1.\2"),
    (r"head\.(?:cca|pc)\.gamma", r"head.context.gamma.gamma"),
    (r"head\.bottleneck\.0\.(.*)", r"head.fuse.conv.\1"),
    (r"head\.bottleneck\.1\.(.*)", r"head.fuse.norm.\1"),
    (r"head\.bottleneck\.3\.(.*)", r"head.classifier.conv.\1"),
    (r"dsn\.0\.(.*)", r"auxiliary.reduce.conv.\1"),
    (r"dsn\.1\.(.*)", r"auxiliary.reduce.norm.\1"),
    (r"dsn\.3\.(.*)", r"auxiliary.classifier.conv.\1"),
]
