"""Checkpoints of torchvision's Faster and Mask R-CNN on a ResNet with feature pyramid, first and second version.

| there | here |
| --- | --- |
| `backbone.body.` | `backbone.` |
| `backbone.fpn.` | `pyramid.` |
| `rpn.head.` | `proposals.head.` |
| `roi_heads.box_head.`; `fc6`, `fc7` | `stages.0.box.body.`; `1`, `3` |
| `roi_heads.box_predictor.cls_score`, `bbox_pred` | `stages.0.box.classes`, `boxes` |
| `roi_heads.mask_head.`, `mask_predictor.` | `stages.0.mask.body.`, `stages.0.mask.masks.` |

Files from before torchvision 0.14, the published ones of the first version among them, name the parts of the pyramid,
the proposal head and the mask head otherwise: `inner_blocks.0.weight`, `conv.weight`, `mask_fcn1.weight`.

The norms of the first version's trunk add nothing to the variance in the published weights, and 1e-5 in others
(`epsilon`). Its networks have 90 classes for the 80 of COCO: the class is the category's id, and ten ids are nobody's.
"""

from collections.abc import Sequence

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from nlprobe.checkpoints.answers import PIXELS, Answers, Question
from nlprobe.checkpoints.mapping import Rename, Rules, by_rules
from nlprobe.checkpoints.openmmlab import residual_layers
from nlprobe.checkpoints.project import Project, Weights
from nlprobe.errors import CheckpointError
from nlprobe.models.build import Config
from nlprobe.models.config import ResNetConfig
from nlprobe.models.detection_config import DetectionConfig

_EPSILON = Question("epsilon", "0|1e-5", "what the norms of its trunk add to the variance; 0 in the published weights")


class TorchvisionDetectors(Project):
    """Torchvision's detectors with box and mask heads."""

    name = "torchvision"
    title = "torchvision"

    def recognises(self, weights: Weights) -> bool:
        """Whether there is a proposal head on a pyramid on a ResNet."""
        return "backbone.body.conv1.weight" in weights and "rpn.head.cls_logits.weight" in weights

    def describe(self, weights: Weights) -> str:
        """Version, kind and classes."""
        kind = "Mask" if _has_masks(weights) else "Faster"
        version = 2 if _has_norms(weights) else 1
        return f"torchvision's {kind} R-CNN, version {version}, {_classes(weights)} classes"

    def questions(self, weights: Weights) -> Sequence[Question]:
        """Those of pictures and of frozen norms."""
        return (*(() if _has_norms(weights) else (_EPSILON,)), *PIXELS)

    def config(self, weights: Weights, answers: Answers) -> DetectionConfig:
        """The whole detector."""
        epsilon = 1e-5 if _has_norms(weights) else float(answers.choice("epsilon", "0", "1e-5"))
        layers = residual_layers(weights, "backbone.body.")
        if "backbone.body.layer1.0.conv3.weight" not in weights:
            raise CheckpointError(
                f"{answers.source} has a trunk of basic blocks", "detectors on ResNet-50 and deeper are read"
            )
        return DetectionConfig(
            backbone=ResNetConfig(layers=layers, norm_epsilon=epsilon, classes=0),
            channels=weights["rpn.head.cls_logits.weight"].shape[1],
            box_head="4conv1fc" if _has_norms(weights) else "2fc",
            box_width=weights["roi_heads.box_predictor.cls_score.weight"].shape[1],
            norm=_has_norms(weights),
            proposal_layers=2 if "rpn.head.conv.1.0.weight" in weights else 1,
            masks=_has_masks(weights),
            classes=_classes(weights),
            geometry="torchvision",
        )

    def rename(self, config: Config) -> Rename:
        """Trunk, pyramid, proposal head and heads."""
        return by_rules(_RULES)

    def classes(self, weights: Weights) -> Sequence[str] | None:
        """COCO's, by its ids from 1 on, where there are as many."""
        names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
        return list(names) if _classes(weights) == len(names) else None

    def first_convolution(self, config: Config) -> str:
        """In the stem."""
        return "backbone.conv1.weight"


def _classes(weights: Weights) -> int:
    return len(weights["roi_heads.box_predictor.cls_score.bias"]) - 1


def _has_masks(weights: Weights) -> bool:
    return "roi_heads.mask_predictor.mask_fcn_logits.weight" in weights


def _has_norms(weights: Weights) -> bool:
    """Whether pyramid and heads have norms, as those of the second version do."""
    return "backbone.fpn.inner_blocks.0.1.weight" in weights


_MASK_LAYERS = [(rf"roi_heads\.mask_head\.mask_fcn{n}\.(.*)", rf"stages.0.mask.body.{n - 1}.0.\1") for n in range(1, 5)]
_RULES: Rules = [
    (r"backbone\.body\.(.*)", r"backbone.\1"),
    (r"backbone\.fpn\.((?:inner|layer)_blocks\.\d)\.(weight|bias)", r"pyramid.\1.0.\2"),
    (r"backbone\.fpn\.(.*)", r"pyramid.\1"),
    (r"rpn\.head\.conv\.(weight|bias)", r"proposals.head.conv.0.0.\1"),
    (r"rpn\.head\.(.*)", r"proposals.head.\1"),
    (r"roi_heads\.box_head\.fc6\.(.*)", r"stages.0.box.body.1.\1"),
    (r"roi_heads\.box_head\.fc7\.(.*)", r"stages.0.box.body.3.\1"),
    (r"roi_heads\.box_head\.(.*)", r"stages.0.box.body.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(.*)", r"stages.0.box.classes.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.*)", r"stages.0.box.boxes.\1"),
    *_MASK_LAYERS,
    (r"roi_heads\.mask_head\.(.*)", r"stages.0.mask.body.\1"),
    (r"roi_heads\.mask_predictor\.(.*)", r"stages.0.mask.masks.\1"),
]
