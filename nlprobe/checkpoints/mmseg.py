"""Checkpoints of mmsegmentation: ResNetV1c with a head of seven kinds, and an auxiliary FCN head on c4.

| head there | told by | here |
| --- | --- | --- |
| `FCNHead` | none of the following | `fcn` |
| `NLHead`, `GCHead`, `DNLHead`, `CCHead` | `nl_block`, `gc_block`, `dnl_block`, `cca` | `fcn` with it as `context` |
| `DAHead` | `pam` | `dual_attention` |
| `ANNHead` | `fusion.stages.0` | `asymmetric` |
| `PSAHead` | `reduce_p` | `point_wise` |

Widths, reductions, depth and classes are in the shapes. Not in them: the instantiation, scale and temperature of
logits, the recurrence of CCNet, the mask's two sides and the shrinking of PSANet, the grids of ANN's pyramid, the
alignment of corners, and the pictures' normalisation.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nlprobe.blocks import ContextConfig, CrissCrossConfig, DisentangledConfig, NonLocalConfig, PointWiseConfig
from nlprobe.blocks.asymmetric import PYRAMID
from nlprobe.blocks.settings import BlockConfig
from nlprobe.checkpoints.answers import PIXELS, Answers, Question
from nlprobe.checkpoints.configurations import pixels, text_of
from nlprobe.checkpoints.mapping import Rename, Rules, by_rules
from nlprobe.checkpoints.openmmlab import (
    context_rules,
    mode_of,
    mode_question,
    non_local_rules,
    residual_layers,
    with_split_concatenation,
)
from nlprobe.checkpoints.project import Project, Weights
from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.models.build import Config
from nlprobe.models.config import ResNetConfig
from nlprobe.models.segmentation_config import SegmentationConfig

HEADS = {
    "nl_block.": "NLHead",
    "gc_block.": "GCHead",
    "dnl_block.": "DNLHead",
    "cca.": "CCHead",
    "pam.": "DAHead",
    "fusion.stages.0.": "ANNHead",
    "reduce_p.": "PSAHead",
}
"""Heads by the first part of a name that only they have."""

_ALIGNED = Question("align_corners", "true|false", "of the upsampled scores: true in configurations of 769x769 crops")
_SCALE = Question("scale", "none|inv_sqrt", "factor of the logits: `use_scale` false or true")
_QUESTIONS: Mapping[str, tuple[Question, ...]] = {
    "NLHead": (_SCALE,),
    "DNLHead": (_SCALE, Question("temperature", "NUMBER", "of the softmax; 0.05 in every configuration")),
    "CCHead": (
        Question("recurrence", "NUMBER", "how often criss-cross attention is applied; 2 in every configuration"),
    ),
    "ANNHead": (Question("pyramid", "1,3,6,8", "sides of the grids that keys are averaged over"),),
    "PSAHead": (
        Question("mask", "HEIGHTxWIDTH", "sides of the predicted masks, `mask_size`"),
        Question("shrink", "NUMBER", "`shrink_factor`; 2 in every configuration"),
        Question("normalisation", "NUMBER", "`normalization_factor`; 1 in every configuration"),
    ),
}


_SETTINGS = {
    "mode": "mode",
    "use_scale": "scale",
    "temperature": "temperature",
    "recurrence": "recurrence",
    "key_pool_scales": "pyramid",
    "mask_size": "mask",
    "shrink_factor": "shrink",
    "normalization_factor": "normalisation",
}
"""What the configuration of a head calls the answers."""

_DEFAULTS: Mapping[str, Any] = {
    "mode": "embedded_gaussian",
    "use_scale": True,
    "temperature": 0.05,
    "recurrence": 2,
    "key_pool_scales": (1, 3, 6, 8),
    "shrink_factor": 2,
    "normalization_factor": 1.0,
}
"""What its heads take where a configuration does not say."""


class MMSegmentation(Project):
    """mmsegmentation 0.x and 1.x."""

    name = "mmseg"
    title = "mmsegmentation"

    def recognises(self, weights: Weights) -> bool:
        """Whether there is a `decode_head` on a `backbone`."""
        return "decode_head.conv_seg.weight" in weights

    def describe(self, weights: Weights) -> str:
        """Head, trunk and classes."""
        layers = residual_layers(weights, "backbone.")
        classes = len(weights["decode_head.conv_seg.weight"])
        return f"mmsegmentation: {head_of(weights)} on a ResNet of {sum(layers)} blocks, {classes} classes"

    def questions(self, weights: Weights) -> Sequence[Question]:
        """Those of the head, of corners and of pictures."""
        head = head_of(weights)
        mode = mode_question(weights, "decode_head.nl_block.") if head == "NLHead" else ()
        return (*mode, *_QUESTIONS.get(head, ()), _ALIGNED, *PIXELS)

    def configured(self, settings: Mapping[str, Any], weights: Weights) -> dict[str, str]:
        """Those of the head and of pictures."""
        model = settings.get("model")
        head = model.get("decode_head") if isinstance(model, Mapping) else None
        if not isinstance(head, Mapping):
            return {}
        found = pixels(settings)
        if "align_corners" in head:
            found["align_corners"] = text_of(head["align_corners"])
        asked = {question.name for question in self.questions(weights)}
        for theirs, ours in _SETTINGS.items():
            if ours in asked and (value := head.get(theirs, _DEFAULTS.get(theirs))) is not None:
                found[ours] = _answer(ours, value)
        return {name: value for name, value in found.items() if name in asked}

    def config(self, weights: Weights, answers: Answers) -> SegmentationConfig:
        """The network of the head."""
        head = head_of(weights)
        backbone = _trunk(weights)
        auxiliary = weights.get("auxiliary_head.convs.0.conv.weight")
        kinds = {"DAHead": "dual_attention", "ANNHead": "asymmetric", "PSAHead": "point_wise"}
        config = SegmentationConfig(
            backbone=backbone,
            head=kinds.get(head, "fcn"),
            context=_context(head, weights, answers),
            channels=weights["decode_head.conv_seg.weight"].shape[1],
            concatenate=head in kinds or "decode_head.conv_cat.conv.weight" in weights,
            auxiliary=0 if auxiliary is None else len(auxiliary),
            classes=len(weights["decode_head.conv_seg.weight"]),
            align_corners=answers.switch("align_corners"),
        )
        if head == "ANNHead" and answers.integers("pyramid") != PYRAMID:
            raise CheckpointError(
                f"{answers.source} averages keys over grids of {answers.given['pyramid']}",
                f"ANN is built with {','.join(map(str, PYRAMID))} only",
            )
        return config

    def rename(self, config: Config) -> Rename:
        """Trunk, head and auxiliary head."""
        assert isinstance(config, SegmentationConfig)
        return by_rules([*_TRUNK, *_AUXILIARY, *_head_rules(config)])

    def prepared(self, weights: Weights, config: Config, answers: Answers) -> Weights:
        """Concatenation's weights for queries and for keys apart."""
        return with_split_concatenation(weights)

    def first_convolution(self, config: Config) -> str:
        """In the stem."""
        return "backbone.conv1.weight"


