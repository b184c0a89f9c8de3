"""Detection and instance segmentation on COCO: Tables 1, 2, 3, 5, 6 and 7, and the miniature twins of their models.

Mask R-CNN with a feature pyramid; its cascade has class-agnostic box regression, but for the strongest network, whose
published configuration regresses boxes by class. What the paper's text leaves open is fixed as its printed costs imply:
non-local blocks have reduction 2, keys and values from a 2x2 max-pooled input (pool, then project), no biases, no norm,
and no logit scale. One block stands "right before the last residual block" of its stage, which is `after_add` of the
block before it: `layer3.4:after_add` for c4. GC blocks that stand everywhere are in every residual block of c3 to c5,
after the last norm and before the add; `deformable` convolutions are the 3x3 ones of c3 to c5.

Tables 6 and 7 print one network several times, as it was trained in other ways (norms of the trunk frozen or
synchronised, 24 epochs) or scored on other images (Table 7b: test-dev). Cells of Table 5 that are not legible in the
text at hand, such as the parameters of +1 NL, are left out.

The twins have a quarter of the width, fewer residual blocks, a pyramid of 64 channels, a mask head of two convolutions,
and fewer boxes, for images of up to 128x128. There c4 has 8x8 positions, so their keys are not sub-sampled.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.blocks.settings import BlockConfig
from nlprobe.models.config import ARCHITECTURES, ResNetConfig
from nlprobe.models.detection_config import DetectionConfig
from nlprobe.models.insertion import Insertion
from nlprobe.models.zoo.entry import ModelEntry
from nlprobe.models.zoo.paper import paper_row

MINIATURE = DetectionConfig(
    backbone=ResNetConfig(layers=(1, 2, 2, 2), block="basic", width=16, classes=0),
    channels=64,
    box_width=128,
    mask_layers=2,
    classes=10,
    anchor_scale=4,
    finest_box=16,
    proposals=100,
    training_proposals=200,
    sampled_anchors=64,
    sampled_boxes=64,
    detections=20,
)

NON_LOCAL = NonLocalConfig(sub_sample="pool_then_project", norm="none", bias=False, output_bias=False)
GC = ContextConfig.gc(16)

Labels = tuple[tuple[str, str], ...]
"""Rows of the paper: table and label."""

SHORT = "the counter gives 279.539 to 279.547 G, short of what rounds to the printed figure by 0.003 to 0.011 G"
SHORT_ON_RESNEXT = (
    "the counter gives 358.136 G, and 358.149 G with ratio 4, where 358.150 would round to the printed figure"
)
CUT_OFF = "printed as if cut off: {} M parameters"


@dataclass(frozen=True)
class _Variant:
    """What is inserted into a network, and the rows (table, label) that print it.

    Attributes:
        suffix: Of the name.
        summary: In words.
        paper: The rows.
        insertions: The blocks.
        remark: What is known of cells that differ.
    """

    suffix: str
    summary: str
    paper: Labels = ()
    insertions: tuple[Insertion, ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class _Base:
    """A network without blocks.

    Attributes:
        name: Of the network.
        summary: In words.
        architecture: Of its trunk.
        trunk: Settings of the trunk that differ from the architecture's.
        network: Settings of the network that differ from Mask R-CNN's.
        recipe: The recipe of its rows.
    """

    name: str
    summary: str
    architecture: str
    trunk: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    recipe: str = "coco"

    def config(self) -> DetectionConfig:
        """The configuration."""
        trunk = replace(ARCHITECTURES[self.architecture], classes=0, **self.trunk)
        return DetectionConfig(backbone=trunk, **self.network)


def _one(block: BlockConfig, stage: str = "c4") -> tuple[Insertion, ...]:
    return (Insertion(block, stage, blocks=(-2,), place="after_add"),)


def _everywhere(
    block: BlockConfig, stages: tuple[str, ...] = ("c3", "c4", "c5"), place: str = "after_1x1"
) -> tuple[Insertion, ...]:
    return tuple(Insertion(block, stage, blocks="all", place=place) for stage in stages)


def _in_all(*labels: str) -> Labels:
    """Rows of Table 5, one a part."""
    return tuple((f"5{part}", label) for part, label in zip("abcdef", labels, strict=True) if label)


PLAIN = _Variant(
    "",
    "the plain network",
    (
        ("1", "baseline"),
        *_in_all(*["baseline"] * 6),
        ("6a", "fixBN 2fc baseline"),
        ("6a", "syncBN 2fc baseline"),
        ("6b", "2x baseline"),
        ("7a", "R50 baseline"),
    ),
)
ALL_GC = _Variant(
    "-gc-all",
    "GC block in every residual block of c3, c4, c5, ratio 16",
    (
        *_in_all("+all GC", "after1x1", "c3+c4+c5", "r16+LN+ReLU", "ratio 16", "att+add"),
        ("6a", "fixBN 2fc +GC r16"),
        ("6a", "syncBN 2fc +GC r16"),
        ("6b", "2x +GC r16"),
        ("7a", "R50 +GC r16"),
    ),
    _everywhere(GC),
    SHORT,
)
ALL_GC_4 = _Variant(
    "-gc-all-r4",
    "GC block in every residual block of c3, c4, c5, ratio 4",
    (
        ("5e", "ratio 4"),
        ("6a", "fixBN 2fc +GC r4"),
        ("6a", "syncBN 2fc +GC r4"),
        ("6b", "2x +GC r4"),
        ("7a", "R50 +GC r4"),
    ),
    _everywhere(ContextConfig.gc(4)),
    SHORT,
)
TWINS = (
    PLAIN,
    _Variant(
        "-nl",
        "embedded Gaussian non-local block at c4",
        (("5a", "+1 NL"), ("2", "c4"), ("1", "E-Gaussian"), ("3", "E-Gaussian")),
        _one(NON_LOCAL),
    ),
    _Variant(
        "-nl-gaussian",
        "Gaussian non-local block at c4",
        (("1", "Gaussian"), ("3", "Gaussian")),
        _one(replace(NON_LOCAL, instantiation="gaussian")),
    ),
    _Variant(
        "-nl-dot",
        "dot-product non-local block at c4",
        (("1", "Dot product"),),
        _one(replace(NON_LOCAL, instantiation="dot_product")),
    ),
    _Variant(
        "-nl-concat",
        "concatenation non-local block at c4",
        (("1", "Concat"),),
        _one(replace(NON_LOCAL, instantiation="concat")),
    ),
    _Variant("-nl-c3", "embedded Gaussian non-local block at c3", (("2", "c3"),), _one(NON_LOCAL, "c3")),
    _Variant("-nl-c5", "embedded Gaussian non-local block at c5", (("2", "c5"),), _one(NON_LOCAL, "c5")),
    _Variant(
        "-snl",
        "simplified non-local block at c4",
        (("5a", "+1 SNL"),),
        _one(ContextConfig.snl()),
        CUT_OFF.format("45.451"),
    ),
    _Variant("-gc", "GC block at c4, ratio 16", (("5a", "+1 GC"),), _one(GC)),
    ALL_GC,
)
ABLATIONS = (
    _Variant(
        "-gc-all-after-add",
        "GC block after the add of every residual block of c3, c4, c5",
        (("5b", "afterAdd"),),
        _everywhere(GC, place="after_add"),
        SHORT,
    ),
    _Variant("-gc-c3", "GC block in every residual block of c3", (("5c", "c3"),), _everywhere(GC, ("c3",))),
    _Variant("-gc-c4", "GC block in every residual block of c4", (("5c", "c4"),), _everywhere(GC, ("c4",))),
    _Variant(
        "-gc-c5",
        "GC block in every residual block of c5",
        (("5c", "c5"),),
        _everywhere(GC, ("c5",)),
        CUT_OFF.format("45.987"),
    ),
    _Variant(
        "-snl-all",
        "one 1x1 as the transform (without ratio) in c3, c4, c5",
        (("5d", "w/o ratio"),),
        _everywhere(ContextConfig.snl()),
    ),
    _Variant(
        "-bottleneck",
        "bottleneck of ratio 16 without activation and norm in c3, c4, c5",
        (("5d", "r16 (ratio 16)"),),
        _everywhere(replace(GC, activation=False, norm="none")),
        SHORT,
    ),
    _Variant(
        "-bottleneck-relu",
        "bottleneck of ratio 16 with ReLU, without norm, in c3, c4, c5",
        (("5d", "r16+ReLU"),),
        _everywhere(replace(GC, norm="none")),
        SHORT,
    ),
    ALL_GC_4,
    _Variant(
        "-gc-all-r8",
        "GC block in every residual block of c3, c4, c5, ratio 8",
        (("5e", "ratio 8"),),
        _everywhere(ContextConfig.gc(8)),
        SHORT,
    ),
    _Variant(
        "-gc-all-r32",
        "GC block in every residual block of c3, c4, c5, ratio 32",
        (("5e", "ratio 32"),),
        _everywhere(ContextConfig.gc(32)),
    ),
    _Variant(
        "-avg-scale",
        "average pooling and scale fusion (SE with layer norm) in c3, c4, c5",
        (("5f", "avg+scale"),),
        _everywhere(ContextConfig.se_with_ln(16)),
    ),
    _Variant(
        "-avg-add",
        "average pooling and add fusion in c3, c4, c5",
        (("5f", "avg+add"),),
        _everywhere(replace(GC, pooling="average")),
    ),
    _Variant(
        "-att-scale",
        "attention pooling and scale fusion in c3, c4, c5",
        (("5f", "att+scale"),),
        _everywhere(replace(GC, fusion="scale")),
        SHORT,
    ),
)

DEFORMABLE = {"deformable": ("c3", "c4", "c5")}
CASCADE = {"cascade": True, "class_agnostic": True}
CONVOLUTIONS = {"box_head": "4conv1fc", "norm": True}

RESNET50 = _Base("resnet50", "Mask R-CNN on ResNet-50", "resnet50")
STRONGEST = _Base(
    "resnext101_64x4d-dcn-cascade-4conv1fc",
    "Cascade Mask R-CNN with a 4conv1fc head on deformable ResNeXt-101 64x4d",
    "resnext101_64x4d",
    DEFORMABLE,
    {"cascade": True, **CONVOLUTIONS},
    "coco-3x",
)
STRONGER = (
    (
        "6a",
        "syncBN 4conv1fc",
        replace(RESNET50, name="resnet50-4conv1fc", network=CONVOLUTIONS, recipe="coco-syncbn"),
    ),
    ("7a", "R101", _Base("resnet101", "Mask R-CNN on ResNet-101", "resnet101")),
    ("7a", "X101", _Base("resnext101_32x4d", "Mask R-CNN on ResNeXt-101 32x4d", "resnext101_32x4d")),
    (
        "7ab",
        "X101+Cascade",
        _Base(
            "resnext101_32x4d-cascade",
            "Cascade Mask R-CNN on ResNeXt-101 32x4d",
            "resnext101_32x4d",
            network=CASCADE,
        ),
    ),
    (
        "7ab",
        "X101+DCN+Cascade",
        _Base(
            "resnext101_32x4d-dcn-cascade",
            "Cascade Mask R-CNN on deformable ResNeXt-101 32x4d",
            "resnext101_32x4d",
            DEFORMABLE,
            CASCADE,
        ),
    ),
)
"""Tables, the rows' label, and the network; each has rows without blocks, and with GC of ratio 16 and 4."""


