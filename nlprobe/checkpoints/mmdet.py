"""Checkpoints of mmdetection 1.x to 3.x and of its forks: Mask and Faster R-CNN, also cascaded, on ResNet and ResNeXt.

| there | here |
| --- | --- |
| `backbone.` with `context_block`, `nonlocal_block`, `nl_gc_block` in residual blocks | `backbone.`, with the block where `site` says |
| `conv2_offset` (1.x), `conv2.conv_offset` (2.x) | `conv2.offset` |
| `neck.lateral_convs.0`, `neck.fpn_convs.0` | `pyramid.inner_blocks.0`, `pyramid.layer_blocks.0` |
| `rpn_head.` | `proposals.head.` |
| `bbox_head.`, `mask_head.` (1.x); `roi_head.` before them (2.x); `.0.` to `.2.` behind them in a cascade | `stages.` |

Version 1 has the background as the first of its classes, as here, version 2 as the last of the scores and nowhere else:
`prepared` turns the order round, and the background's regression and mask, which nothing uses, are zeros.

The forks are GCNet's own repository, whose non-local block multiplies its logits by √d (`scale=sqrt`), and
DNL-Object-Detection, whose norms use the absolute value of their weights (`gamma=absolute`).
"""  # noqa: E501

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from nlprobe.blocks import PLACES, ContextConfig, DisentangledConfig, NonLocalConfig
from nlprobe.blocks.settings import BlockConfig
from nlprobe.checkpoints.answers import PIXELS, Answers, Question
from nlprobe.checkpoints.configurations import first, pixels, sections, text_of
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
from nlprobe.models.config import LAYERS, ResNetConfig
from nlprobe.models.detection_config import DetectionConfig
from nlprobe.models.insertion import Insertion

_BLOCK = re.compile(r"backbone\.layer([1-4])\.(\d+)\.(context_block\w*|nonlocal_block|nl_gc_block)\.")
_UNREAD = {
    "gen_attention_block": "generalised attention in its backbone",
    "neck.1.": "a second neck behind its feature pyramid",
    "roi_extractor": "convolutions where it pools boxes (GRoIE)",
    "retina_cls": "the heads of RetinaNet",
    "bbox_head.reg_fcs": "a double head",
}
"""Parts of a name that no network of ours has a place for, and what they are of."""

_NORM_EPSILON = 1e-5

_SITE = Question(
    "site", "|".join(PLACES), "where in the residual blocks the blocks stand; or in full: layer3.4:after_add"
)
_SCALE = Question(
    "scale", "none|inv_sqrt|sqrt", "factor of the logits; sqrt in mmdetection before October 2019 and GCNet"
)
_GAMMA = Question("gamma", "plain|absolute", "how norms use their weights; absolute with InPlaceABN")


