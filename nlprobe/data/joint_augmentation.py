"""Random changes to a picture and its map of classes together: the paper's for Cityscapes (section 5.4)."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from nlprobe.data.label_maps import IGNORED, map_tensor
from nlprobe.data.preprocessing import Joint, Preprocessing
from nlprobe.errors import ConfigError


@dataclass(frozen=True)
class JointAugmentation:
    """What happens to a training picture and its map of classes, in this order.

    Where the scaled picture is smaller than the crop, it is filled up at random sides: the picture with the mean
    colour, which the normalisation turns into zeros, and the map with what is ignored.

    Attributes:
        scale: Both sides are multiplied by one factor, uniform in this range.
        crop: Side of a random square.
        flip: Probability of a horizontal flip.
        photometric: Probability of a change of brightness, contrast, saturation and hue, each on its own again at even
            odds; 0 in the paper's recipe.

    Raises:
        ConfigError: a number is out of its range.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    crop: int = 769
    flip: float = 0.5
    photometric: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(float(number) for number in self.scale))
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(
                f"augmentation: `scale` is {list(self.scale)}", "give its lower and its upper end, positive"
            )
        if self.crop < 1 or not 0 <= self.flip <= 1 or not 0 <= self.photometric <= 1:
            raise ConfigError(
                f"augmentation: {self}", "`crop` is 1 or more, `flip` and `photometric` are probabilities"
            )

    def transform(self, preprocessing: Preprocessing) -> Joint:
        """A random function from a picture and its map to (3, crop, crop), normalised, and (crop, crop)."""
        colour = [v2.RandomPhotometricDistort(p=self.photometric)] if self.photometric else []
        finish = v2.Compose([*colour, *preprocessing.normalised()])
        ground = tuple(round(255 * mean) for mean in preprocessing.mean)

        def transform(picture: Image.Image, label: Image.Image) -> tuple[Tensor, Tensor]:
            size = self._scaled(picture.size)
            picture = picture.resize(size, Image.Resampling.BILINEAR)
            label = label.resize(size, Image.Resampling.NEAREST)
            left, top = (self._offset(side) for side in size)
            box = (left, top, left + self.crop, top + self.crop)
            picture, label = _cut(picture, box, ground), _cut(label, box, IGNORED)
            if torch.rand(()) < self.flip:
                picture, label = functional.horizontal_flip(picture), functional.horizontal_flip(label)
            return finish(picture), map_tensor(label)

        return Joint(transform)

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        factor = float(torch.empty(()).uniform_(*self.scale))
        return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)

    def _offset(self, side: int) -> int:
        """Where the crop begins: anywhere inside, or before a side that is shorter than it."""
        room = side - self.crop
        drawn = int(torch.randint(abs(room) + 1, ()))
        return drawn if room >= 0 else -drawn


def _cut(image: Image.Image, box: tuple[int, int, int, int], ground: tuple[int, ...] | int) -> Image.Image:
    """The part of an image inside of `box`; what lies outside of the image is `ground`."""
    left, top, right, bottom = box
    cut = Image.new(image.mode, (right - left, bottom - top), ground)
    cut.paste(image, (-left, -top))
    return cut


def whole(preprocessing: Preprocessing) -> Joint:
    """From a whole picture and its map to (3, h, w), normalised, and (h, w); for scoring.

    Raises:
        ConfigError: the preprocessing resizes or crops, which a map of classes would not follow.
    """
    if preprocessing.resize or preprocessing.crop:
        raise ConfigError(
            f"pictures with maps of classes are scored whole, not with {preprocessing}",
            "set `preprocessing.resize` and `preprocessing.crop` to 0",
        )
    normalised = v2.Compose(preprocessing.normalised())
    return Joint(lambda picture, label: (normalised(picture), map_tensor(label)))