def _answer(name: str, value: Any) -> str:
    """A value of a configuration in the words of `--set`."""
    if name == "scale":
        return "inv_sqrt" if value else "none"
    if isinstance(value, list | tuple):
        return ("x" if name == "mask" else ",").join(map(str, value))
    return text_of(value)


def head_of(weights: Weights) -> str:
    """The class of the head."""
    for part, head in HEADS.items():
        if any(name.startswith(f"decode_head.{part}") for name in weights):
            return head
    return "FCNHead"


def _trunk(weights: Weights) -> ResNetConfig:
    """ResNetV1c with dilated c4 and c5; `contract_dilation` is on in all configurations of these heads."""
    stem = weights.get("backbone.stem.0.weight")
    if stem is None and "backbone.conv1.weight" not in weights:
        raise CheckpointError(
            "the backbone of this mmsegmentation checkpoint is no ResNet", "networks on ResNet and ResNetV1c are read"
        )
    width = len(weights["backbone.conv1.weight" if stem is None else "backbone.stem.6.weight"])
    bottleneck = "backbone.layer1.0.conv3.weight" in weights
    return ResNetConfig(
        layers=residual_layers(weights, "backbone."),
        block="bottleneck" if bottleneck else "basic",
        width=width,
        stem="plain" if stem is None else "narrow_deep",
        output_stride=8,
        dilate_first=False,
        classes=0,
    )


