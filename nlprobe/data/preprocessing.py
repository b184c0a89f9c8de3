"""From a picture to what a network takes: the part of a model's definition that lies in front of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from nlprobe.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

Transform = Callable[[Image.Image], Float[Tensor, "3 h w"]]


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
        crop: Side of the central crop in pixels; 0 takes pictures whole.
        mean: Mean of red, green and blue, of values in [0, 1].
        std: Standard deviation of the same.
        interpolation: nearest, bilinear, bicubic or lanczos.
        antialias: Low-pass before shrinking, as Pillow does. False is how old torchvision resized tensors.

    Raises:
        ConfigError: the crop is larger than the resized image, or a value cannot be.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if min(self.crop, self.resize) < 0 or (self.resize and self.crop > self.resize):
            raise ConfigError(
                f"preprocessing: `crop` {self.crop} does not fit into `resize` {self.resize}", "make `resize` larger"
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
        return f"{size}, {f'crop {self.crop}' if self.crop else 'whole'}, normalised by {numbers}"

    def _resized(self) -> list[Callable[[Any], Any]]:
        # Pillow always filters when it shrinks, so only a tensor can be resized without.
        if not self.resize:
            return []
        first = [] if self.antialias else [v2.ToImage()]
        return [*first, v2.Resize(self.resize, self.mode(), antialias=self.antialias)]


def to_float() -> list[Callable[[Any], Any]]:
    """A picture to a plain float tensor with values in [0, 1]."""
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
