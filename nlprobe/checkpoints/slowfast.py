"""Checkpoints of video-nonlocal-net and PySlowFast: one pathway, pickles of Caffe2 and files of torch.

| Caffe2 | PySlowFast | here |
| --- | --- | --- |
| `conv1_w`, `res_conv1_bn_s` | `s1.pathway0_stem.conv.weight`, `s1.pathway0_stem.bn.weight` | `conv1`, `bn1` |
| `res3_1_branch2a_w`, `res3_1_branch2a_bn_s` | `s3.pathway0_res1.branch2.a.weight`, `….a_bn.weight` | `layer2.1.conv1`, `layer2.1.bn1` |
| `res3_0_branch1_w`, `res3_0_branch1_bn_s` | `s3.pathway0_res0.branch1.weight`, `….branch1_bn.weight` | `layer2.0.downsample` |
| `nonlocal_conv3_1_theta_w`, `nonlocal_conv3_1_bn_s` | `s3.pathway0_nonlocal1.conv_theta.weight`, `….bn.weight` | `layer2.1.after_block` |
| `pred_w` | `head.projection.weight` | `fc` |

Norms have `_s`, `_b`, `_rm` and `_riv` there: weight, bias, running mean and running variance. The non-local blocks stand
behind the ReLU of their residual blocks, and pool x before they project keys and values. Strides and pools in time are
not in the weights, nor whether the max-pool behind the stem pads: video-nonlocal-net's does not, PySlowFast's does.
"""  # noqa: E501

import re
from collections.abc import Sequence

from torch import Tensor

from nlprobe.blocks import NonLocalConfig
from nlprobe.checkpoints.answers import PIXELS, Answers, Question
from nlprobe.checkpoints.mapping import LeftOut, Rename, Rules, by_rules
from nlprobe.checkpoints.mmaction import CLIP
from nlprobe.checkpoints.project import Project, Weights
from nlprobe.errors import CheckpointError
from nlprobe.models.build import Config
from nlprobe.models.config import LAYERS, ResNetConfig
from nlprobe.models.insertion import Insertion
from nlprobe.models.video_config import VideoConfig

_BLOCK = re.compile(r"nonlocal_conv([2-5])_(\d+)_g_w|s([2-5])\.pathway0_nonlocal(\d+)\.conv_g\.weight")
_RESIDUAL = re.compile(r"res([2-5])_(\d+)_branch2a_w|s([2-5])\.pathway0_res(\d+)\.branch2\.a\.weight")

_BLOCKS = (
    Question("mode", "embedded_gaussian|dot_product", "instantiation of the non-local blocks: softmax or not"),
    Question("scale", "none|inv_sqrt", "factor of the logits: `USE_SCALE` false or true"),
    Question("sub_sample", "none|pool_then_project", "whether keys and values are pooled: `USE_MAXPOOL`"),
)
_TIME = (
    Question("stem_stride", "NUMBER", "frames from one position of the stem to the next"),
    Question("pool_stride", "NUMBER", "frames from one position of the max-pool behind it to the next"),
    Question("pool_frames", "NUMBER", "frames that it takes the maximum of"),
    Question("halve", "true|false", "whether a max-pool of two frames stands behind res2"),
    Question("pad_pool", "true|false", "whether the max-pool behind the stem pads in space"),
)


