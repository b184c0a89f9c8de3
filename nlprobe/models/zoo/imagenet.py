"""ImageNet classification: Tables 1, 2, 3, 8a, 8b and 9, and the miniature twins of their models.

What the paper's text leaves open is fixed as its printed costs imply: non-local blocks have reduction 2, keys and
values from a 2x2 max-pooled input (pool, then project), biases everywhere, a norm with a zero scale after W_z, and no
logit scale. One block stands "right before the last residual block" of its stage, which is `after_add` of the block
before it: `layer3.4:after_add` for c4. GC blocks that stand everywhere are in every residual block of c3 to c5, after
the last norm and before the add.

SE, CBAM and gather-excite are their authors' own blocks, biases included, at their authors' sites: every residual block
of c2 to c5, after the last norm and before the add. Table 9 takes the accuracies of SE and CBAM from their papers;
gather-excite is named in section 2 and in no table.

The twins are the same classes with a quarter of the width and fewer residual blocks, for 128x128 images of ten
classes. There c4 has 8x8 positions, and pooling would leave 16 keys to compare, so their keys are not sub-sampled.
"""

from dataclasses import dataclass, replace

from nlprobe.blocks import CBAMConfig, ContextConfig, GatherExciteConfig, NonLocalConfig, SqueezeExcitationConfig
from nlprobe.blocks.settings import BlockConfig
from nlprobe.models.config import ARCHITECTURES, ResNetConfig
from nlprobe.models.insertion import STAGES, Insertion
from nlprobe.models.zoo.entry import ModelEntry
from nlprobe.models.zoo.paper import paper_row

RESNET50 = ARCHITECTURES["resnet50"]
MINIATURE = ResNetConfig(layers=(1, 2, 2, 2), block="basic", width=16, classes=10)

NON_LOCAL = NonLocalConfig(sub_sample="pool_then_project")


@dataclass(frozen=True)
class _Variant:
    """What distinguishes one network from the plain ResNet, and the rows (table, label) that print it.

    The `size` of a gather-excite block stands for that of its stage's maps, whatever it is here.
    """

    suffix: str
    summary: str
    paper: tuple[tuple[str, str], ...] = ()
    insertions: tuple[Insertion, ...] = ()
    remark: str = ""


def _one(block: BlockConfig, stage: str = "c4") -> tuple[Insertion, ...]:
    return (Insertion(block, stage, blocks=(-2,), place="after_add"),)


def _everywhere(block: BlockConfig) -> tuple[Insertion, ...]:
    return tuple(Insertion(block, stage, blocks="all", place="after_1x1") for stage in ("c3", "c4", "c5"))


def _every_stage(block: BlockConfig) -> tuple[Insertion, ...]:
    return tuple(Insertion(block, stage, blocks="all", place="after_1x1") for stage in STAGES)


def _sized(insertions: tuple[Insertion, ...], image: int) -> tuple[Insertion, ...]:
    """With the gather-excite blocks that need one made for the size of their stage's maps of a square image."""

    def sized(insertion: Insertion) -> Insertion:
        block = insertion.block
        if not isinstance(block, GatherExciteConfig) or not block.sized():
            return insertion
        side = image // (4 * 2 ** STAGES.index(insertion.stage))
        return replace(insertion, block=replace(block, size=(side, side)))

    return tuple(map(sized, insertions))


WITHOUT_MASKS = (
    "the network with attention pooling, which the paper prints as 28.08 M, less the 14 349 parameters of W_k"
)


_VARIANTS = (
    _Variant("", "the plain network", (("1", "baseline"), ("8a", "baseline"), ("8b", "baseline"), ("9", "baseline"))),
    _Variant(
        "-nl",
        "embedded Gaussian non-local block at c4",
        (("8a", "+1 NL"), ("2", "c4"), ("1", "E-Gaussian"), ("3", "E-Gaussian")),
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
    _Variant("-snl", "simplified non-local block at c4", (("8a", "+1 SNL"),), _one(ContextConfig.snl())),
    _Variant("-gc", "GC block at c4, reduction 16", (("8a", "+1 GC"),), _one(ContextConfig.gc(16))),
    _Variant(
        "-gc-all",
        "GC block in every residual block of c3, c4, c5, reduction 16",
        (("8a", "+all GC"), ("8b", "att+add"), ("9", "GCNet")),
        _everywhere(ContextConfig.gc(16)),
    ),
    _Variant(
        "-avg-scale",
        "average pooling and scale fusion (SE with layer norm) in c3, c4, c5",
        (("8b", "avg+scale"),),
        _everywhere(ContextConfig.se_with_ln(16)),
        WITHOUT_MASKS,
    ),
    _Variant(
        "-avg-add",
        "average pooling and add fusion in c3, c4, c5",
        (("8b", "avg+add"),),
        _everywhere(replace(ContextConfig.gc(16), pooling="average")),
        WITHOUT_MASKS,
    ),
    _Variant(
        "-att-scale",
        "attention pooling and scale fusion in c3, c4, c5",
        (("8b", "att+scale"),),
        _everywhere(replace(ContextConfig.gc(16), fusion="scale")),
    ),
    _Variant(
        "-se",
        "squeeze-and-excitation in every residual block, reduction 16",
        (("9", "SENet"),),
        _every_stage(SqueezeExcitationConfig()),
        "without the biases of its two linear layers it would have 28.072 M parameters",
    ),
    _Variant(
        "-cbam",
        "CBAM in every residual block, reduction 16",
        (("9", "CBAM"),),
        _every_stage(CBAMConfig()),
        "without the biases of its MLP it would have 28.074 M parameters; without its pools over positions, which the "
        "authors' code calls as functions, the counter would give 3.868 G",
    ),
    _Variant(
        "-ge-theta-minus",
        "gather-excite without weights (GE-θ⁻), global extent, in every residual block",
        (),
        _every_stage(GatherExciteConfig()),
    ),
    _Variant(
        "-ge-theta",
        "gather-excite with a depthwise convolution (GE-θ), global extent, in every residual block",
        (),
        _every_stage(GatherExciteConfig("theta", size=(56, 56))),
    ),
    _Variant(
        "-ge-theta-plus",
        "gather-excite with a depthwise convolution and a bottleneck (GE-θ⁺), global extent, in every residual block",
        (),
        _every_stage(GatherExciteConfig("theta_plus", size=(56, 56))),
    ),
)


def _full_size(variant: _Variant) -> ModelEntry:
    return ModelEntry(
        name=f"imagenet/resnet50{variant.suffix}",
        task="classification",
        summary=f"ResNet-50: {variant.summary}",
        config=replace(RESNET50, insertions=_sized(variant.insertions, 224)),
        recipe="imagenet",
        input_shape=(3, 224, 224),
        paper=tuple(paper_row(table, "ImageNet", row) for table, row in variant.paper),
        remark=variant.remark,
    )


def _twin(variant: _Variant) -> ModelEntry:
    insertions = tuple(
        replace(insertion, block=replace(insertion.block, sub_sample="none"))
        if isinstance(insertion.block, NonLocalConfig)
        else insertion
        for insertion in variant.insertions
    )
    return ModelEntry(
        name=f"miniature-imagenet/resnet{variant.suffix}",
        task="classification",
        summary=f"a small ResNet: {variant.summary}",
        config=replace(MINIATURE, insertions=_sized(insertions, 128)),
        recipe="miniature-imagenet",
        input_shape=(3, 128, 128),
        full_size=f"imagenet/resnet50{variant.suffix}",
    )


ENTRIES = (*map(_full_size, _VARIANTS), *map(_twin, _VARIANTS))
