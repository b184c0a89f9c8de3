"""Action recognition on Kinetics: Tables 1, 2, 3, 10 and 11, and the miniature twins of their models.

The Slow-only ResNet-50 of the SlowFast networks on clips of 8 frames: a 1x7x7 stem, nothing strided in time, and the
first convolution of every residual block of c4 and c5 is 3x1x1. What the paper's text leaves open is fixed as its
printed costs imply: five blocks stand behind whole residual blocks, two in c3 (1 and 3, counted from 0) and three in c4
(1, 3 and 5), where the code of "Non-local Neural Networks" and SlowFast has them; non-local blocks have reduction 2,
keys and values from an input that is max-pooled 1x2x2 (pool, then project), biases everywhere, a norm with a zero scale
after W_z, and no logit scale. GC blocks have ratio 4; those that stand everywhere are in every residual block of c3 to
c5, after the last norm and before the add.

Section 3.2.2 says that blocks stand in c4 and c5, its Table 2 measures c3 and c4, and the costs fit c3 and c4. Table 2
is taken as the two blocks of c3 alone and the three of c4 alone: so weighted, its two inputs give
(2 · 0.297 + 3 · 0.395) / 5 = 0.356, and Table 1 prints 0.358 for all five.

Other projects place and set their blocks otherwise:

| name | blocks stand | otherwise different |
| --- | --- | --- |
| `-glore` | behind 0 and 2 of c3; 0, 2 and 4 of c4 | GloRe units, where their authors' network has them |
| `-nl-mmaction2` | behind 0 and 2 of c3; 0, 2 and 4 of c4 | projected, then pooled; logits times 1/√d |
| `slowonly101-nl` | behind 1 and 3 of c3; 6, 13 and 20 of c4 | ResNet-101 ("Non-local Neural Networks") |

Of these Table 11 prints GloRe, from that paper, whose network is a lighter pre-activation one; here the units are in
the Slow-only network, and the cost of the row is another network's.

The twins are the inflation of the miniature ImageNet network, for clips of 8 frames of 64x64, so that its weights are a
beginning for them; it has two residual blocks in c3 and two in c4, each with a block behind it. Keys are not pooled.
"""

from dataclasses import dataclass, field, replace

from nlprobe.blocks import ContextConfig, GloReConfig, NonLocalConfig
from nlprobe.blocks.settings import BlockConfig
from nlprobe.models.config import ARCHITECTURES
from nlprobe.models.insertion import Insertion
from nlprobe.models.video_config import VideoConfig
from nlprobe.models.zoo import imagenet
from nlprobe.models.zoo.entry import ModelEntry
from nlprobe.models.zoo.paper import paper_row

SLOW_ONLY_50 = VideoConfig()
SLOW_ONLY_101 = replace(SLOW_ONLY_50, backbone=replace(SLOW_ONLY_50.backbone, layers=ARCHITECTURES["resnet101"].layers))
MINIATURE = VideoConfig(backbone=replace(imagenet.MINIATURE, classes=0), classes=10)

NON_LOCAL = NonLocalConfig(sub_sample="pool_then_project")
OF_MMACTION2 = replace(NON_LOCAL, scale="inv_sqrt", sub_sample="project_then_pool")
GC = ContextConfig.gc(4)

Sites = dict[str, tuple[int, ...]]
"""Residual blocks by stage."""

PAPER: Sites = {"c3": (1, 3), "c4": (1, 3, 5)}
EVEN: Sites = {"c3": (0, 2), "c4": (0, 2, 4)}
DEEP: Sites = {"c3": (1, 3), "c4": (6, 13, 20)}
TWIN: Sites = {"c3": (0, 1), "c4": (0, 1)}


@dataclass(frozen=True)
class _Variant:
    """What distinguishes one network from the plain one, and the rows (table, label) that print it.

    Attributes:
        block: What is inserted.
        stages: The stages that have it behind some of their residual blocks; none where it is within all of c3 to c5.
        behind: Which residual blocks of the full-size network these are.
    """

    suffix: str
    summary: str
    paper: tuple[tuple[str, str], ...] = ()
    block: BlockConfig | None = None
    stages: tuple[str, ...] = ("c3", "c4")
    behind: Sites = field(default_factory=lambda: PAPER)
    remark: str = ""

    def insertions(self, behind: Sites) -> tuple[Insertion, ...]:
        """The blocks, those behind residual blocks behind these."""
        if self.block is None:
            return ()
        if not self.stages:
            return tuple(Insertion(self.block, stage, "all", "after_1x1") for stage in ("c3", "c4", "c5"))
        return tuple(Insertion(self.block, stage, behind[stage], "after_block") for stage in self.stages)