class MMDetection(Project):
    """mmdetection and its forks."""

    name = "mmdet"
    title = "mmdetection"

    def recognises(self, weights: Weights) -> bool:
        """Whether there is a feature pyramid and a proposal head on a backbone."""
        return "neck.lateral_convs.0.conv.weight" in weights or "rpn_head.rpn_conv.weight" in weights

    def describe(self, weights: Weights) -> str:
        """Version, trunk, heads and blocks."""
        layers = residual_layers(weights, "backbone.")
        version = "2 or 3" if _heads(weights) == "roi_head." else "1"
        kinds = sorted({match[3] for name in weights if (match := _BLOCK.match(name))}) or ["no attention"]
        stages = f"{'cascaded ' if _cascaded(weights) else ''}{'Mask' if _has_masks(weights) else 'Faster'} R-CNN"
        return f"mmdetection {version}: {stages} on a residual network of {sum(layers)} blocks with {', '.join(kinds)}"

    def questions(self, weights: Weights) -> Sequence[Question]:
        """Those of the blocks, of norms and of pictures."""
        found: list[Question] = []
        blocks = _blocks(weights)
        if blocks:
            found.append(_SITE)
        for (kind, _), indices in blocks.items():
            if kind == "nonlocal_block":
                found += [*mode_question(weights, f"backbone.{indices[0]}.nonlocal_block."), _SCALE]
            if kind == "nl_gc_block":
                found += [_SCALE, Question("temperature", "NUMBER", "of the softmax; 0.05 in their configurations")]
        return (*dict.fromkeys(found), _GAMMA, *PIXELS)

    def configured(self, settings: Mapping[str, Any], weights: Weights) -> dict[str, str]:
        """Norms, pictures, and the site of blocks that are plugins; forks put theirs elsewhere under the same names."""
        backbone = first(settings.get("model"), "backbone")
        if not isinstance(backbone, Mapping):
            return {}
        norms = {section.get("type") for section in sections(settings.get("model")) if "type" in section}
        found = {"gamma": "absolute" if norms & {"ABN", "SyncABN"} else "plain", **pixels(settings)}
        if (divisor := first(settings.get("test_pipeline"), "size_divisor")) is not None:
            found["pad"] = text_of(divisor)
        positions = {section.get("position") for section in sections(backbone.get("plugins"))} - {None}
        if positions == {"after_conv3"} and _blocks(weights):
            found["site"] = "after_1x1"
        return found

    def config(self, weights: Weights, answers: Answers) -> DetectionConfig:
        """The whole detector."""
        for part, what in _UNREAD.items():
            if any(part in name for name in weights):
                raise CheckpointError(
                    f"{answers.source} has {what}, and no network of nlprobe has", "its detector cannot be built"
                )
        if "neck.lateral_convs.3.conv.weight" not in weights or "neck.lateral_convs.4.conv.weight" in weights:
            raise CheckpointError(
                f"{answers.source} has a feature pyramid that does not stand on c2 to c5",
                "its detector cannot be built",
            )
        heads = _heads(weights)
        first = f"{heads}bbox_head.0." if _cascaded(weights) else f"{heads}bbox_head."
        classes = len(weights[f"{first}fc_cls.weight"]) - 1
        if answers.choice("gamma", "plain", "absolute") == "absolute" and "neck.lateral_convs.0.conv.bias" in weights:
            raise ConfigError(f"`--set gamma=absolute` for {answers.source}, whose pyramid has no norms", "use plain")
        mask = re.compile(rf"{re.escape(heads)}mask_head\.(?:0\.)?convs\.(\d+)\.conv\.weight")
        return DetectionConfig(
            backbone=_trunk(weights, answers),
            channels=len(weights["neck.lateral_convs.0.conv.weight"]),
            box_head="4conv1fc" if f"{first}shared_convs.3.conv.weight" in weights else "2fc",
            box_width=weights[f"{first}fc_cls.weight"].shape[1],
            norm="neck.lateral_convs.0.bn.weight" in weights,
            masks=_has_masks(weights),
            mask_layers=max([int(match[1]) + 1 for name in weights if (match := mask.fullmatch(name))], default=4),
            cascade=_cascaded(weights),
            class_agnostic=len(weights[f"{first}fc_reg.weight"]) == 4,
            classes=classes,
            geometry="mmdet2" if heads else "mmdet1",
        )

    def rename(self, config: Config) -> Rename:
        """Trunk with blocks, pyramid, proposal head and stages."""
        assert isinstance(config, DetectionConfig)
        return by_rules([*_block_rules(config.backbone), *_TRUNK, *_PYRAMID, *_PROPOSALS, *_stage_rules(config)])

    def prepared(self, weights: Weights, config: Config, answers: Answers) -> Weights:
        """Background first, norms with the weight that they multiply by, and zeros for biases that their SNL lacks."""
        assert isinstance(config, DetectionConfig)
        found = dict(with_split_concatenation(weights))
        if _heads(weights) == "roi_head.":
            found |= {name: _background_first(name, tensor, config) for name, tensor in found.items()}
        if answers.choice("gamma", "plain", "absolute") == "absolute":
            norms = [name for name in weights if f"{name.removesuffix('weight')}running_var" in weights]
            found |= {name: weights[name].abs() + _NORM_EPSILON for name in norms if name.endswith("weight")}
        for name, tensor in weights.items():
            if name.endswith(".context_block.conv_value.weight"):
                found[f"{name.removesuffix('weight')}bias"] = tensor.new_zeros(len(tensor))
        return found

    def first_convolution(self, config: Config) -> str:
        """In the stem."""
        return "backbone.conv1.weight"


def _heads(weights: Weights) -> str:
    """What stands before `bbox_head`: version 2 has `roi_head.`."""
    return "roi_head." if any(name.startswith("roi_head.") for name in weights) else ""


def _cascaded(weights: Weights) -> bool:
    return f"{_heads(weights)}bbox_head.0.fc_cls.weight" in weights


def _has_masks(weights: Weights) -> bool:
    return any(name.startswith(f"{_heads(weights)}mask_head.") for name in weights)


