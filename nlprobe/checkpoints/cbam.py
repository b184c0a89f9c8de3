"""Checkpoints of the CBAM authors' ResNets: torchvision's names, and `cbam` in every residual block.

| there | here |
| --- | --- |
| `layer1.0.cbam.ChannelGate.mlp.1`, `mlp.3` | `layer1.0.after_1x1.channel_gate.mlp.reduce`, `expand` |
| `layer1.0.cbam.SpatialGate.spatial.conv`, `bn` | `layer1.0.after_1x1.spatial_gate.conv`, `norm` |

The two channels of the 7x7 convolution are maximum and mean, in that order, as the blocks of this library have them.
"""

from collections.abc import Sequence

from nlprobe.blocks import CBAMConfig
from nlprobe.checkpoints.answers import PIXELS, Answers, Question
from nlprobe.checkpoints.mapping import Rename, Rules, by_rules
from nlprobe.checkpoints.openmmlab import residual_layers
from nlprobe.checkpoints.project import Project, Weights
from nlprobe.errors import CheckpointError
from nlprobe.models.build import Config
from nlprobe.models.config import LAYERS, ResNetConfig
from nlprobe.models.insertion import Insertion

_GATE = "layer1.0.cbam.ChannelGate.mlp.1.weight"


class AttentionModule(Project):
    """Jongchan/attention-module, networks for ImageNet."""

    name = "cbam"
    title = "attention-module (CBAM)"

    def recognises(self, weights: Weights) -> bool:
        """Whether the first residual block has a channel gate."""
        return _GATE in weights

    def describe(self, weights: Weights) -> str:
        """Depth and classes."""
        layers = residual_layers(weights, "")
        return f"CBAM in a ResNet of {sum(layers)} residual blocks, {len(weights['fc.weight'])} classes"

    def questions(self, weights: Weights) -> Sequence[Question]:
        """Those of pictures."""
        return (*PIXELS, Question("crop", "SIDE", "of the central crop in the published test"))

    def config(self, weights: Weights, answers: Answers) -> ResNetConfig:
        """The network for classification."""
        if weights["conv1.weight"].shape[-1] != 7:
            raise CheckpointError(f"{answers.source} is a network for CIFAR", "networks for ImageNet are read")
        hidden, channels = weights[_GATE].shape
        if "layer1.0.cbam.SpatialGate.spatial.conv.weight" not in weights:
            raise CheckpointError(f"{answers.source} has channel gates alone", "CBAM with both gates is read")
        block = CBAMConfig(channels // hidden)
        return ResNetConfig(
            layers=residual_layers(weights, ""),
            block="bottleneck" if "layer1.0.conv3.weight" in weights else "basic",
            width=len(weights["conv1.weight"]),
            classes=len(weights["fc.weight"]),
            insertions=tuple(Insertion(block, stage) for stage in LAYERS),
        )

    def rename(self, config: Config) -> Rename:
        """Trunk and gates."""
        return by_rules(_RULES)

    def first_convolution(self, config: Config) -> str:
        """In the stem."""
        return "conv1.weight"


_RULES: Rules = [
    (r"(layer\d\.\d+)\.cbam\.ChannelGate\.mlp\.1\.(.*)", r"\1.after_1x1.channel_gate.mlp.reduce.\2"),
    (r"(layer\d\.\d+)\.cbam\.ChannelGate\.mlp\.3\.(.*)", r"\1.after_1x1.channel_gate.mlp.expand.\2"),
    (r"(layer\d\.\d+)\.cbam\.SpatialGate\.spatial\.conv\.(.*)", r"\1.after_1x1.spatial_gate.conv.\2"),
    (r"(layer\d\.\d+)\.cbam\.SpatialGate\.spatial\.bn\.(.*)", r"\1.after_1x1.spatial_gate.norm.\2"),
    (r"((?:conv1|bn1|fc|layer\d\.\d+\.(?:conv\d|bn\d|downsample\.\d))\.\w+)", r"\1"),
]