def _full_size(base: _Base, variant: _Variant) -> ModelEntry:
    return ModelEntry(
        name=f"coco/{base.name}{variant.suffix}",
        task="detection",
        summary=f"{base.summary}: {variant.summary}",
        config=base.config().with_insertions(variant.insertions),
        recipe=base.recipe,
        input_shape=(3, 800, 1344),
        paper=tuple(paper_row(table, "COCO", row) for table, row in variant.paper),
        remark=variant.remark,
    )


def _stronger(tables: str, label: str, base: _Base) -> tuple[ModelEntry, ...]:
    number, parts = tables[0], tables[1:]
    remark = {"X101": SHORT_ON_RESNEXT, "X101+Cascade": "the counter gives 537.225 G"}.get(label, "")
    entries = []
    for variant, row in ((PLAIN, "baseline"), (ALL_GC, "+GC r16"), (ALL_GC_4, "+GC r4")):
        paper = tuple((f"{number}{part}", f"{label} {row}") for part in parts)
        entries.append(_full_size(base, replace(variant, paper=paper, remark=remark)))
    return tuple(entries)


def _twin(variant: _Variant) -> ModelEntry:
    insertions = tuple(
        replace(insertion, block=replace(insertion.block, sub_sample="none"))
        if isinstance(insertion.block, NonLocalConfig)
        else insertion
        for insertion in variant.insertions
    )
    return ModelEntry(
        name=f"miniature-coco/resnet{variant.suffix}",
        task="detection",
        summary=f"a small Mask R-CNN: {variant.summary}",
        config=MINIATURE.with_insertions(insertions),
        recipe="miniature-coco",
        input_shape=(3, 128, 128),
        full_size=f"coco/resnet50{variant.suffix}",
    )


_STRONGEST = replace(
    ALL_GC_4,
    paper=tuple((table, "X101 64x4d+DCN+Cascade 4conv1fc +GC r4") for table in ("7a", "7b")),
    remark="no way of counting the network of the text gives the printed figure; ours is 1028.7 G",
)

ENTRIES = (
    *(_full_size(RESNET50, variant) for variant in (*TWINS, *ABLATIONS)),
    *(entry for tables, label, base in STRONGER for entry in _stronger(tables, label, base)),
    _full_size(STRONGEST, _STRONGEST),
    *map(_twin, TWINS),
)
