"""Object detection and instance segmentation: Mask R-CNN and its cascade on a feature pyramid (section 5.1)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.errors import ConfigError
from nlprobe.models.box_heads import BOX_SIDE, MASK_SIDE
from nlprobe.models.cascade import Stages, likeliest, next_proposals
from nlprobe.models.detection_config import DetectionConfig
from nlprobe.models.detection_losses import box_losses, mask_loss
from nlprobe.models.detections import Detections, best_detections
from nlprobe.models.fpn import POOLED_LEVELS, BoxPool, feature_pyramid
from nlprobe.models.proposals import image_list, proposal_network
from nlprobe.models.resnet import ResNet
from nlprobe.models.sampling import InstancesLike, Objects, objects_of, sample

Size = tuple[int, int]
"""Height and width in pixels."""


class DetectionNetwork(nn.Module):
    """Backbone, feature pyramid, proposal head, and the stages of box and mask heads.

    The trunk is initialised first, then the heads, and the inserted blocks last: networks that differ only in what is
    inserted are equal in everything else when built from the same seed.

    Args:
        config: All settings.
    """

    def __init__(self, config: DetectionConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(replace(config.backbone, insertions=()))
        self.pyramid = feature_pyramid(config)
        self.proposals = proposal_network(config)
        self.stages = Stages(config)
        self.box_pool = BoxPool(BOX_SIDE, config)
        self.mask_pool = BoxPool(MASK_SIDE, config)
        self.backbone.insert(config.backbone)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Sequence[Size] | None = None,
        targets: Sequence[InstancesLike] | None = None,
    ) -> list[Detections] | dict[str, Tensor]:
        """What is found in each image; in training mode the losses.

        Args:
            images: Normalised, and padded at their right and bottom to a common size, best a multiple of 32.
            sizes: Height and width of the picture within each; without, all of an image is picture.
            targets: The objects of each picture, in its pixels; training mode needs them, evaluation mode ignores them.

        Returns:
            In evaluation mode what is found, image by image. In training mode losses by name, already weighted, so that
            their sum is the loss: `objectness` and `proposals` of the proposal head, `classes`, `boxes` and `masks` of
            the heads; in a cascade the latter of each stage: `classes_1`, …

        Raises:
            ConfigError: sizes that do not fit, or targets that are missing or do not fit.
        """
        sizes = _checked(sizes, images)
        levels = self.levels(images)
        if not self.training:
            proposals, _ = self.proposals(image_list(images, sizes), dict(enumerate(levels)))
            return self._detections(levels[:POOLED_LEVELS], proposals, sizes)
        if targets is None or len(targets) != len(images):
            raise ConfigError(
                f"a detection network in training mode got {len(targets) if targets is not None else 'no'} targets "
                f"for {len(images)} images",
                "give the objects of each image, or call `eval()` first",
            )
        like = levels[0].new_empty(0, dtype=torch.float32 if levels[0].dtype != torch.float64 else torch.float64)
        objects = objects_of(targets, like, self.config.classes, masks=self.config.masks)
        named = [{"boxes": each.boxes} for each in objects]
        proposals, losses = self.proposals(image_list(images, sizes), dict(enumerate(levels)), named)
        first = {"objectness": losses["loss_objectness"], "proposals": losses["loss_rpn_box_reg"]}
        return first | self._losses(levels[:POOLED_LEVELS], proposals, sizes, objects)

    def levels(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The feature pyramid, P2 to P6."""
        return list(self.pyramid(self.backbone.features(images)).values())

    def sites(self) -> list[str]:
        """Every attention block by its site in the order of the forward pass, such as `backbone.layer3.4:after_add`."""
        return self.config.sites()

    def _losses(
        self, levels: list[Tensor], proposals: list[Tensor], sizes: Sequence[Size], objects: list[Objects]
    ) -> dict[str, Tensor]:
        """The weighted losses of all stages; each samples from what the one before made of its samples."""
        found: dict[str, Tensor] = {}
        stages = self.stages.in_order()
        for number, stage in enumerate(stages, 1):
            overlap, weight = stage.numbers.overlap, stage.numbers.weight
            sampled = [
                sample(boxes, own, overlap, self.config.sampled_boxes)
                for boxes, own in zip(proposals, objects, strict=True)
            ]
            logits, deltas = stage.box(self.box_pool(levels, [each.boxes for each in sampled]))
            ending = f"_{number}" if len(stages) > 1 else ""
            classes, boxes = box_losses(logits, deltas, sampled, objects, stage.coder)
            found |= {f"classes{ending}": weight * classes, f"boxes{ending}": weight * boxes}
            if stage.mask is not None:
                pooled = self.mask_pool(levels, [each.boxes[each.positive()] for each in sampled])
                found[f"masks{ending}"] = weight * mask_loss(stage.mask(pooled), sampled, objects)
            if stage is not stages[-1]:
                proposals = next_proposals(stage, sampled, logits, deltas, sizes)
        return found

    def _detections(self, levels: list[Tensor], proposals: list[Tensor], sizes: Sequence[Size]) -> list[Detections]:
        """Boxes of the last stage with the classes of all stages' mean logits, and their mean masks."""
        counts = [len(each) for each in proposals]
        stages, logits = self.stages.in_order(), []
        for stage in stages:
            scored, deltas = stage.box(self.box_pool(levels, proposals))
            logits.append(scored)
            if stage is not stages[-1]:
                parts = zip(proposals, deltas.split(counts), scored.split(counts), sizes, strict=True)
                proposals = [stage.moved(boxes, delta, likeliest(own), size) for boxes, delta, own, size in parts]
        scores = torch.stack(logits).mean(0).softmax(1)
        moved = stage.coder.decode_single(deltas.flatten(1), torch.cat(proposals)).reshape(deltas.shape)
        found = [
            best_detections(boxes, own, size, self.config.score_threshold, self.config.detections)
            for boxes, own, size in zip(moved.split(counts), scores.split(counts), sizes, strict=True)
        ]
        return self._with_masks(levels, found) if self.config.masks else found

    def _with_masks(self, levels: list[Tensor], found: list[Detections]) -> list[Detections]:
        """The same with masks, the mean of the stages' probabilities."""
        pooled = self.mask_pool(levels, [each.boxes for each in found])
        labels = torch.cat([each.labels for each in found]) + 1
        heads = [stage.mask for stage in self.stages.in_order() if stage.mask is not None]
        masks = torch.stack([head.of_labels(pooled, labels).sigmoid() for head in heads]).mean(0)
        parts = masks.split([len(each) for each in found])
        return [replace(each, masks=part) for each, part in zip(found, parts, strict=True)]


def _checked(sizes: Sequence[Size] | None, images: Tensor) -> list[Size]:
    """The sizes of the pictures; all of each image without."""
    height, width = images.shape[2:]
    if sizes is None:
        return [(height, width)] * len(images)
    if len(sizes) != len(images):
        raise ConfigError(f"{len(sizes)} sizes for {len(images)} images", "give the height and width of each picture")
    for size in sizes:
        if not (0 < size[0] <= height and 0 < size[1] <= width):
            raise ConfigError(
                f"a picture of {size[0]}x{size[1]} does not lie in its image of {height}x{width}",
                "give height and width of the picture before it was padded",
            )
    return [(int(size[0]), int(size[1])) for size in sizes]