class SlowFast(Project):
    """video-nonlocal-net, and the networks of PySlowFast with one pathway."""

    name = "slowfast"
    title = "PySlowFast and video-nonlocal-net"

    def recognises(self, weights: Weights) -> bool:
        """Whether the stem has Caffe2's name or PySlowFast's."""
        return ("conv1_w" in weights and "res_conv1_bn_s" in weights) or "s1.pathway0_stem.conv.weight" in weights

    def describe(self, weights: Weights) -> str:
        """Depth, blocks and kernels in time."""
        whose = "video-nonlocal-net or PySlowFast (Caffe2)" if "conv1_w" in weights else "PySlowFast"
        blocks = len(_found(weights, _BLOCK))
        count = len(_found(weights, _RESIDUAL))
        return f"{whose}: {count} residual blocks with {blocks} non-local ones, a stem of {_stem(weights)} frames"

    def questions(self, weights: Weights) -> Sequence[Question]:
        """Those of the blocks, of time, of pictures and of clips."""
        return (*(_BLOCKS if _found(weights, _BLOCK) else ()), *_TIME, *PIXELS, *CLIP)

    def config(self, weights: Weights, answers: Answers) -> VideoConfig:
        """The network for clips."""
        if any(name.startswith(("t_", "s1.pathway1")) for name in weights):
            raise CheckpointError(
                f"{answers.source} has two pathways, and no network of nlprobe has", "it cannot be built"
            )
        if "conv1_w" in weights and "res_conv1_bn_rm" not in weights:
            raise CheckpointError(
                f"{answers.source} has affine layers in place of norms, and its non-local blocks attend within groups "
                "of four frames, which no block of nlprobe does",
                "take one that was not tuned on longer clips, such as i3d_nonlocal_32x2",
            )
        residual = _found(weights, _RESIDUAL)
        layers = tuple(sum(stage == number for stage, _ in residual) for number in range(4))
        if min(layers) == 0:
            raise CheckpointError(f"{answers.source} lacks whole stages of a residual network", "get the file again")
        kernels = tuple(
            tuple(_first(weights, stage, index).shape[2] for index in range(count))
            for stage, count in enumerate(layers)
        )
        classes = weights.get("pred_w", weights.get("head.projection.weight"))
        return VideoConfig(
            backbone=ResNetConfig(
                layers=layers,
                width=len(weights["conv1_w" if "conv1_w" in weights else "s1.pathway0_stem.conv.weight"]),
                classes=0,
                insertions=_insertions(weights, answers),
            ),
            temporal=(_stem(weights), *(max(stage) for stage in kernels)),
            kernels=() if all(len(set(stage)) == 1 for stage in kernels) else kernels,
            stem_stride=answers.integer("stem_stride", 1),
            pool_stride=answers.integer("pool_stride", 1),
            pool_frames=answers.integer("pool_frames", 1),
            halve=answers.switch("halve"),
            pad_pool=answers.switch("pad_pool"),
            classes=400 if classes is None else len(classes),
        )

    def rename(self, config: Config) -> Rename:
        """Both ways of naming."""
        rename = by_rules([*_CAFFE2, *_TORCH])

        def with_stages(name: str) -> str | LeftOut | None:
            found = rename(name)
            # `res3` is c3, which is the second of our stages
            return re.sub(r"^stage(\d)", lambda m: f"layer{int(m[1]) - 1}", found) if isinstance(found, str) else found

        return with_stages

    def first_convolution(self, config: Config) -> str:
        """In the stem."""
        return "conv1.weight"


_PARTS = {"theta": "query", "phi": "key", "g": "value", "out": "output"}
_NORMS = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
_KINDS = {"w": "weight", "b": "bias"}
_CONVOLUTIONS = {"a": "1", "b": "2", "c": "3"}

