"""How networks for action recognition are trained (section 5.3)."""

from dataclasses import dataclass, field, replace

from nlprobe.data import ClipAugmentation, ClipPreprocessing
from nlprobe.errors import ConfigError
from nlprobe.training.optimisers import Optimiser
from nlprobe.training.recipes import Choices, Recipe
from nlprobe.training.schedules import Schedule


@dataclass(frozen=True)
class ActionRecipe(Recipe):
    """The numbers of classification for clips, and how videos are scored.

    Validation scores the central clip of each video; `nlprobe eval` all views.

    Attributes:
        clips: Clips of a video that are scored, in the middles of equal parts of it.
        crops: Crops of each clip, spread along its longer side.

    Raises:
        ConfigError: a number out of its range, or a memory order that clips do not have.
    """

    task: str = "action_recognition"
    augmentation: ClipAugmentation = field(default_factory=ClipAugmentation)
    preprocessing: ClipPreprocessing = field(default_factory=lambda: ClipPreprocessing(resize=256, crop=224))
    clips: int = 10
    crops: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.clips, self.crops) < 1:
            raise ConfigError(f"recipe: {self.clips} clips of {self.crops} crops", "use 1 or more of each")
        if self.channels_last:
            raise ConfigError("recipe: `channels_last` is a memory order of pictures", "leave it at false for clips")


KINETICS = ActionRecipe(
    name="kinetics",
    epochs=196,
    batch_size=64,
    optimiser=Optimiser(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, decay_norms=False),
    schedule=Schedule(kind="cosine", unit="step", warmup_epochs=34.0, warmup_start=0.1),
)

KINETICS_INFLATED = replace(
    KINETICS,
    name="kinetics-inflated",
    epochs=150,
    batch_size=128,
    optimiser=Optimiser(learning_rate=0.01, momentum=0.9, weight_decay=1e-4, clip_norm=40.0),
    schedule=Schedule(kind="step", milestones=(90.0, 130.0), warmup_epochs=10.0, warmup_start=0.1),
)

KINETICS_CHOICES = Choices(
    "the paper, section 5.3, which follows the Slow-only network of SlowFast",
    (
        "start: from scratch, as SLOW_8x8 does; `--recipe kinetics-inflated --pretrained …` begins with inflated "
        "weights of pictures, by the numbers of mmaction2's configuration",
        "decay: half a cosine by step after the warm-up of 34 epochs, which begins at a tenth of the learning rate",
        "weight decay: 1e-4, none on norms and biases; SlowFast spares the norms only",
        "dropout: 0.5 before the classifier, a setting of the network",
        "clip: 8 frames, stride 8, wherever the video's own rate puts them; `preprocessing.rate=30` holds the seconds",
        "validation: the central clip of each video; `nlprobe eval` averages 10 clips of 3 crops of 256x256",
    ),
)

# The same for small videos, in which the direction of a motion is its class: nothing is mirrored.
MINIATURE_KINETICS = ActionRecipe(
    name="miniature-kinetics",
    epochs=12,
    batch_size=16,
    optimiser=Optimiser(learning_rate=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_norms=False),
    schedule=Schedule(kind="cosine", unit="step", warmup_epochs=1.0),
    augmentation=ClipAugmentation(shorter=(64, 64), flip=0.0),
    preprocessing=ClipPreprocessing(resize=64, crop=64, frames=8, stride=4),
    clips=3,
    crops=1,
)
