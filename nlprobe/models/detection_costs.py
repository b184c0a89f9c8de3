"""A detection network as its costs are counted: with as many boxes as it takes at most, whatever it would find."""

from jaxtyping import Float
from torch import Tensor

from nlprobe.models.box_heads import BOX_SIDE, MASK_SIDE
from nlprobe.models.detection import DetectionNetwork


class WithAllBoxes(DetectionNetwork):
    """Every layer that has weights, once: box heads on `proposals` pooled maps, mask heads on `detections` of them.

    What the layers give is not looked at, so it runs on the meta device. Anchors, suppression and the pooling of boxes
    have no products.
    """

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> None:  # type: ignore[override]
        """The layers on these images; nothing is returned."""
        levels = self.levels(images)
        self.proposals.head(levels)
        width = self.config.channels
        boxes = images.new_empty(self.config.proposals, width, BOX_SIDE, BOX_SIDE)
        found = images.new_empty(self.config.detections, width, MASK_SIDE, MASK_SIDE)
        for stage in self.stages.in_order():
            stage.box(boxes)
            if stage.mask is not None:
                stage.mask(found)
