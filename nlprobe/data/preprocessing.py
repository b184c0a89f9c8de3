"""From a picture to what a network takes: the part of a model's definition that lies in front of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from nlprobe.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

Transform = Callable[[Any], Float[Tensor, "..."]]
"""From a picture, or a video, to what a network takes."""


@dataclass(frozen=True)
class Joint:
    """A transform that changes a picture and its label together, as a crop changes a map of classes.

    Attributes:
        transform: From a picture and its label to the network's input and what the loss takes.
    """

    transform: Callable[[Image.Image, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to `resize`, cut the central `crop` × `crop` out, scale to [0, 1], normalise.

    Attributes:
        resize: Length of the shorter side in pixels; 0 leaves pictures in their own size.
        longest: What the longer side has at most, both sides keeping their ratio; 0 sets no limit.
        crop: Side of the central crop in pixels; 0 takes pictures whole.
        pad: When pictures come together, zeros are added at their right and lower edges until all have the same size, a
            multiple of this many pixels; 0 adds nothing, so that only pictures of one size can come together.
        mean: Mean of red, green and blue, of values in [0, 1].
        std: Standard deviation of the same.
        interpolation: nearest, bilinear, bicubic or lanczos.
        antialias: Low-pass before shrinking, as Pillow does. False is how old torchvision resized tensors.

    Raises:
        ConfigError: the crop is larger than the resized image, or a value cannot be.
    """

    holds: ClassVar[Literal["images", "videos"]] = "images"

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    antialias: bool = True
    longest: int = 0
    pad: int = 0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if min(self.crop, self.resize) < 0 or (self.resize and self.crop > self.resize):
            raise ConfigError(
                f"preprocessing: `crop` {self.crop} does not fit into `resize` {self.resize}", "make `resize` larger"
            )
        if min(self.longest, self.pad) < 0 or (self.longest and (self.crop or self.longest < self.resize)):
            raise ConfigError(
                f"preprocessing: `longest` {self.longest} and `pad` {self.pad} with `resize` {self.resize} and `crop` "
                f"{self.crop}",
                "`longest` is 0 or at least `resize`, and goes without `crop`; `pad` is 0 or more",
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"preprocessing: unknown interpolation `{self.interpolation}`", f"known: {', '.join(INTERPOLATIONS)}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                f"preprocessing: mean {self.mean} and std {self.std}", "each has three numbers, those of std positive"
            )

    def transform(self) -> Transform:
        """A function from an RGB picture to a tensor (3, crop, crop), or (3, h, w) where it is taken whole."""
        crop = [v2.CenterCrop(self.crop)] if self.crop else []
        return v2.Compose([*self._resized(), *crop, *self.normalised()])

    def photograph(self) -> Transform:
        """The same without the crop: the whole picture, (3, h, w), with min(h, w) = resize if set; for figures."""
        return v2.Compose([*self._resized(), *self.normalised()])

    def normalised(self) -> list[Callable[[Any], Any]]:
        """The last steps: to a float tensor in [0, 1], minus mean, over standard deviation."""
        return [*to_float(), v2.Normalize(self.mean, self.std)]

    def mode(self) -> v2.InterpolationMode:
        """The interpolation as torchvision names it."""
        return v2.InterpolationMode(self.interpolation)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON takes them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "Preprocessing":
        """The inverse of `as_dict`.

        Raises:
            ConfigError: a key is unknown.
        """
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                raise ConfigError(f"preprocessing: unknown setting `{key}`", f"known: {', '.join(known)}")
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
        return cls(**values)

    def __str__(self) -> str:
        numbers = ", ".join(f"{mean:g}±{std:g}" for mean, std in zip(self.mean, self.std, strict=True))
        sharp = "" if self.antialias else " without antialiasing"
        size = f"shorter side {self.resize} ({self.interpolation}{sharp})" if self.resize else "in its own size"
        limit = f", longer side at most {self.longest}" if self.longest else ""
        padded = f", padded to a multiple of {self.pad}" if self.pad else ""
        return f"{size}{limit}, {f'crop {self.crop}' if self.crop else 'whole'}, normalised by {numbers}{padded}"

    def at_size(self, picture: Image.Image, size: tuple[int, int]) -> Any:
        """A picture brought to a height and width; a picture again, or a tensor where there is no antialiasing."""
        # Pillow always filters when it shrinks, so only a tensor can be resized without.
        first = picture if self.antialias else v2.functional.to_image(picture)
        return v2.functional.resize(first, list(size), self.mode(), antialias=self.antialias)

    def _resized(self) -> list[Callable[[Any], Any]]:
        if self.longest:
            limits = (self.resize, self.longest)
            return [lambda picture: self.at_size(picture, keep_ratio((picture.height, picture.width), *limits))]
        if not self.resize:
            return []
        first = [] if self.antialias else [v2.ToImage()]
        return [*first, v2.Resize(self.resize, self.mode(), antialias=self.antialias)]


def keep_ratio(size: tuple[int, int], shorter: int, longest: int = 0) -> tuple[int, int]:
    """Height and width after the shorter side became `shorter`, or less if the longer one would pass `longest`.

    The factor is min(shorter / min(size), longest / max(size)), and sides are rounded to the nearest pixel, as
    detection's code bases do (`800` and `1333`). Without `shorter` pictures are only ever made smaller.
    """
    factor = shorter / min(size) if shorter else 1.0
    if longest:
        factor = min(factor, longest / max(size))
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def to_float() -> list[Callable[[Any], Any]]:
    """A picture to a plain float tensor with values in [0, 1]."""
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