def _blocks(weights: Weights) -> dict[tuple[str, str], list[str]]:
    """Residual blocks, such as `layer3.4`, by the name of what is in them and their stage, such as `c4`."""
    stages = {layer: stage for stage, layer in LAYERS.items()}
    found: dict[tuple[str, str], list[str]] = {}
    for name in weights:
        if match := _BLOCK.match(name):
            residual = f"layer{match[1]}.{match[2]}"
            held = found.setdefault((match[3], stages[f"layer{match[1]}"]), [])
            held += [residual] if residual not in held else []
    return found


def _trunk(weights: Weights, answers: Answers) -> ResNetConfig:
    planes, inner = len(weights["backbone.layer1.0.conv3.weight"]) // 4, weights["backbone.layer1.0.conv2.weight"]
    groups = len(inner) // inner.shape[1]
    width = len(weights["backbone.conv1.weight"])
    deformable = [
        stage
        for stage, layer in LAYERS.items()
        if any(name.startswith(f"backbone.{layer}.") and "conv2" in name and "offset" in name for name in weights)
    ]
    blocks = _blocks(weights)
    place = _place(answers, blocks) if blocks else ""
    return ResNetConfig(
        layers=residual_layers(weights, "backbone."),
        groups=groups,
        base_width=len(inner) * 64 // (planes * groups),
        width=width,
        deformable=tuple(deformable),
        classes=0,
        insertions=tuple(
            Insertion(
                _settings(kind, f"backbone.{residual[0]}.{kind}.", weights, answers),
                stage,
                tuple(sorted(int(one.partition(".")[2]) for one in residual)),
                place,
            )
            for (kind, stage), residual in blocks.items()
        ),
    )


