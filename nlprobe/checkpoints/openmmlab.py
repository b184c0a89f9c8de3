"""What the projects of OpenMMLab share: mmcv's blocks, and residual networks under `backbone.`."""

import re

from nlprobe.blocks.attention import Instantiation
from nlprobe.checkpoints.answers import Answers, Question
from nlprobe.checkpoints.mapping import Rules
from nlprobe.checkpoints.project import Weights
from nlprobe.errors import CheckpointError

_ALIKE = ("embedded_gaussian", "dot_product")


def residual_layers(weights: Weights, prefix: str) -> tuple[int, int, int, int]:
    """Residual blocks in c2 to c5, counted in the names below `prefix`.

    Raises:
        CheckpointError: a stage has none.
    """
    found = [0, 0, 0, 0]
    for name in weights:
        if match := re.match(rf"{re.escape(prefix)}layer([1-4])\.(\d+)\.", name):
            stage = int(match[1]) - 1
            found[stage] = max(found[stage], int(match[2]) + 1)
    if min(found) == 0:
        raise CheckpointError(
            f"the checkpoint has no residual stages `{prefix}layer1` to `{prefix}layer4`",
            "networks on ResNet and ResNeXt are read",
        )
    return found[0], found[1], found[2], found[3]


def mode_question(weights: Weights, block: str) -> tuple[Question, ...]:
    """What the weights of mmcv's `NonLocalNd` leave open of its instantiation; only two of the four look alike.

    Args:
        weights: Of the whole checkpoint.
        block: What the names of the block's weights begin with.
    """
    embeds = any(name.startswith(f"{block}theta.") for name in weights)
    concatenates = any(name.startswith(f"{block}concat_project.") for name in weights)
    if embeds and not concatenates:
        return (Question("mode", "|".join(_ALIKE), "instantiation of the non-local block"),)
    return ()


def mode_of(weights: Weights, block: str, answers: Answers) -> Instantiation:
    """The instantiation, told by the weights where they tell it."""
    if any(name.startswith(f"{block}concat_project.") for name in weights):
        return "concat"
    if not mode_question(weights, block):
        return "gaussian"
    return "dot_product" if answers.choice("mode", *_ALIKE) == "dot_product" else "embedded_gaussian"


def non_local_rules(theirs: str, ours: str) -> Rules:
    """The rules of mmcv's `NonLocalNd`.

    Args:
        theirs: A pattern for the block's name.
        ours: The name of our block.
    """
    parts = {"theta": "query", "phi": "key", "g": "value"}
    return [
        # a block with sub-sampled keys has a pool behind `g` and `phi`, and `.0` before their convolutions
        *((rf"{theirs}\.{part}\.(?:0\.)?conv\.(.*)", rf"{ours}.{name}.\1") for part, name in parts.items()),
        (rf"{theirs}\.concat_project\.(query|key)", rf"{ours}.attention.weight_\1"),
        (rf"{theirs}\.conv_out\.conv\.(.*)", rf"{ours}.output.\1"),
        (rf"{theirs}\.conv_out\.bn\.(.*)", rf"{ours}.norm.\1"),
    ]


def with_split_concatenation(weights: Weights) -> Weights:
    """The weights with the one vector that mmcv lays on [θ(x_i), φ(x_j)] as two: `.query` and `.key`."""
    mark = ".concat_project.conv.weight"
    found = dict(weights)
    for name in weights:
        if name.endswith(mark):
            block = name.removesuffix("conv.weight")
            found[f"{block}query"], found[f"{block}key"] = found.pop(name).flatten().chunk(2)
    return found


def context_rules(theirs: str, ours: str) -> Rules:
    """The rules of mmcv's `ContextBlock` with one of its two branches, likewise."""
    branch = rf"{theirs}\.channel_(?:add|mul)_conv"
    return [
        (rf"{theirs}\.conv_mask\.(.*)", rf"{ours}.mask.\1"),
        (rf"{branch}\.0\.(.*)", rf"{ours}.transform.reduce.\1"),
        (rf"{branch}\.1\.(.*)", rf"{ours}.transform.norm.\1"),
        (rf"{branch}\.3\.(.*)", rf"{ours}.transform.expand.\1"),
    ]
