"""Scores of every pixel of a picture: whole or by sliding windows, at one scale or several, with flips."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.errors import ConfigError


@dataclass(frozen=True)
class Inference:
    """How pictures are scored.

    Attributes:
        window: Side of the sliding windows; 0 scores pictures whole.
        stride: Steps from one window to the next.
        scales: Factors by which pictures are resized before; probabilities are averaged.
        flip: Also score the mirrored picture.

    Raises:
        ConfigError: a number out of its range.
    """

    window: int = 0
    stride: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.window < 0 or (self.window and not 1 <= self.stride <= self.window):
            raise ConfigError(
                f"windows of {self.window} every {self.stride} pixels",
                "the stride is 1 or more, and no more than a window",
            )
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"scales {list(self.scales)}", "give one factor or more, each positive")

    def __str__(self) -> str:
        windows = f"sliding windows of {self.window} every {self.stride}" if self.window else "whole pictures"
        scales = f" at scales {', '.join(f'{scale:g}' for scale in self.scales)}" if self.scales != (1.0,) else ""
        return f"{windows}{scales}{', and mirrored' if self.flip else ''}"

    def logits(self, model: nn.Module, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes h w"]:
        """Scores whose softmax are the class probabilities.

        At one scale without flip they are the network's own, averaged where windows overlap; else the logarithm of the
        mean probability over scales and flips, each resized to the picture.

        Args:
            model: A network in evaluation mode, from images to scores of the same size.
            images: Normalised pictures.
        """
        if self.scales == (1.0,) and not self.flip:
            return self._scores(model, images)
        total = None
        for version, mirrored in self._versions(images):
            scores = self._scores(model, version)
            scores = F.interpolate(scores, images.shape[2:], mode="bilinear", align_corners=False).softmax(1)
            scores = scores.flip(3) if mirrored else scores
            total = scores if total is None else total + scores
        assert total is not None
        return (total / (len(self.scales) * (1 + self.flip))).log()

    def _versions(self, images: Tensor) -> Iterator[tuple[Tensor, bool]]:
        height, width = images.shape[2:]
        for scale in self.scales:
            size = (max(round(height * scale), 1), max(round(width * scale), 1))
            resized = images
            if size != (height, width):
                resized = F.interpolate(images, size, mode="bilinear", align_corners=False)
            yield resized, False
            if self.flip:
                yield resized.flip(3), True

    def _scores(self, model: nn.Module, images: Tensor) -> Tensor:
        if not self.window:
            return model(images).float()
        height, width = images.shape[2:]
        # zeros, which are the mean colour, to the right and below of pictures that are smaller than a window
        padded = F.pad(images, (0, max(self.window - width, 0), 0, max(self.window - height, 0)))
        total: Tensor | None = None
        count = images.new_zeros(padded.shape[2:], dtype=torch.float32)
        for top in self._starts(padded.shape[2]):
            for left in self._starts(padded.shape[3]):
                part = (..., slice(top, top + self.window), slice(left, left + self.window))
                scores = model(padded[part]).float()
                if total is None:
                    total = scores.new_zeros(*scores.shape[:2], *padded.shape[2:])
                total[part] += scores
                count[part] += 1
        assert total is not None
        return (total / count)[..., :height, :width]

    def _starts(self, length: int) -> Sequence[int]:
        """Where windows begin; the last one ends at the edge."""
        last = length - self.window
        return sorted({*range(0, last, self.stride), last})


WHOLE = Inference()
"""Whole pictures, once."""