def _place(answers: Answers, blocks: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """The place of all blocks, from a place or from sites in full."""
    text = answers.given.get("site", "")
    given = [part.partition(":") for part in text.split(",")]
    residual = {one for held in blocks.values() for one in held}
    if ":" not in text:
        return answers.choice("site", *PLACES)
    places, named = {place for _, _, place in given}, {layer.removeprefix("backbone.") for layer, _, _ in given}
    if named != residual or len(places) != 1 or not places <= set(PLACES):
        raise ConfigError(
            f"`--set site={text}` for {answers.source}, which has blocks in {', '.join(sorted(residual))}",
            f"name these, all with one of the places {', '.join(PLACES)}, or give the place alone",
        )
    return places.pop()


def _settings(kind: str, block: str, weights: Weights, answers: Answers) -> BlockConfig:
    """The settings of an inserted block."""
    if kind.startswith("context_block"):
        return _context(block, weights, answers)
    if kind == "nl_gc_block":
        width, channels = weights[f"{block}conv_query.weight"].shape[:2]
        return replace(
            DisentangledConfig.object_detection(channels // width),
            scale=_scale(answers),
            temperature=answers.number("temperature"),
        )
    width, channels = weights[f"{block}g.conv.weight"].shape[:2]
    mode = mode_of(weights, block, answers)
    return NonLocalConfig(
        mode,
        channels // width,
        scale=_scale(answers) if mode == "embedded_gaussian" else "none",
        norm="batch" if f"{block}conv_out.bn.weight" in weights else "none",
        output_bias=f"{block}conv_out.conv.bias" in weights,
    )


def _context(block: str, weights: Weights, answers: Answers) -> ContextConfig:
    if f"{block}conv_value.weight" in weights:
        return ContextConfig.snl()
    fusions = [one for one in ("add", "mul") if f"{block}channel_{one}_conv.0.weight" in weights]
    if len(fusions) != 1:
        raise CheckpointError(
            f"{answers.source} has context blocks that both add and multiply", "the blocks of nlprobe do one of them"
        )
    width, channels = weights[f"{block}channel_{fusions[0]}_conv.0.weight"].shape[:2]
    return replace(
        ContextConfig.gc(channels // width),
        pooling="attention" if f"{block}conv_mask.weight" in weights else "average",
        fusion="add" if fusions[0] == "add" else "scale",
    )


def _scale(answers: Answers) -> Literal["none", "inv_sqrt", "sqrt"]:
    chosen = answers.choice("scale", "none", "inv_sqrt", "sqrt")
    return "none" if chosen == "none" else "inv_sqrt" if chosen == "inv_sqrt" else "sqrt"


def _background_first(name: str, tensor: Tensor, config: DetectionConfig) -> Tensor:
    """Version 2's order of classes, turned to version 1's and ours."""
    if re.search(r"\.fc_cls\.(weight|bias)$", name):
        return torch.cat([tensor[-1:], tensor[:-1]])
    unused = 0
    if re.search(r"\.fc_reg\.(weight|bias)$", name) and not config.class_agnostic:
        unused = 4
    if re.search(r"\.conv_logits\.(weight|bias)$", name):
        unused = 1
    return torch.cat([tensor.new_zeros(unused, *tensor.shape[1:]), tensor]) if unused else tensor


def _block_rules(config: ResNetConfig) -> Rules:
    rules: list[tuple[str, str]] = []
    for place in {insertion.place for insertion in config.insertions}:
        ours = rf"backbone.\1.{place}"
        residual = r"backbone\.(layer\d\.\d+)"
        # the groups of the shared rules come after the one of the residual block
        for pattern, name in [
            *context_rules(rf"{residual}\.context_block\w*", ours),
            *non_local_rules(rf"{residual}\.nonlocal_block", ours),
        ]:
            assert isinstance(name, str)
            rules.append((pattern, re.sub(r"\\1$", r"\\2", name)))
        rules += [
            (rf"{residual}\.context_block\.conv_value\.(.*)", rf"{ours}.transform.project.\2"),
            (rf"{residual}\.nl_gc_block\.conv_(query|key|value)\.(.*)", rf"{ours}.\2.\3"),
            (rf"{residual}\.nl_gc_block\.conv_mask\.(.*)", rf"{ours}.unary.mask.\2"),
            (rf"{residual}\.nl_gc_block\.gamma", rf"{ours}.gate.gamma"),
        ]
    return rules


_TRUNK: Rules = [
    (r"backbone\.(layer\d\.\d+\.conv2)(?:_|\.conv_)offset\.(.*)", r"backbone.\1.offset.\2"),
    (r"(backbone\.(?:conv1|bn1|layer\d\.\d+\.(?:conv\d|bn\d|downsample\.\d))\.\w+)", r"\1"),
]
_PYRAMID: Rules = [
    (r"neck\.lateral_convs\.(\d)\.conv\.(.*)", r"pyramid.inner_blocks.\1.0.\2"),
    (r"neck\.lateral_convs\.(\d)\.bn\.(.*)", r"pyramid.inner_blocks.\1.1.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.*)", r"pyramid.layer_blocks.\1.0.\2"),
    (r"neck\.fpn_convs\.(\d)\.bn\.(.*)", r"pyramid.layer_blocks.\1.1.\2"),
]
_PROPOSALS: Rules = [
    (r"rpn_head\.rpn_conv\.(.*)", r"proposals.head.conv.0.0.\1"),
    (r"rpn_head\.rpn_cls\.(.*)", r"proposals.head.cls_logits.\1"),
    (r"rpn_head\.rpn_reg\.(.*)", r"proposals.head.bbox_pred.\1"),
]


def _stage_rules(config: DetectionConfig) -> Rules:
    rules: list[tuple[str, str]] = []
    layers = (1, 3) if config.box_head == "2fc" else (5,)
    for stage in range(3 if config.cascade else 1):
        which = rf"\.{stage}" if config.cascade else ""
        box, mask = (rf"(?:roi_head\.)?{head}{which}" for head in ("bbox_head", "mask_head"))
        ours = f"stages.{stage}"
        rules += [
            (rf"{box}\.shared_convs\.(\d)\.conv\.(.*)", rf"{ours}.box.body.\1.0.\2"),
            (rf"{box}\.shared_convs\.(\d)\.bn\.(.*)", rf"{ours}.box.body.\1.1.\2"),
            *((rf"{box}\.shared_fcs\.{place}\.(.*)", rf"{ours}.box.body.{own}.\1") for place, own in enumerate(layers)),
            (rf"{box}\.fc_cls\.(.*)", rf"{ours}.box.classes.\1"),
            (rf"{box}\.fc_reg\.(.*)", rf"{ours}.box.boxes.\1"),
            (rf"{mask}\.convs\.(\d)\.conv\.(.*)", rf"{ours}.mask.body.\1.0.\2"),
            (rf"{mask}\.convs\.(\d)\.bn\.(.*)", rf"{ours}.mask.body.\1.1.\2"),
            (rf"{mask}\.upsample\.(.*)", rf"{ours}.mask.masks.conv5_mask.\1"),
            (rf"{mask}\.conv_logits\.(.*)", rf"{ours}.mask.masks.mask_fcn_logits.\1"),
        ]
    return rules
