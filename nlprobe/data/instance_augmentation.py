"""Random changes to a picture and its objects together: the paper's for COCO (section 5.1)."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from nlprobe.data.instances import Instances
from nlprobe.data.preprocessing import Joint, Preprocessing, keep_ratio
from nlprobe.errors import ConfigError


@dataclass(frozen=True)
class InstanceAugmentation:
    """What happens to a training picture and its objects, in this order; both sides keep their ratio.

    Attributes:
        shorter: The shorter side gets a length that is uniform in this range, both ends included; (0, 0) takes the
            preprocessing's `resize`.
        longest: What the longer side has at most; 0 takes the preprocessing's.
        flip: Probability of a horizontal flip.

    Raises:
        ConfigError: a number is out of its range.
    """

    shorter: tuple[int, int] = (0, 0)
    longest: int = 0
    flip: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "shorter", tuple(int(number) for number in self.shorter))
        if (
            len(self.shorter) != 2
            or not 0 <= self.shorter[0] <= self.shorter[1]
            or (self.shorter[0] == 0) != (self.shorter[1] == 0)
        ):
            raise ConfigError(
                f"augmentation: `shorter` is {list(self.shorter)}", "give its lower and its upper end in pixels"
            )
        if self.longest < 0 or not 0 <= self.flip <= 1:
            raise ConfigError(
                f"augmentation: {self}", "`longest` is a number of pixels or 0, and `flip` is a probability"
            )

    def transform(self, preprocessing: Preprocessing) -> Joint:
        """A random function from a picture and its objects to (3, h, w), normalised, and the objects in its pixels.

        Crowds are left out: nothing is learnt from them.
        """
        finish = v2.Compose(preprocessing.normalised())
        longest = self.longest or preprocessing.longest

        def transform(picture: Image.Image, label: Instances) -> tuple[Tensor, Instances]:
            before = picture.height, picture.width
            after = keep_ratio(before, self._shorter(preprocessing.resize), longest)
            seen = preprocessing.at_size(picture, after)
            label = label.without_crowds().resized(before, after)
            if torch.rand(()) < self.flip:
                seen, label = v2.functional.horizontal_flip(seen), label.mirrored(after[1])
            return finish(seen), label

        return Joint(transform)

    def _shorter(self, otherwise: int) -> int:
        low, high = self.shorter
        return int(torch.randint(low, high + 1, ())) if high else otherwise


def scored(preprocessing: Preprocessing) -> Joint:
    """A picture as it is measured, (3, h, w), and its objects as they are, in pixels of the original picture.

    Raises:
        ConfigError: the preprocessing crops, which would take objects away.
    """
    if preprocessing.crop:
        raise ConfigError(
            f"pictures with objects are scored whole, not with {preprocessing}", "set `preprocessing.crop` to 0"
        )
    seen = preprocessing.transform()
    return Joint(lambda picture, label: (seen(picture), label))