_CAFFE2: Rules = [
    (r".*_momentum", LeftOut("momentum of the optimiser")),
    (r"lr|model_iter", LeftOut("state of the training")),
    (r"conv1_w", r"conv1.weight"),
    *((rf"res_conv1_bn_{theirs}", rf"bn1.{ours}") for theirs, ours in _NORMS.items()),
    *(
        (rf"res(\d)_(\d+)_branch2{letter}_w", rf"stage\1.\2.conv{number}.weight")
        for letter, number in _CONVOLUTIONS.items()
    ),
    *(
        (rf"res(\d)_(\d+)_branch2{letter}_bn_{theirs}", rf"stage\1.\2.bn{number}.{ours}")
        for letter, number in _CONVOLUTIONS.items()
        for theirs, ours in _NORMS.items()
    ),
    (r"res(\d)_(\d+)_branch1_w", r"stage\1.\2.downsample.0.weight"),
    *((rf"res(\d)_(\d+)_branch1_bn_{theirs}", rf"stage\1.\2.downsample.1.{ours}") for theirs, ours in _NORMS.items()),
    *(
        (rf"nonlocal_conv(\d)_(\d+)_{part}_{kind}", rf"stage\1.\2.after_block.{ours}.{own}")
        for part, ours in _PARTS.items()
        for kind, own in _KINDS.items()
    ),
    *(
        (rf"nonlocal_conv(\d)_(\d+)_bn_{theirs}", rf"stage\1.\2.after_block.norm.{ours}")
        for theirs, ours in _NORMS.items()
    ),
    *((rf"pred_{kind}", rf"fc.{own}") for kind, own in _KINDS.items()),
]
_TORCH: Rules = [
    (r"s1\.pathway0_stem\.conv\.(.*)", r"conv1.\1"),
    (r"s1\.pathway0_stem\.bn\.(.*)", r"bn1.\1"),
    *(
        (rf"s(\d)\.pathway0_res(\d+)\.branch2\.{letter}\.(.*)", rf"stage\1.\2.conv{number}.\3")
        for letter, number in _CONVOLUTIONS.items()
    ),
    *(
        (rf"s(\d)\.pathway0_res(\d+)\.branch2\.{letter}_bn\.(.*)", rf"stage\1.\2.bn{number}.\3")
        for letter, number in _CONVOLUTIONS.items()
    ),
    (r"s(\d)\.pathway0_res(\d+)\.branch1\.(.*)", r"stage\1.\2.downsample.0.\3"),
    (r"s(\d)\.pathway0_res(\d+)\.branch1_bn\.(.*)", r"stage\1.\2.downsample.1.\3"),
    *(
        (rf"s(\d)\.pathway0_nonlocal(\d+)\.conv_{part}\.(.*)", rf"stage\1.\2.after_block.{ours}.\3")
        for part, ours in _PARTS.items()
    ),
    (r"s(\d)\.pathway0_nonlocal(\d+)\.bn\.(.*)", r"stage\1.\2.after_block.norm.\3"),
    (r"head\.projection\.(.*)", r"fc.\1"),
]


def _found(weights: Weights, pattern: re.Pattern[str]) -> list[tuple[int, int]]:
    """Stage, 0 for c2, and index of what a pattern finds."""
    matches = (pattern.fullmatch(name) for name in weights)
    return sorted({(int(match[1] or match[3]) - 2, int(match[2] or match[4])) for match in matches if match})


def _first(weights: Weights, stage: int, index: int) -> Tensor:
    """The weight of a residual block's first convolution."""
    caffe2 = f"res{stage + 2}_{index}_branch2a_w"
    return weights[caffe2 if caffe2 in weights else f"s{stage + 2}.pathway0_res{index}.branch2.a.weight"]


def _stem(weights: Weights) -> int:
    """Frames that the stem spans."""
    return weights["conv1_w" if "conv1_w" in weights else "s1.pathway0_stem.conv.weight"].shape[2]


def _insertions(weights: Weights, answers: Answers) -> tuple[Insertion, ...]:
    """The non-local blocks, stage by stage."""
    blocks = _found(weights, _BLOCK)
    if not blocks:
        return ()
    stage, index = blocks[0]
    caffe2 = f"nonlocal_conv{stage + 2}_{index}_"
    own = next(
        weights[name]
        for name in (f"{caffe2}g_w", f"s{stage + 2}.pathway0_nonlocal{index}.conv_g.weight")
        if name in weights
    )
    normed = {f"{caffe2}bn_s", f"s{stage + 2}.pathway0_nonlocal{index}.bn.weight"} & set(weights)
    dot = answers.choice("mode", "embedded_gaussian", "dot_product") == "dot_product"
    scaled = answers.choice("scale", "none", "inv_sqrt") == "inv_sqrt"
    pooled = answers.choice("sub_sample", "none", "pool_then_project") == "pool_then_project"
    block = NonLocalConfig(
        "dot_product" if dot else "embedded_gaussian",
        own.shape[1] // own.shape[0],
        scale="inv_sqrt" if scaled and not dot else "none",
        sub_sample="pool_then_project" if pooled else "none",
        norm="batch" if normed else "none",
    )
    names = list(LAYERS)
    return tuple(
        Insertion(block, name, tuple(index for stage, index in blocks if stage == number), "after_block")
        for number, name in enumerate(names)
        if any(stage == number for stage, _ in blocks)
    )