def _context(head: str, weights: Weights, answers: Answers) -> BlockConfig | None:
    """The settings of the head's operator."""
    if head == "GCHead":
        width, channels = weights["decode_head.gc_block.channel_add_conv.0.weight"].shape[:2]
        return ContextConfig.gc(channels // width)
    if head == "NLHead":
        width, channels = weights["decode_head.nl_block.g.conv.weight"].shape[:2]
        mode = mode_of(weights, "decode_head.nl_block.", answers)
        scale = answers.choice("scale", "none", "inv_sqrt")
        return NonLocalConfig(
            mode,
            channels // width,
            # mmcv scales the logits of the embedded Gaussian and of no other mode
            scale="inv_sqrt" if (scale, mode) == ("inv_sqrt", "embedded_gaussian") else "none",
            norm="batch" if "decode_head.nl_block.conv_out.bn.weight" in weights else "none",
            output_bias="decode_head.nl_block.conv_out.conv.bias" in weights,
        )
    if head == "DNLHead":
        width, channels = weights["decode_head.dnl_block.g.conv.weight"].shape[:2]
        return DisentangledConfig(
            channels // width,
            scale="inv_sqrt" if answers.choice("scale", "none", "inv_sqrt") == "inv_sqrt" else "none",
            temperature=answers.number("temperature"),
            output="project_apart",
            norm="batch",
            output_bias=False,
        )
    if head == "CCHead":
        width, channels = weights["decode_head.cca.query_conv.weight"].shape[:2]
        return CrissCrossConfig(channels // width, answers.integer("recurrence", 1))
    return _point_wise(weights, answers) if head == "PSAHead" else None


def _point_wise(weights: Weights, answers: Answers) -> PointWiseConfig:
    width, channels = weights["decode_head.reduce.conv.weight"].shape[:2]
    sides = answers.integers("mask", "x")
    predicted = len(weights["decode_head.attention.1.weight"])
    if len(sides) != 2 or sides[0] * sides[1] != predicted:
        raise ConfigError(
            f"`--set mask={answers.given['mask']}` for {answers.source}, which predicts {predicted} numbers a position",
            "give HEIGHTxWIDTH with that product",
        )
    return PointWiseConfig(
        *sides,
        reduction=channels // width,
        shrink=answers.integer("shrink", 1),
        normalisation=answers.number("normalisation"),
        alignment="parity",
        border=True,
    )


_STEM = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
_TRUNK: Rules = [
    *((rf"backbone\.stem\.{place}\.(.*)", rf"backbone.{name}.\1") for place, name in _STEM.items()),
    (r"(backbone\.(?:conv1|bn1|layer\d\.\d+)\..*)", r"\1"),
]


def _module(theirs: str, ours: str, conv: str = "conv") -> Rules:
    """The rules of a ConvModule: a convolution and its norm."""
    return [
        (rf"{re.escape(theirs)}\.conv\.(.*)", rf"{ours}.{conv}.\1"),
        (rf"{re.escape(theirs)}\.bn\.(.*)", rf"{ours}.norm.\1"),
    ]


_AUXILIARY: Rules = [
    *_module("auxiliary_head.convs.0", "auxiliary.reduce"),
    (r"auxiliary_head\.conv_seg\.(.*)", r"auxiliary.classifier.conv.\1"),
]
_CLASSIFIER: Rules = [(r"decode_head\.conv_seg\.(.*)", r"head.classifier.conv.\1")]
_FCN: Rules = [
    *_module("decode_head.convs.0", "head.reduce"),
    *_module("decode_head.convs.1", "head.smooth"),
    *_module("decode_head.conv_cat", "head.fuse"),
    *_CLASSIFIER,
    *non_local_rules(r"decode_head\.(?:nl|dnl)_block", "head.context"),
    (r"decode_head\.dnl_block\.conv_mask\.(.*)", r"head.context.unary.mask.\1"),
    *context_rules(r"decode_head\.gc_block", "head.context"),
    (r"decode_head\.cca\.(query|key|value)_conv\.(.*)", r"head.context.\1.\2"),
    (r"decode_head\.cca\.gamma\.scale", r"head.context.gamma.gamma"),
]
_DUAL: Rules = [
    *_module("decode_head.pam_in_conv", "head.position_reduce"),
    *_module("decode_head.pam_out_conv", "head.position_smooth"),
    *_module("decode_head.cam_in_conv", "head.channel_reduce"),
    *_module("decode_head.cam_out_conv", "head.channel_smooth"),
    (r"decode_head\.pam\.(query|key|value)_project\.(.*)", r"head.position.\1.\2"),
    (r"decode_head\.pam\.gamma\.scale", r"head.position.gate.gamma"),
    (r"decode_head\.cam\.gamma\.scale", r"head.channel.gate.gamma"),
    (r"decode_head\.pam_conv_seg\.(.*)", r"head.position_classifier.conv.\1"),
    (r"decode_head\.cam_conv_seg\.(.*)", r"head.channel_classifier.conv.\1"),
    *_CLASSIFIER,
]
_ASYMMETRIC: Rules = [
    *_module("decode_head.fusion.stages.0.query_project", "head.fusion.query", "linear"),
    *_module("decode_head.fusion.stages.0.key_project", "head.fusion.key", "linear"),
    # keys and queries share their transform, which the file has under both names
    *_module("decode_head.context.stages.0.query_project", "head.context.key", "linear"),
    *_module("decode_head.context.stages.0.key_project", "head.context.key", "linear"),
    (r"decode_head\.(fusion|context)\.stages\.0\.value_project\.(.*)", r"head.\1.value.\2"),
    (r"decode_head\.(fusion|context)\.stages\.0\.out_project\.(.*)", r"head.\1.output.\2"),
    *_module("decode_head.fusion.bottleneck", "head.fusion.fuse", "linear"),
    *_module("decode_head.context.bottleneck", "head.context.fuse", "linear"),
    *_module("decode_head.bottleneck", "head.reduce"),
    *_CLASSIFIER,
]
_POINT_WISE: Rules = [
    *_module("decode_head.reduce", "head.context.reduce_collect", "linear"),
    *_module("decode_head.reduce_p", "head.context.reduce_distribute", "linear"),
    *_module("decode_head.attention.0", "head.context.collect.hidden", "linear"),
    *_module("decode_head.attention_p.0", "head.context.distribute.hidden", "linear"),
    (r"decode_head\.attention\.1\.(.*)", r"head.context.collect.mask.\1"),
    (r"decode_head\.attention_p\.1\.(.*)", r"head.context.distribute.mask.\1"),
    *_module("decode_head.proj", "head.context.proj", "linear"),
    *_module("decode_head.bottleneck", "head.fuse"),
    *_CLASSIFIER,
]


def _head_rules(config: SegmentationConfig) -> Rules:
    return {"fcn": _FCN, "dual_attention": _DUAL, "asymmetric": _ASYMMETRIC, "point_wise": _POINT_WISE}[config.head]
