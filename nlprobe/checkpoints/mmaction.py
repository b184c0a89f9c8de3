"""Checkpoints of mmaction2 0.x and 1.x: Slow-only, I3D and temporal shift networks with non-local blocks.

A convolution and its norm are one module there: `layer1.0.conv1.conv`, `layer1.0.conv1.bn`. The non-local blocks stand
behind the ReLU of their residual blocks, have a norm behind W_z and keys that are pooled after their projection, which
the names tell (`phi.0`). Lengths of kernels are in the shapes, and with them which of the two networks it is: I3D's
stem spans five frames. It strides by two frames in stem and pool, and pools pairs of frames behind c2.

Temporal shift networks (TSM) have kernels of pictures, `net` between a shifted convolution's name and its weight, and
`block` between a residual block that is followed by a non-local one and its parts. Their consensus, the mean of the
frames' logits, is the logits of the mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from nlprobe.blocks import NonLocalConfig
from nlprobe.checkpoints.answers import PIXELS, Answers, Question
from nlprobe.checkpoints.configurations import first, pixels, text_of
from nlprobe.checkpoints.mapping import Rename, Rules, by_rules
from nlprobe.checkpoints.openmmlab import (
    mode_of,
    mode_question,
    non_local_rules,
    residual_layers,
    with_split_concatenation,
)
from nlprobe.checkpoints.project import Project, Weights
from nlprobe.errors import CheckpointError
from nlprobe.models.build import Config
from nlprobe.models.config import LAYERS, ResNetConfig
from nlprobe.models.insertion import Insertion
from nlprobe.models.video_config import VideoConfig

CLIP = (
    Question("frames", "NUMBER", "of a clip"),
    Question("interval", "NUMBER", "from one of its frames to the next in the video"),
)
"""What no file says of the clips that its network was trained on."""

_SCALE = Question("scale", "none|inv_sqrt", "factor of the logits: `use_scale` false or true")


_SHIFT = Question(
    "shift", "NUMBER", "`shift_div`: one of so many channels is the next frame's; 8 in every configuration"
)


class MMAction(Project):
    """mmaction2."""

    name = "mmaction2"
    title = "mmaction2"

    def recognises(self, weights: Weights) -> bool:
        """Whether a classifier stands on a residual network for clips whose convolutions have modules of their own."""
        stem = weights.get("backbone.conv1.conv.weight")
        return stem is not None and "cls_head.fc_cls.weight" in weights

    def describe(self, weights: Weights) -> str:
        """Kind of network, depth, blocks and classes."""
        stem = weights["backbone.conv1.conv.weight"]
        kind = "a temporal shift network" if stem.dim() == 4 else "I3D" if stem.shape[2] > 1 else "Slow-only"
        blocks = len(_blocks(weights))
        return (
            f"mmaction2: {kind} of {sum(residual_layers(weights, 'backbone.'))} residual blocks with {blocks} "
            f"non-local ones, {len(weights['cls_head.fc_cls.weight'])} classes"
        )

    def questions(self, weights: Weights) -> Sequence[Question]:
        """Those of the blocks, of pictures and of clips."""
        blocks = _blocks(weights)
        first = (*mode_question(weights, f"backbone.{blocks[0]}.non_local_block."), _SCALE) if blocks else ()
        shift = (_SHIFT,) if _is_shifted(weights) else ()
        return (*first, *shift, *PIXELS, *CLIP)

    def configured(self, settings: Mapping[str, Any], weights: Weights) -> dict[str, str]:
        """Those of the blocks, of pictures and of clips."""
        model = settings.get("model")
        asked = {question.name for question in self.questions(weights)}
        found = pixels(settings)
        block = first(model, "non_local_cfg")
        if isinstance(block, Mapping):
            found["mode"] = text_of(block.get("mode", "embedded_gaussian"))
            found["scale"] = "inv_sqrt" if block.get("use_scale", True) else "none"
        if "shift" in asked:
            found["shift"] = text_of(first(model, "shift_div") or 8)
        for theirs, ours in (("clip_len", "frames"), ("frame_interval", "interval")):
            if (value := first(settings.get("test_pipeline"), theirs)) is not None:
                found[ours] = text_of(value)
        if (side := first(settings.get("test_pipeline"), "crop_size")) is not None and isinstance(side, int):
            found["crop"] = str(side)
        return {name: value for name, value in found.items() if name in asked or name == "crop"}

    def config(self, weights: Weights, answers: Answers) -> VideoConfig:
        """The network for clips."""
        stem = weights["backbone.conv1.conv.weight"]
        layers = residual_layers(weights, "backbone.")
        if not any(name.startswith("backbone.layer1.0.conv3.") for name in weights):
            raise CheckpointError(f"{answers.source} has basic blocks", "networks of bottlenecks are read")
        trunk = ResNetConfig(layers=layers, width=len(stem), classes=0, insertions=_insertions(weights, answers))
        classes = len(weights["cls_head.fc_cls.weight"])
        if stem.dim() == 4:
            moved = sum(name.endswith(".conv1.conv.net.weight") for name in weights)
            if moved not in (0, sum(layers)):
                raise CheckpointError(
                    f"{answers.source} shifts in {moved} of its {sum(layers)} residual blocks",
                    "networks that shift in all of them are read",
                )
            shift = answers.integer("shift", 2) if moved else 0
            return VideoConfig(backbone=trunk, temporal=(1,) * 5, shift=shift, classes=classes)
        kernels = tuple(
            tuple(weights[f"backbone.{layer}.{index}.conv1.conv.weight"].shape[2] for index in range(count))
            for layer, count in zip(LAYERS.values(), layers, strict=True)
        )
        inflated = stem.shape[2] > 1
        return VideoConfig(
            backbone=trunk,
            temporal=(stem.shape[2], *(max(stage) for stage in kernels)),
            kernels=() if all(len(set(stage)) == 1 for stage in kernels) else kernels,
            stem_stride=2 if inflated else 1,
            pool_stride=2 if inflated else 1,
            halve=inflated,
            classes=classes,
        )

    def rename(self, config: Config) -> Rename:
        """Trunk, blocks and classifier."""
        rules: Rules = [
            (rule, str(name).replace(r"\1", r"\2").replace(r"@", r"\1"))
            for rule, name in non_local_rules(r"backbone\.(layer\d\.\d+)\.non_local_block", "@.after_block")
        ]
        return by_rules([*rules, *_TRUNK])

    def prepared(self, weights: Weights, config: Config, answers: Answers) -> Weights:
        """Concatenation's weights for queries and for keys apart, and kernels of pictures as ones of one frame."""
        found = with_split_concatenation(weights)
        return {
            name: tensor.unsqueeze(2) if _is_of_pictures(name, tensor) else tensor for name, tensor in found.items()
        }

    def first_convolution(self, config: Config) -> str:
        """In the stem."""
        return "conv1.weight"


