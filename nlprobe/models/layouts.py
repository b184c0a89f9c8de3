"""State dicts of residual networks as three projects lay them out, told apart by their keys, with our names.

| project | names | stem |
| --- | --- | --- |
| torchvision, and timm where the stem is plain | ours | `conv1`, `bn1` |
| scene parsing (CSAILVision, `resnet101-imagenet.pth`) | ours; buffers of its own synchronised norms are left out | `conv1`, `bn1` … `conv3`, `bn3` |
| timm where the stem is deep (`resnet101s`) | ours but for the stem | `conv1.0`, `conv1.1`, `conv1.3`, `conv1.4`, `conv1.6`, `bn1` |

Keys do not tell everything: a network with the stride on the first 1x1 convolution, or for BGR pictures, as ports from
Caffe have it, has the same ones.
"""  # noqa: E501

from collections.abc import Mapping

from torch import Tensor

from nlprobe.errors import CheckpointError

_TIMM_DEEP_STEM = {
    "conv1.0.": "conv1.",
    "conv1.1.": "bn1.",
    "conv1.3.": "conv2.",
    "conv1.4.": "bn2.",
    "conv1.6.": "conv3.",
    "bn1.": "bn3.",
}
_SYNCHRONISED_NORM = ("._tmp_running_mean", "._tmp_running_var", "._running_iter")

_FOREIGN = {
    "module.": "DataParallel",
    "backbone.": "an OpenMMLab checkpoint or a detector",
    "stem.0.": "OpenMMLab's ResNetV1c",
    "stem.": "Detectron2",
    "resnet.embedder.": "transformers",
    "embedder.": "transformers",
}


def our_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights under the names of our residual networks.

    Args:
        weights: A state dict in one of the layouts above.
        source: Where it comes from, for the message.

    Raises:
        CheckpointError: it is in none of them.
    """
    if "conv1.0.weight" in weights:
        _refuse_averaging_shortcuts(weights, source)
        return {_renamed(name): tensor for name, tensor in weights.items()}
    if "conv1.weight" in weights:
        return {name: tensor for name, tensor in weights.items() if not name.endswith(_SYNCHRONISED_NORM)}
    owner = next((owner for prefix, owner in _FOREIGN.items() if any(name.startswith(prefix) for name in weights)), "")
    first = next(iter(weights), None)
    known = f"names its weights as {owner} does" if owner else "is in no known layout of a residual network"
    raise CheckpointError(
        f"{source} {known}: {f'it begins with `{first}`' if first else 'it is empty'}",
        "give weights in the names of torchvision, timm or the scene-parsing project: "
        "`conv1.weight`, `layer1.0.conv1.weight`, …",
    )


def stem_of(weights: Mapping[str, Tensor]) -> str:
    """Which stem weights under our names belong to: `plain`, `deep` or `narrow_deep`.

    Either deep stem doubles its channels; what c2 is wide tells them apart: four times the planes that a bottleneck of
    it begins with, or as many as a basic block has.
    """
    if "conv3.weight" not in weights:
        return "plain"
    width = len(weights["layer1.0.bn3.weight"]) // 4 if "layer1.0.bn3.weight" in weights else None
    width = len(weights["layer1.0.bn2.weight"]) if width is None else width
    return "deep" if len(weights["conv3.weight"]) == 2 * width else "narrow_deep"


def _renamed(name: str) -> str:
    for theirs, ours in _TIMM_DEEP_STEM.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _refuse_averaging_shortcuts(weights: Mapping[str, Tensor], source: str) -> None:
    if any(name.endswith(".downsample.1.weight") and tensor.dim() == 4 for name, tensor in weights.items()):
        raise CheckpointError(
            f"{source} belongs to a network whose shortcuts average before they project, such as timm's `resnet101d`",
            "take one with plain shortcuts, such as timm's `resnet101s`",
        )
