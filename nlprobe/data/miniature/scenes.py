"""Scenes of handwritten digits on photographs: the real material of which every miniature data set is made.

A scene is a crop of one of scikit-learn's two photographs on which digits of `sklearn.datasets.load_digits` lie:
tinted, scaled, turned, hidden in part by one another and by patches of clutter. What the digits mean (a class to name,
objects to find, a motion to follow) is decided by the data set that asks for the scene.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from nlprobe.errors import MissingExtraError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# scikit-learn keeps the order of the UCI file, where a writer's digits stand together: blocks part the writers.
_TRAIN_DIGITS = 0.7
# Columns of the photographs (of 640), with a gap between them so that not even a resampled pixel is shared.
_TRAIN_COLUMNS = (0, 384)
_VAL_COLUMNS = (400, 640)


@dataclass(frozen=True)
class SceneSettings:
    """What scenes look like; lengths are in pixels of a square scene of `size`."""

    size: int = 128
    smallest: int = 26
    largest: int = 38
    rotation: float = 12.0
    least_visible: float = 0.7
    clutter: int = 4
    contrast: float = 0.4
    smallest_crop: int = 110


@dataclass(frozen=True)
class SceneObject:
    """A digit in a scene.

    `box` is (left, top, right, bottom) of the whole digit, hidden parts included; `visible` is the share of its pixels
    that nothing covers, and `mask` those pixels.
    """

    label: int
    digit: int
    box: tuple[int, int, int, int]
    visible: float
    mask: Bool[np.ndarray, "h w"]


@dataclass(frozen=True)
class Scene:
    """A picture and what lies in it, from the bottom to the top."""

    image: Image.Image
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class Material:
    """The digits, each with an empty border, and the strips of photographs of one split; two splits share nothing."""

    digits: Float[np.ndarray, "n 10 10"]
    labels: np.ndarray
    photographs: tuple[UInt8[np.ndarray, "h w 3"], ...]

    def instances(self, label: int) -> np.ndarray:
        """Indices of the digits of that class."""
        return np.flatnonzero(self.labels == label)


@cache
def material(split: str) -> Material:
    """The material of the split `train` or `val`.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "mini", "writing miniature data") from error
    images, labels = load_digits(return_X_y=True)
    border = round(_TRAIN_DIGITS * len(labels))
    chosen = slice(0, border) if split == "train" else slice(border, None)
    left, right = _TRAIN_COLUMNS if split == "train" else _VAL_COLUMNS
    photographs = tuple(photograph[:, left:right] for photograph in load_sample_images().images)
    digits = np.pad(images[chosen].reshape(-1, 8, 8).astype(np.float32) / 16, ((0, 0), (1, 1), (1, 1)))
    return Material(digits, labels[chosen], photographs)


def compose(material: Material, labels: Sequence[int], rng: np.random.Generator, settings: SceneSettings) -> Scene:
    """Lay a digit of each of `labels` on a crop of a photograph, then clutter, each hiding no digit too much.

    Args:
        material: Where the digits and photographs come from.
        labels: Classes of the digits; where no free place is found for one, the scene is begun anew.
        rng: Draws everything.
        settings: What the scene looks like.
    """
    while True:
        canvas = _Canvas(_background(material, rng, settings), settings)
        if all(_place_digit(canvas, material, label, rng) for label in labels):
            break
    for _ in range(rng.integers(settings.clutter + 1)):
        _place_clutter(canvas, material, rng)
    return canvas.scene()


class _Canvas:
    """A picture being composed, and which pixels of each object can still be seen."""

    def __init__(self, background: Float[np.ndarray, "h w 3"], settings: SceneSettings) -> None:
        self.pixels = background
        self.settings = settings
        self.objects: list[SceneObject] = []
        self.areas: list[int] = []

    def hides_too_much(self, cover: Bool[np.ndarray, "h w"], left: int, top: int) -> bool:
        """Whether `cover`, laid there, leaves less than the least share of some digit to be seen."""
        height, width = cover.shape
        for seen, area in zip(self.objects, self.areas, strict=True):
            part = seen.mask[top : top + height, left : left + width]
            if seen.visible * area - np.count_nonzero(part & cover) < self.settings.least_visible * area:
                return True
        return False

    def cover(self, cover: Bool[np.ndarray, "h w"], left: int, top: int) -> None:
        """Take the covered pixels away from the objects below."""
        height, width = cover.shape
        for position, (seen, area) in enumerate(zip(self.objects, self.areas, strict=True)):
            part = seen.mask[top : top + height, left : left + width]
            if np.any(part & cover):
                part &= ~cover
                self.objects[position] = replace(seen, visible=np.count_nonzero(seen.mask) / area)

    def blend(self, colour: np.ndarray, alpha: Float[np.ndarray, "h w"], left: int, top: int) -> None:
        """Paint `colour`, one or one a pixel, through `alpha`."""
        height, width = alpha.shape
        below = self.pixels[top : top + height, left : left + width]
        below += alpha[..., None] * (colour - below)

    def add(self, label: int, digit: int, shape: Bool[np.ndarray, "h w"], left: int, top: int) -> None:
        """Note a digit whose pixels are `shape`."""
        height, width = shape.shape
        mask = np.zeros(self.pixels.shape[:2], dtype=bool)
        mask[top : top + height, left : left + width] = shape
        rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        box = (
            left + int(columns[0]),
            top + int(rows[0]),
            left + int(columns[-1]) + 1,
            top + int(rows[-1]) + 1,
        )
        self.objects.append(SceneObject(label, digit, box, 1.0, mask))
        self.areas.append(int(np.count_nonzero(shape)))

    def scene(self) -> Scene:
        """The finished scene."""
        return Scene(Image.fromarray(self.pixels.round().astype(np.uint8)), tuple(self.objects))