_PART = r"backbone\.(layer\d\.\d+)\.(?:block\.)?"

_TRUNK: Rules = [
    (r"backbone\.conv1\.conv\.(.*)", r"conv1.\1"),
    (r"backbone\.conv1\.bn\.(.*)", r"bn1.\1"),
    (_PART + r"conv(\d)\.conv\.(?:net\.)?(.*)", r"\1.conv\2.\3"),
    (_PART + r"conv(\d)\.bn\.(.*)", r"\1.bn\2.\3"),
    (_PART + r"downsample\.conv\.(.*)", r"\1.downsample.0.\2"),
    (_PART + r"downsample\.bn\.(.*)", r"\1.downsample.1.\2"),
    (r"cls_head\.fc_cls\.(.*)", r"fc.\1"),
]


def _is_shifted(weights: Weights) -> bool:
    return any(name.endswith(".conv1.conv.net.weight") for name in weights)


def _is_of_pictures(name: str, tensor: Tensor) -> bool:
    """A kernel of two dimensions outside of the non-local blocks, whose own are of three."""
    return tensor.dim() == 4 and ".non_local_block." not in name


def _blocks(weights: Weights) -> list[str]:
    """Residual blocks with a non-local block behind them, such as `layer2.0`."""
    mark = ".non_local_block.conv_out.conv.weight"
    return [name.removeprefix("backbone.").removesuffix(mark) for name in weights if name.endswith(mark)]


def _insertions(weights: Weights, answers: Answers) -> tuple[Insertion, ...]:
    """The non-local blocks, stage by stage."""
    blocks = _blocks(weights)
    if not blocks:
        return ()
    own = f"backbone.{blocks[0]}.non_local_block."
    width, channels = weights[f"{own}conv_out.conv.weight"].shape[1::-1]
    mode = mode_of(weights, own, answers)
    scaled = answers.choice("scale", "none", "inv_sqrt") == "inv_sqrt"
    block = NonLocalConfig(
        mode,
        channels // width,
        scale="inv_sqrt" if scaled and mode == "embedded_gaussian" else "none",
        sub_sample="project_then_pool" if f"{own}g.0.conv.weight" in weights else "none",
        norm="batch" if f"{own}conv_out.bn.weight" in weights else "none",
        output_bias=f"{own}conv_out.conv.bias" in weights,
    )
    found = []
    for stage, layer in LAYERS.items():
        indices = tuple(int(one.partition(".")[2]) for one in blocks if one.startswith(f"{layer}."))
        if indices:
            found.append(Insertion(block, stage, indices, "after_block"))
    return tuple(found)
