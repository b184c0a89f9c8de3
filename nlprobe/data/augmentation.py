"""Random changes to training pictures: the paper's augmentation (section 5.2) as one transform made from numbers.

All draws are made with torch's generator, as torchvision's are, so that seeding it per sample (see `loading`) makes a
sample a function of (seed, epoch, index).
"""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from nlprobe.data.preprocessing import Preprocessing, Transform, to_float
from nlprobe.errors import ConfigError

# Principal components of ImageNet's RGB values in [0, 1], with the numbers that Torch's ResNet training published.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

_HUES = 255  # Pillow's hue 255 is its hue 0 again


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training picture, in this order; a zero or a range without width leaves a step out.

    Attributes:
        rotation: Rotation, uniform in ± this many degrees.
        area: Share of the picture's area that a random crop covers.
        aspect: Its width over its height, log-uniform.
        flip: Probability of a horizontal flip.
        hsv: Hue, saturation and value are each multiplied by a number uniform in this range (the hue on its circle).
        pca: Standard deviation of the weights of the noise along the colours' principal components.

    Raises:
        ConfigError: a number is out of its range.
    """

    rotation: float = 10.0
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    hsv: tuple[float, float] = (0.6, 1.4)
    pca: float = 0.1

    def __post_init__(self) -> None:
        for name in ("area", "aspect", "hsv"):
            value = tuple(float(number) for number in getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != 2 or not 0 < value[0] <= value[1]:
                raise ConfigError(
                    f"augmentation: `{name}` is {list(value)}", "give its lower and its upper end, positive"
                )
        if self.area[1] > 1 or not 0 <= self.flip <= 1 or self.rotation < 0 or self.pca < 0:
            raise ConfigError(
                f"augmentation: {self}",
                "`area` ends at 1, `flip` is a probability, `rotation` and `pca` are not negative",
            )

    def transform(self, preprocessing: Preprocessing) -> Transform:
        """A random function from an RGB picture to a tensor (3, crop, crop), normalised as in `preprocessing`."""
        steps: list[Any] = []
        if self.rotation:
            steps.append(v2.RandomRotation(self.rotation, v2.InterpolationMode.BILINEAR))
        steps.append(
            v2.RandomResizedCrop(
                preprocessing.crop, self.area, self.aspect, preprocessing.mode(), antialias=preprocessing.antialias
            )
        )
        if self.flip:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        if self.hsv != (1.0, 1.0):
            steps.append(ScaleHSV(*self.hsv))
        steps += to_float()
        if self.pca:
            steps.append(PCANoise(self.pca))
        return v2.Compose([*steps, v2.Normalize(preprocessing.mean, preprocessing.std)])


class ScaleHSV(v2.Transform):
    """Multiply hue, saturation and value, each by its own number drawn uniformly from [low, high].

    Saturation and value stop at their maximum; the hue goes round its circle. Works on RGB pictures of 8 bits.
    """

    _transformed_types = (Image.Image,)

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the three numbers."""
        return {"factors": torch.empty(3).uniform_(self.low, self.high).tolist()}

    def transform(self, inpt: Image.Image, params: dict[str, Any]) -> Image.Image:
        """Apply them through a look-up table for each channel."""
        hue, saturation, value = params["factors"]
        table = [round(level * hue) % _HUES for level in range(256)]
        table += [min(round(level * saturation), 255) for level in range(256)]
        table += [min(round(level * value), 255) for level in range(256)]
        return inpt.convert("HSV").point(table).convert("RGB")


class PCANoise(v2.Transform):
    """Add Σ_k α_k λ_k e_k to every pixel, α_k ~ N(0, σ), λ and e the principal components of ImageNet's colours.

    From "ImageNet classification with deep convolutional neural networks", section 4.1; for tensors in [0, 1].
    """

    _transformed_types = (Tensor,)

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation
        self._components = torch.tensor(_EIGENVECTORS) * torch.tensor(_EIGENVALUES)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the shift of red, green and blue."""
        return {"shift": self._components @ torch.randn(3).mul_(self.deviation)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Shift the colours of a tensor (3, h, w)."""
        return inpt + params["shift"][:, None, None]
