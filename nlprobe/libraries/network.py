"""What nlprobe knows of a network that it did not build itself."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor, nn

from nlprobe.data.loading import padded
from nlprobe.data.preprocessing import Preprocessing
from nlprobe.data.video import FrameStack, Video

TRIAL_SIZES = ((96, 64), (80, 160))
"""Width and height of the pictures from which it is found out what a transform makes of a picture."""


@dataclass(frozen=True)
class Pictures:
    """How pictures, or videos, become a network's input.

    Attributes:
        transform: From an RGB picture to a tensor (C, H, W), or from a video to a tensor (C, T, H, W).
        description: What it does and where that is written, in a line.
        settings: The same for JSON.
        argument: The name under which the network takes the images; None where it is the only argument.
        pad: Images are padded at the right and lower edges to a multiple of this; 0 where they are not.
        holds: What it is that the transform takes.
    """

    transform: Callable[[Any], Tensor]
    description: str
    settings: Mapping[str, Any]
    argument: str | None = None
    pad: int = 0
    holds: Literal["images", "videos"] = "images"

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> "Pictures":
        """Inputs by nlprobe's own preprocessing."""
        return cls(
            preprocessing.transform(),
            str(preprocessing),
            preprocessing.as_dict(),
            pad=preprocessing.pad,
            holds=preprocessing.holds,
        )

    @cached_property
    def size(self) -> tuple[int, ...] | None:
        """Height and width of every image, in front of them the frames of a clip; tried on two pictures.

        None where they follow the picture.
        """
        first, second = (self.transform(self._noise(*size)).shape for size in TRIAL_SIZES)
        return tuple(first[1:]) if first == second else None

    def example(self) -> Shaped[Tensor, "1 c *size"]:
        """A batch of one image of noise as it would come from a picture, (1, C, H, W), or of one clip."""
        return padded([self.transform(self._noise(*TRIAL_SIZES[0]))], self.pad)[0].unsqueeze(0)

    def inputs(self, images: Shaped[Tensor, "b c *size"]) -> Tensor | dict[str, Tensor]:
        """A batch of images as the network takes it."""
        return images if self.argument is None else {self.argument: images}

    def _noise(self, width: int, height: int) -> Image.Image | Video:
        shape = (height, width, 3) if self.holds == "images" else (2, height, width, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return Image.fromarray(pixels) if self.holds == "images" else FrameStack(pixels)


@dataclass(frozen=True)
class Texts:
    """How a text becomes a network's input.

    Attributes:
        encode: From a text to the arguments of a forward call by name, each with a batch of one, and the number of
            tokens that had to be cut off.
        description: What it does and where that is written, in a line.
        settings: The same for JSON.
    """

    encode: Callable[[str], tuple[Mapping[str, Tensor], int]]
    description: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """Weights that nobody has trained."""

    seed: int

    def __str__(self) -> str:
        return f"random weights (seed {self.seed})"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"kind": "random", "seed": self.seed}


@dataclass(frozen=True)
class Loaded:
    """Weights from a file or folder.

    Attributes:
        path: Where they were read.
        sha256: Of the file; None for a folder.
        missing: Names of weights that are not in it and were drawn at random; none of them can reach an attention map.
    """

    path: Path | str
    sha256: str | None = None
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        drawn = f"; not in it and drawn at random: {', '.join(self.missing)}" if self.missing else ""
        return f"weights of `{self.path}`{drawn}"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"kind": "loaded", **asdict(self), "path": str(self.path), "missing": list(self.missing)}


@dataclass(frozen=True)
class Given:
    """Weights as somebody's own code gave them."""

    def __str__(self) -> str:
        return "weights as the callable gives them"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"kind": "given"}


Weights = Drawn | Loaded | Given


@dataclass(frozen=True)
class Network:
    """A network of another library.

    Attributes:
        source: What was asked for: `timm:vit_base_patch16_224`.
        model: The network.
        weights: Where its weights come from.
        pictures: How pictures become its input; None where it takes none, or does not say.
        texts: How texts become its input; None where it takes none.
        redrawn: Builds the same network with weights drawn anew; None where its weights were drawn already, or where
            nobody knows.
        package: The package that it comes from, whose version goes into the results.
    """

    source: str
    model: nn.Module
    weights: Weights
    pictures: Pictures | None = None
    texts: Texts | None = None
    redrawn: Callable[[], nn.Module] | None = field(default=None, repr=False)
    package: str | None = None


def drawn(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `build` builds from torch's generator seeded with `seed`; the generator's state is put back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
