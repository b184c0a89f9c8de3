"""Semantic segmentation on Cityscapes: Tables 4, 12a, 12b and 13, and the miniature twins of their models.

ResNet-101 with a deep stem, c4 and c5 dilated by 2 and 4, and the FCN decoder of section 5.4 with its operator between
the first two 3x3 convolutions. What the paper's text leaves open is fixed as its printed costs imply: the non-local
head has reduction 2, no sub-sampling, no logit scale, biases on W_q, W_k and W_v, none on W_z, and a norm with a zero
scale after it; GC blocks have ratio 4.

Three columns of Table 4 have lost their names in print; they are taken in the order of Table 1: input, output, att.

The rows of Table 13 other than DANet, ANN and CCNet print the models of Table 12a, trained with stronger augmentation.
DNL, OCNet, PSANet and the networks on ResNet-50 stand in none of the paper's tables; they are there to be measured.

The twins have a quarter of the width, fewer residual blocks and a head of 64 channels.
"""

from dataclasses import dataclass, replace

from nlprobe.blocks import (
    ContextConfig,
    CrissCrossConfig,
    DisentangledConfig,
    NonLocalConfig,
    ObjectContextConfig,
    PointWiseConfig,
)
from nlprobe.blocks.settings import BlockConfig
from nlprobe.models.config import ARCHITECTURES, ResNetConfig
from nlprobe.models.insertion import Insertion
from nlprobe.models.segmentation_config import SegmentationConfig
from nlprobe.models.zoo.entry import ModelEntry
from nlprobe.models.zoo.paper import paper_row

RESNET101 = replace(ARCHITECTURES["resnet101"], stem="deep", output_stride=8, dilate_first=True, classes=0)
MINIATURE = ResNetConfig(
    layers=(1, 1, 1, 1), block="basic", width=16, stem="deep", output_stride=8, dilate_first=True, classes=0
)

FULL = SegmentationConfig(backbone=RESNET101)
SMALL = SegmentationConfig(backbone=MINIATURE, channels=64, auxiliary=32, align_corners=False)

NON_LOCAL = NonLocalConfig(output_bias=False)
GC = ContextConfig.gc(4)


@dataclass(frozen=True)
class _Variant:
    """What distinguishes one network from the baseline, and the rows (table, label) that print it."""

    suffix: str
    summary: str
    paper: tuple[tuple[str, str], ...] = ()
    context: BlockConfig | None = None
    backbone: BlockConfig | None = None
    head: str = "fcn"


_VARIANTS = (
    _Variant("", "FCN head", (("12a", "baseline"), ("12b", "baseline"), ("13", "baseline"))),
    _Variant(
        "-nl",
        "embedded Gaussian non-local block in the head",
        (("13", "NLNet"), ("12a", "NL Head"), ("4", "E-Gaussian")),
        NON_LOCAL,
    ),
    _Variant(
        "-nl-gaussian",
        "Gaussian non-local block in the head",
        (("4", "Gaussian"),),
        replace(NON_LOCAL, instantiation="gaussian"),
    ),
    _Variant(
        "-nl-dot",
        "dot-product non-local block in the head",
        (("4", "Dot product"),),
        replace(NON_LOCAL, instantiation="dot_product"),
    ),
    _Variant(
        "-nl-concat",
        "concatenation non-local block in the head",
        (("4", "Concat"),),
        replace(NON_LOCAL, instantiation="concat"),
    ),
    _Variant("-snl", "simplified non-local block in the head", (("12a", "SNL Head"),), ContextConfig.snl()),
    _Variant("-gc", "GC block in the head, ratio 4", (("13", "GCNet"), ("12a", "GC head"), ("12b", "att+add")), GC),
    _Variant("-gc-all", "GC in every residual block of c3, c4, c5", (("12a", "GC backbone (c3-c5)"),), backbone=GC),
    _Variant(
        "-gc-all-gc",
        "GC in every residual block of c3, c4, c5 and in the head",
        (("12a", "GC backbone + GC Head"),),
        GC,
        backbone=GC,
    ),
    _Variant(
        "-avg-scale",
        "average pooling and scale fusion (SE with layer norm) in the head",
        (("12b", "avg+scale"),),
        ContextConfig.se_with_ln(4),
    ),
    _Variant(
        "-avg-add",
        "average pooling and add fusion in the head",
        (("12b", "avg+add"),),
        replace(GC, pooling="average"),
    ),
    _Variant(
        "-att-scale",
        "attention pooling and scale fusion in the head",
        (("12b", "att+scale"),),
        replace(GC, fusion="scale"),
    ),
    _Variant(
        "-danet", "DANet: attention between positions and between channels", (("13", "DANet"),), head="dual_attention"
    ),
    _Variant("-ann", "ANN: asymmetric pyramid attention, of c4 and c5", (("13", "ANN"),), head="asymmetric"),
    _Variant("-ccnet", "CCNet: two steps of criss-cross attention in the head", (("13", "CCNet"),), CrissCrossConfig()),
    _Variant("-dnl", "disentangled non-local block in the head", context=DisentangledConfig.mmseg()),
    _Variant("-ocnet", "object context in the head", context=ObjectContextConfig()),
    _Variant(
        "-psanet",
        "point-wise spatial attention in the head",
        context=PointWiseConfig(mask_height=97, mask_width=97),  # 2 · 49 − 1: all of a crop of 769 from everywhere
    ),
)


def _config(variant: _Variant, base: SegmentationConfig) -> SegmentationConfig:
    within, context = variant.backbone, variant.context
    if base is SMALL and isinstance(context, PointWiseConfig):
        context = replace(context, mask_height=15, mask_width=31)  # all of 128x256 pixels from everywhere
    insertions = () if within is None else tuple(Insertion(within, stage) for stage in ("c3", "c4", "c5"))
    return replace(base, head=variant.head, context=context).with_insertions(insertions)


def _full_size(variant: _Variant, depth: int = 101) -> ModelEntry:
    config = _config(variant, FULL)
    trunk = replace(config.backbone, layers=ARCHITECTURES[f"resnet{depth}"].layers)
    return ModelEntry(
        name=f"cityscapes/resnet{depth}{variant.suffix}",
        task="segmentation",
        summary=f"dilated ResNet-{depth}: {variant.summary}",
        config=replace(config, backbone=trunk),
        recipe="cityscapes",
        input_shape=(3, 769, 769),
        paper=() if depth != 101 else tuple(paper_row(table, "Cityscapes", row) for table, row in variant.paper),
    )


def _twin(variant: _Variant) -> ModelEntry:
    return ModelEntry(
        name=f"miniature-cityscapes/resnet{variant.suffix}",
        task="segmentation",
        summary=f"a small dilated ResNet: {variant.summary}",
        config=_config(variant, SMALL),
        recipe="miniature-cityscapes",
        input_shape=(3, 128, 256),
        full_size=f"cityscapes/resnet101{variant.suffix}",
    )


_LIGHTER = [variant for variant in _VARIANTS if variant.suffix in ("", "-nl", "-snl", "-gc")]

ENTRIES = (
    *map(_full_size, _VARIANTS),
    *(_full_size(variant, depth=50) for variant in _LIGHTER),
    *map(_twin, _VARIANTS),
)
