"""State dicts of torchvision's Faster and Mask R-CNN on a ResNet with feature pyramid, with our names.

| torchvision | here |
| --- | --- |
| `backbone.body.` | `backbone.` |
| `backbone.fpn.` | `pyramid.` |
| `rpn.head.` | `proposals.head.` |
| `roi_heads.box_head.` | `stages.0.box.body.`; `fc6` and `fc7` are `1` and `3` |
| `roi_heads.box_predictor.cls_score`, `bbox_pred` | `stages.0.box.classes`, `boxes` |
| `roi_heads.mask_head.` | `stages.0.mask.body.` |
| `roi_heads.mask_predictor.` | `stages.0.mask.masks.` |

Files from before torchvision 0.14, its published ones among them, name the parts of the pyramid, the proposal head and
the mask head otherwise: `inner_blocks.0.weight`, `conv.weight`, `mask_fcn1.weight`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from nlprobe.errors import CheckpointError
from nlprobe.models.config import ResNetConfig
from nlprobe.models.detection_config import DetectionConfig

_RENAMED = (
    (r"backbone\.body\.", "backbone."),
    (r"backbone\.fpn\.((?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"pyramid.\1.0.\2"),
    (r"backbone\.fpn\.", "pyramid."),
    (r"rpn\.head\.conv\.(weight|bias)$", r"proposals.head.conv.0.0.\1"),
    (r"rpn\.head\.", "proposals.head."),
    (r"roi_heads\.box_head\.fc6\.", "stages.0.box.body.1."),
    (r"roi_heads\.box_head\.fc7\.", "stages.0.box.body.3."),
    (r"roi_heads\.box_head\.", "stages.0.box.body."),
    (r"roi_heads\.box_predictor\.cls_score\.", "stages.0.box.classes."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "stages.0.box.boxes."),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.", lambda found: f"stages.0.mask.body.{int(found[1]) - 1}.0."),
    (r"roi_heads\.mask_head\.", "stages.0.mask.body."),
    (r"roi_heads\.mask_predictor\.", "stages.0.mask.masks."),
)

_MARK = "backbone.body.conv1.weight"


def is_torchvision_detector(weights: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of torchvision's detectors on a ResNet."""
    return _MARK in weights and "rpn.head.cls_logits.weight" in weights


def our_detector_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights of a torchvision detector under the names of our network.

    Args:
        weights: Its state dict.
        source: Where it comes from, for the message.

    Raises:
        CheckpointError: a name that no such network has.
    """
    return {_renamed(name, source): tensor for name, tensor in weights.items()}


def torchvision_config(weights: Mapping[str, Tensor]) -> DetectionConfig:
    """The network that the weights of a torchvision detector belong to, as torchvision publishes it.

    The epsilon of the norms and the strides of the anchors are not in the weights. The first version's norms are
    frozen, without a counter of batches, and its published weights want them to add nothing to the variance.
    """
    names = our_detector_names(weights, "the state dict")
    frozen = "backbone.bn1.num_batches_tracked" not in names
    blocks = [
        len({name.split(".")[2] for name in names if name.startswith(f"backbone.layer{stage}.")})
        for stage in range(1, 5)
    ]
    return replace(
        DetectionConfig(),
        backbone=ResNetConfig(layers=tuple(blocks), norm_epsilon=0.0 if frozen else 1e-5, classes=0),
        box_head="2fc" if "stages.0.box.body.3.weight" in names else "4conv1fc",
        norm="pyramid.inner_blocks.0.1.weight" in names,
        proposal_layers=sum(bool(re.fullmatch(r"proposals\.head\.conv\.\d\.0\.weight", name)) for name in names),
        masks="stages.0.mask.masks.mask_fcn_logits.weight" in names,
        classes=len(names["stages.0.box.classes.bias"]) - 1,
        anchor_strides="divided",
    )


def _renamed(name: str, source: str) -> str:
    for pattern, ours in _RENAMED:
        if re.match(pattern, name):
            return re.sub(rf"^{pattern}", ours, name)
    raise CheckpointError(
        f"{source} holds `{name}`, which no Faster or Mask R-CNN of torchvision on a ResNet has",
        "give the state dict of one, such as `maskrcnn_resnet50_fpn`",
    )