def _background(material: Material, rng: np.random.Generator, settings: SceneSettings) -> Float[np.ndarray, "h w 3"]:
    """A square crop of a photograph, resized, mirrored or not, tinted, its contrast lowered so that digits stand out."""
    photograph = material.photographs[rng.integers(len(material.photographs))]
    crop = _square(photograph, settings.smallest_crop, min(photograph.shape[:2]), rng)
    resized = Image.fromarray(crop).resize((settings.size, settings.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32)
    pixels = pixels[:: 1 - 2 * int(rng.integers(2)), :: 1 - 2 * int(rng.integers(2))]
    tint = rng.uniform(0.7, 1.3, 3).astype(np.float32)
    return np.clip(rng.uniform(0.5, 1.0) * (tint * pixels - 128) + 128, 0, 255)


def _square(photograph: np.ndarray, smallest: int, largest: int, rng: np.random.Generator) -> np.ndarray:
    side = int(rng.integers(smallest, largest + 1))
    top = int(rng.integers(photograph.shape[0] - side + 1))
    left = int(rng.integers(photograph.shape[1] - side + 1))
    return photograph[top : top + side, left : left + side]


def _place_digit(canvas: _Canvas, material: Material, label: int, rng: np.random.Generator) -> bool:
    """Lay one digit of class `label` somewhere; False where twenty places were too crowded."""
    settings = canvas.settings
    digit = int(rng.choice(material.instances(label)))
    side = int(rng.integers(settings.smallest, settings.largest + 1))
    alpha = draw_digit(material.digits[digit], side, rng.uniform(-settings.rotation, settings.rotation))
    shape = alpha > 0.5
    for _ in range(20):
        left, top = (int(rng.integers(settings.size - length + 1)) for length in alpha.shape[::-1])
        if not canvas.hides_too_much(shape, left, top):
            break
    else:
        return False
    ground = canvas.pixels[top : top + alpha.shape[0], left : left + alpha.shape[1]].mean((0, 1))
    canvas.cover(shape, left, top)
    canvas.blend(_colour_apart_from(ground, settings.contrast, rng), alpha, left, top)
    canvas.add(label, digit, shape, left, top)
    return True


def draw_digit(digit: Float[np.ndarray, "10 10"], side: int, degrees: float) -> Float[np.ndarray, "h w"]:
    """The digit's opacity, 0 to 1: its 8×8 pixels drawn `side` wide and turned by `degrees`; empty edges are cut."""
    large = Image.fromarray(digit).resize((side * 10 // 8,) * 2, Image.Resampling.BICUBIC)
    turned = np.asarray(large.rotate(degrees, Image.Resampling.BILINEAR))
    alpha = np.clip(1.6 * turned - 0.3, 0, 1)
    rows, columns = np.flatnonzero((alpha > 0).any(1)), np.flatnonzero((alpha > 0).any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _colour_apart_from(ground: np.ndarray, contrast: float, rng: np.random.Generator) -> np.ndarray:
    """A random colour whose brightness differs from the ground's by at least `contrast` of the range."""
    weights = np.array([0.299, 0.587, 0.114])
    colours = rng.uniform(0, 255, (32, 3))
    apart = np.abs((colours - ground) @ weights)
    return colours[np.argmax(apart >= min(255 * contrast, apart.max()))].astype(np.float32)


def _place_clutter(canvas: _Canvas, material: Material, rng: np.random.Generator) -> None:
    """Lay a scrap of photograph, or the shuffled pixels of a digit, somewhere; leave it out where it hides too much."""
    size = canvas.settings.size
    if rng.random() < 0.5:
        height, width = (int(side) for side in rng.integers(size // 16, size // 6, 2))
        photograph = material.photographs[rng.integers(len(material.photographs))]
        scrap = Image.fromarray(_square(photograph, 24, 96, rng)).resize((width, height), Image.Resampling.BILINEAR)
        colour = np.asarray(scrap, dtype=np.float32)
        alpha = np.ones((height, width), dtype=np.float32)
    else:
        digit = material.digits[rng.integers(len(material.digits))]
        shuffled = np.zeros_like(digit)
        shuffled[1:-1, 1:-1] = rng.permutation(digit[1:-1, 1:-1].ravel()).reshape(8, 8)
        alpha = draw_digit(shuffled, int(rng.integers(size // 10, size // 6)), rng.uniform(0, 360))
        colour = (255 * rng.uniform(0, 1, 3)).astype(np.float32)
    left, top = (int(rng.integers(size - length + 1)) for length in alpha.shape[::-1])
    cover = alpha > 0.5
    if not canvas.hides_too_much(cover, left, top):
        canvas.cover(cover, left, top)
        canvas.blend(colour, alpha, left, top)
