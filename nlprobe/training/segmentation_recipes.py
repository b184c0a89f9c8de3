"""How networks for semantic segmentation are trained (section 5.4)."""

from dataclasses import dataclass, field

from nlprobe.data import Joint, JointAugmentation, Preprocessing, whole
from nlprobe.errors import ConfigError
from nlprobe.training.optimisers import Optimiser
from nlprobe.training.recipes import Choices, Recipe
from nlprobe.training.schedules import Schedule

INFERENCES = ("whole", "sliding")


@dataclass(frozen=True)
class SegmentationRecipe(Recipe):
    """The numbers of classification, and those that segmentation adds.

    Attributes:
        auxiliary: Weight of the loss of the auxiliary head.
        further: Weight of the losses of whatever else a head is trained by, such as DANet's two branches.
        ohem: Online hard example mining: only pixels whose own class got a probability below this count, and always the
            `ohem_kept` hardest; 0 counts all pixels.
        ohem_kept: Pixels of each image that always count.
        inference: Score pictures `whole`, or by `sliding` windows whose scores are averaged.
        window: Side of a window.
        window_stride: Steps from one window to the next.

    Raises:
        ConfigError: a number out of its range.
    """

    task: str = "segmentation"
    augmentation: JointAugmentation = field(default_factory=JointAugmentation)
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(resize=0, crop=0))
    auxiliary: float = 0.4
    further: float = 1.0
    ohem: float = 0.0
    ohem_kept: int = 50_000
    inference: str = "whole"
    window: int = 769
    window_stride: int = 513

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inference not in INFERENCES:
            raise ConfigError(f"recipe: unknown inference `{self.inference}`", f"known: {', '.join(INFERENCES)}")
        if min(self.auxiliary, self.further) < 0 or not 0 <= self.ohem < 1 or self.ohem_kept < 1:
            raise ConfigError(
                f"recipe: auxiliary {self.auxiliary}, further {self.further}, ohem {self.ohem}, ohem_kept "
                f"{self.ohem_kept}",
                "weights are 0 or more, `ohem` is a probability below 1, `ohem_kept` 1 or more",
            )
        if not 1 <= self.window_stride <= self.window:
            raise ConfigError(
                f"recipe: windows of {self.window} every {self.window_stride} pixels leave gaps or do not move",
                "make `window_stride` 1 or more, and no more than `window`",
            )

    def validation_transform(self) -> Joint:
        """Pictures and their maps as they are, normalised."""
        return whole(self.preprocessing)


CITYSCAPES = SegmentationRecipe(
    name="cityscapes",
    epochs=160,
    batch_size=8,
    batch_norm="sync",
    optimiser=Optimiser(learning_rate=0.01, momentum=0.9, weight_decay=5e-4),
    schedule=Schedule(kind="polynomial", unit="step", power=0.9),
)

CITYSCAPES_CHOICES = Choices(
    "the paper, section 5.4, which follows CCNet",
    (
        "epochs: 160 of 2 975 pictures in batches of 8 are 59 520 steps, the text's 60k; the decay is by step",
        "scale: uniform in [0.5, 2] as in the paper; CCNet's code has [0.7, 2.1]",
        "weight decay: 5e-4 on every parameter, the default of CCNet's code; its read-me says 1e-4",
        "colours: normalised as for the pretrained backbone, in RGB; CCNet's code subtracts a mean of BGR only",
        "loss: mean over images of the mean over an image's labelled pixels, whoever has them; the public code takes "
        "the mean over the pixels of a GPU's two images",
        "photometric changes: none, as the text has none; `augmentation.photometric=0.5` adds them",
        "hard example mining: off; `ohem=0.7` is that of CCNet's code, on the main head",
        "scoring: whole pictures at one scale; `nlprobe eval --scale --flip` averages several",
        "Table 13 trains with stronger augmentation, which the text does not describe",
    ),
)

# The same for pictures of 256x128 pixels. A mirrored digit is another digit or none.
MINIATURE_CITYSCAPES = SegmentationRecipe(
    name="miniature-cityscapes",
    epochs=6,
    batch_size=8,
    channels_last=True,
    optimiser=Optimiser(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_norms=False),
    schedule=Schedule(kind="polynomial", unit="step", power=0.9, warmup_epochs=1.0),
    augmentation=JointAugmentation(scale=(0.8, 1.25), crop=128, flip=0.0),
    window=128,
    window_stride=64,
)
