"""How networks for object detection and instance segmentation are trained (section 5.1)."""

from dataclasses import dataclass, field, replace

from nlprobe.data import InstanceAugmentation, Joint, Preprocessing, scored
from nlprobe.training.optimisers import Optimiser
from nlprobe.training.recipes import Choices, Recipe
from nlprobe.training.schedules import Schedule


@dataclass(frozen=True)
class DetectionRecipe(Recipe):
    """The numbers of classification, and those that detection adds.

    Attributes:
        by_aspect: Pictures that are wider than high come in batches of their own, so that less is padded.
    """

    task: str = "detection"
    augmentation: InstanceAugmentation = field(default_factory=InstanceAugmentation)
    preprocessing: Preprocessing = field(
        default_factory=lambda: Preprocessing(resize=800, longest=1333, crop=0, pad=32)
    )
    by_aspect: bool = True

    def groups_by_aspect(self) -> bool:
        """As the recipe says."""
        return self.by_aspect

    def validation_transform(self) -> Joint:
        """Pictures in the size in which they are measured, and their objects as they are."""
        return scored(self.preprocessing)


COCO = DetectionRecipe(
    name="coco",
    epochs=12,
    batch_size=16,
    batch_norm="frozen",
    frozen=("c1", "c2"),
    optimiser=Optimiser(learning_rate=0.02, momentum=0.9, weight_decay=1e-4, clip_norm=35.0),
    schedule=Schedule(kind="step", milestones=(8.0, 11.0), warmup_steps=500, warmup_start=1 / 3),
)

COCO_SYNC = replace(COCO, name="coco-syncbn", batch_norm="sync")

COCO_2X = replace(COCO, name="coco-2x", epochs=24, schedule=replace(COCO.schedule, milestones=(16.0, 22.0)))

# The strongest network: three times as long, on pictures of many sizes.
COCO_3X = replace(
    COCO_SYNC,
    name="coco-3x",
    epochs=36,
    schedule=replace(COCO.schedule, milestones=(28.0, 34.0)),
    augmentation=InstanceAugmentation(shorter=(400, 1400), longest=1600),
)

COCO_CHOICES = Choices(
    "the paper, section 5.1, and the released configurations of GCNet",
    (
        "norms: `coco` freezes those of the trunk (fixBN); `coco-syncbn` trains them, synchronised, in the trunk and "
        "wherever else the network has any; stem and c2 stay as they were pretrained in both",
        "warm-up: 500 steps, linear, from a third of the learning rate",
        "gradients: clipped to a norm of 35, as in the configurations; the text does not say so",
        "losses: cross-entropy of proposals, classes and masks, smooth L1 with β = 1/9 for proposals and β = 1 for "
        "boxes, all with weight 1; a cascade weighs its stages 1, 0.5 and 0.25",
        "anchors: those that reach beyond the picture are trained too, and every object has its best one, however "
        "little they overlap, as in torchvision; the configurations leave the former out and ask for an overlap of 0.3",
        "crowds are left out of the losses; a picture without objects has those of its background",
        "schedules: `coco` 1x (12 epochs, drops at 8 and 11), `coco-2x` (24; 16, 22), `coco-3x` (36; 28, 34) with the "
        "shorter side between 400 and 1400 for the strongest network",
        "colours: normalised as for the pretrained backbone, in RGB",
    ),
)

# The same for pictures of up to 128 pixels, from scratch, so that all norms are trained. A mirrored digit is another
# digit or none.
MINIATURE_COCO = DetectionRecipe(
    name="miniature-coco",
    epochs=4,
    batch_size=8,
    optimiser=Optimiser(learning_rate=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4, clip_norm=10.0),
    schedule=Schedule(kind="cosine", unit="step", warmup_epochs=0.5),
    augmentation=InstanceAugmentation(flip=0.0),
    preprocessing=Preprocessing(resize=0, crop=0, pad=32),
)