_VARIANTS = (
    _Variant("", "the plain network", (("1", "baseline"), ("11", "Slow-only"), ("10", "baseline"))),
    _Variant(
        "-nl",
        "embedded Gaussian non-local blocks",
        (("11", "NLNet"), ("10", "+5 NL"), ("1", "E-Gaussian"), ("3", "E-Gaussian")),
        NON_LOCAL,
        remark="the printed FLOPs are 0.47 G below what the rule behind the other rows gives",
    ),
    _Variant(
        "-nl-gaussian",
        "Gaussian non-local blocks",
        (("1", "Gaussian"), ("3", "Gaussian")),
        replace(NON_LOCAL, instantiation="gaussian"),
    ),
    _Variant(
        "-nl-dot",
        "dot-product non-local blocks",
        (("1", "Dot product"),),
        replace(NON_LOCAL, instantiation="dot_product"),
    ),
    _Variant(
        "-nl-concat",
        "concatenation non-local blocks",
        (("1", "Concat"),),
        replace(NON_LOCAL, instantiation="concat"),
    ),
    _Variant("-nl-c3", "embedded Gaussian non-local blocks in c3 alone", (("2", "c3"),), NON_LOCAL, ("c3",)),
    _Variant("-nl-c4", "embedded Gaussian non-local blocks in c4 alone", (("2", "c4"),), NON_LOCAL, ("c4",)),
    _Variant("-snl", "simplified non-local blocks", (("10", "+5 SNL"),), ContextConfig.snl()),
    _Variant("-gc", "GC blocks, ratio 4", (("10", "+5 GC"),), GC),
    _Variant(
        "-gc-all",
        "GC block in every residual block of c3, c4, c5, ratio 4",
        (("11", "GCNet"), ("10", "+all GC")),
        GC,
        (),
        remark="42.455 M parameters, printed as if cut off",
    ),
    _Variant(
        "-glore",
        "GloRe units",
        (("11", "GloRe"),),
        GloReConfig(),
        behind=EVEN,
        remark="the printed FLOPs are of another network, the lighter one that the units' authors have them in",
    ),
)


def _full_size(suffix: str, summary: str, config: VideoConfig, depth: int = 50) -> ModelEntry:
    return ModelEntry(
        name=f"kinetics/slowonly{depth}{suffix}",
        task="action_recognition",
        summary=f"Slow-only ResNet-{depth}: {summary}",
        config=config,
        recipe="kinetics",
        input_shape=(3, 8, 224, 224),
    )


def _of_paper(variant: _Variant) -> ModelEntry:
    config = SLOW_ONLY_50.with_insertions(variant.insertions(variant.behind))
    return replace(
        _full_size(variant.suffix, variant.summary, config),
        paper=tuple(paper_row(table, "Kinetics", row) for table, row in variant.paper),
        remark=variant.remark,
    )


def _of_others() -> tuple[ModelEntry, ...]:
    """Placements and settings of other projects, and the deeper network."""
    mmaction2 = _Variant("-nl-mmaction2", "", block=OF_MMACTION2)
    nl = _Variant("-nl", "", block=NON_LOCAL)
    return (
        _full_size(
            mmaction2.suffix,
            "embedded Gaussian non-local blocks as mmaction2 has them",
            SLOW_ONLY_50.with_insertions(mmaction2.insertions(EVEN)),
        ),
        _full_size("", "the plain network", SLOW_ONLY_101, 101),
        _full_size(
            "-nl", "embedded Gaussian non-local blocks", SLOW_ONLY_101.with_insertions(nl.insertions(DEEP)), 101
        ),
    )


def _twin(variant: _Variant) -> ModelEntry:
    block = replace(variant.block, sub_sample="none") if isinstance(variant.block, NonLocalConfig) else variant.block
    config = MINIATURE.with_insertions(replace(variant, block=block).insertions(TWIN))
    return ModelEntry(
        name=f"miniature-kinetics/slowonly{variant.suffix}",
        task="action_recognition",
        summary=f"a small Slow-only network: {variant.summary}",
        config=config,
        recipe="miniature-kinetics",
        input_shape=(3, 8, 64, 64),
        full_size=f"kinetics/slowonly50{variant.suffix}",
    )


ENTRIES = (*map(_of_paper, _VARIANTS), *_of_others(), *map(_twin, _VARIANTS))
