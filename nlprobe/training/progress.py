"""Where a training run is, and what it has measured so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

POINTS_PER_EPOCH = 100


@dataclass
class Progress:
    """`step` batches of epoch `epoch` (both from 0) are done, with these sums over their images.

    Attributes:
        epoch: Finished epochs.
        step: Finished steps of the current one.
        images: Images in them.
        sums: What was measured, the loss among it, summed over these images.
        history: A line for each finished epoch.
        curve: The same measures along the epochs, a hundred points each.
        best: The best score of a validation, and the epoch (from 1) that had it.
        window: Sums since the last point of the curve, and `window_images` how many images they are over.
    """

    epoch: int = 0
    step: int = 0
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int | None = None
    window: dict[str, float] = field(default_factory=dict)
    window_images: int = 0

    def means(self) -> dict[str, float]:
        """Means over the images of the current epoch so far."""
        return {name: total / self.images for name, total in self.sums.items()} if self.images else {}

    def add(self, sums: Mapping[str, float], images: int, step: int, steps_per_epoch: int, rate: float) -> None:
        """Count a step: number `step` (from 1) of the current epoch, made with the learning rate `rate`."""
        self.images += images
        self.window_images += images
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.window[name] = self.window.get(name, 0.0) + value
        if step % max(steps_per_epoch // POINTS_PER_EPOCH, 1) == 0 or step == steps_per_epoch:
            means = {name: total / max(self.window_images, 1) for name, total in self.window.items()}
            self.curve.append({"epoch": self.epoch + step / steps_per_epoch, "learning_rate": rate, **means})
            self.window, self.window_images = {}, 0

    def end_epoch(self, row: dict[str, Any], score: float) -> bool:
        """Close the current epoch with its line of the log; whether its score is the best so far."""
        best = self.best is None or score > self.best
        if best:
            self.best, self.best_epoch = score, self.epoch + 1
        self.history.append(row)
        self.epoch += 1
        self.step = self.images = 0
        self.sums = {}
        return best
