"""Learning rates over a training run, as functions of the step: nothing to save, and exact from any step on."""

import math
from dataclasses import dataclass

from nlprobe.errors import ConfigError

KINDS = ("constant", "step", "cosine", "polynomial")
UNITS = ("step", "epoch")


@dataclass(frozen=True)
class Schedule:
    """The factor by which the initial learning rate is multiplied, in three parts: warm-up, decay, end.

    With t the share of the decay that is over, 0 ≤ t < 1, counted from the end of the warm-up, and e the `end`:

    - constant: 1
    - step: γ^(number of milestones passed)
    - cosine: e + (1 − e) ½ (1 + cos πt)
    - polynomial: e + (1 − e) (1 − t)^power

    Attributes:
        kind: One of these.
        unit: `step` moves the factor at every step, `epoch` at the start of every epoch.
        warmup_epochs: Length of the linear warm-up at the beginning; it always moves at every step.
        warmup_steps: The same length in steps, for recipes that give it so; one of the two is 0.
        warmup_start: The factor where the warm-up starts.
        milestones: Epochs at which `step` multiplies by `gamma`, counted from the start of the training.
        gamma: That factor.
        power: Exponent of `polynomial`.
        end: The factor that `cosine` and `polynomial` end at.

    Raises:
        ConfigError: an unknown kind or unit, or a number out of its range.
    """

    kind: str = "cosine"
    unit: str = "step"
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    warmup_start: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    power: float = 0.9
    end: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if self.kind not in KINDS:
            raise ConfigError(f"schedule: unknown kind `{self.kind}`", f"known: {', '.join(KINDS)}")
        if self.unit not in UNITS:
            raise ConfigError(f"schedule: unknown unit `{self.unit}`", f"known: {', '.join(UNITS)}")
        if min(self.warmup_epochs, self.warmup_steps) < 0 or (self.warmup_epochs and self.warmup_steps):
            raise ConfigError(
                f"schedule: warm-up of {self.warmup_epochs} epochs and {self.warmup_steps} steps",
                "give its length in one of the two, not negative",
            )
        if not 0 <= self.warmup_start <= 1 or not 0 <= self.end <= 1:
            raise ConfigError(
                f"schedule: warm-up from {self.warmup_start}, decay to {self.end}", "both factors are between 0 and 1"
            )
        if list(self.milestones) != sorted(self.milestones) or (self.kind == "step") != bool(self.milestones):
            raise ConfigError(
                f"schedule: kind `{self.kind}` with milestones {list(self.milestones)}",
                "`step` needs milestones in ascending order, the others none",
            )

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The factor at a step, counted from 0 over the whole training of `epochs` · `steps_per_epoch` steps."""
        epoch = step / steps_per_epoch
        warmup_steps = self.warmup_steps or self.warmup_epochs * steps_per_epoch
        if step < warmup_steps:
            return self.warmup_start + (1 - self.warmup_start) * (step + 1) / (warmup_steps + 1)
        warmup_epochs = warmup_steps / steps_per_epoch
        if self.unit == "epoch":
            epoch = math.floor(epoch)
        if self.kind == "step":
            return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        if self.kind == "constant":
            return 1.0
        over = min(max((epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9), 0.0), 1.0)
        left = (1 + math.cos(math.pi * over)) / 2 if self.kind == "cosine" else (1 - over) ** self.power
        return self.end + (1 - self.end) * left if self.end else left
