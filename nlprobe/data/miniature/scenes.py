"""Scenes of handwritten digits on photographs: the real material of which every miniature data set is made.

A scene is a crop of one of scikit-learn's two photographs on which digits of `sklearn.datasets.load_digits` lie:
tinted, scaled, turned, hidden in part by one another and by patches of clutter. What the digits mean (a class to name,
objects to find, a motion to follow) is decided by the data set that asks for the scene.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    smallest: int = 24
    largest: int = 30
    rotation: float = 10.0
    least_visible: float = 0.8
    clutter: int = 3
    contrast: float = 0.45
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
    """A picture being composed, and which object is seen at each pixel."""

    def __init__(self, background: Float[np.ndarray, "h w 3"], settings: SceneSettings) -> None:
        self.pixels = background
        self.settings = settings
        self._owner = np.zeros(background.shape[:2], dtype=np.intp)  # 0 is the background, k + 1 the object k
        self._objects: list[tuple[int, int, tuple[int, int, int, int]]] = []
        self._areas = np.zeros(1)
        self._seen = np.zeros(1)

    def hides_too_much(self, cover: Bool[np.ndarray, "h w"], left: int, top: int) -> bool:
        """Whether `cover`, laid there, leaves less than the least share of some digit to be seen."""
        left_over = self._seen - self._hidden(cover, left, top)
        return bool(np.any(left_over[1:] < self.settings.least_visible * self._areas[1:]))

    def cover(self, cover: Bool[np.ndarray, "h w"], left: int, top: int) -> None:
        """Take the covered pixels away from the objects below."""
        self._seen -= self._hidden(cover, left, top)
        self._part(cover, left, top)[cover] = 0

    def blend(self, colour: np.ndarray, alpha: Float[np.ndarray, "h w"], left: int, top: int) -> None:
        """Paint `colour`, one or one a pixel, through `alpha`."""
        height, width = alpha.shape
        below = self.pixels[top : top + height, left : left + width]
        below += alpha[..., None] * (colour - below)

    def add(self, label: int, digit: int, shape: Bool[np.ndarray, "h w"], left: int, top: int) -> None:
        """Note a digit whose pixels are `shape`."""
        self.cover(shape, left, top)
        rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        right, bottom = left + int(columns[-1]) + 1, top + int(rows[-1]) + 1
        self._objects.append((label, digit, (left + int(columns[0]), top + int(rows[0]), right, bottom)))
        self._part(shape, left, top)[shape] = len(self._objects)
        self._areas = np.append(self._areas, np.count_nonzero(shape))
        self._seen = np.append(self._seen, np.count_nonzero(shape))

    def scene(self) -> Scene:
        """The finished scene."""
        shares = self._seen[1:] / self._areas[1:]
        objects = tuple(
            SceneObject(label, digit, box, float(shares[k]), self._owner == k + 1)
            for k, (label, digit, box) in enumerate(self._objects)
        )
        return Scene(Image.fromarray(self.pixels.round().astype(np.uint8)), objects)

    def _part(self, cover: Bool[np.ndarray, "h w"], left: int, top: int) -> np.ndarray:
        return self._owner[top : top + cover.shape[0], left : left + cover.shape[1]]

    def _hidden(self, cover: Bool[np.ndarray, "h w"], left: int, top: int) -> np.ndarray:
        """How many pixels of each object `cover` would hide."""
        return np.bincount(self._part(cover, left, top)[cover], minlength=len(self._seen))


def _background(material: Material, rng: np.random.Generator, settings: SceneSettings) -> Float[np.ndarray, "h w 3"]:
    """A square crop of a photograph, resized, mirrored or not, tinted, and darkened so that digits stand out."""
    photograph = material.photographs[rng.integers(len(material.photographs))]
    crop = square_crop(photograph, settings.smallest_crop, min(photograph.shape[:2]), rng)
    resized = Image.fromarray(crop).resize((settings.size, settings.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    tint = rng.uniform(0.7, 1.3, 3).astype(np.float32)
    return np.clip(rng.uniform(0.3, 0.6) * tint * pixels, 0, 255)


def square_crop(photograph: np.ndarray, smallest: int, largest: int, rng: np.random.Generator) -> np.ndarray:
    """A random square part of a photograph."""
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
    canvas.blend(_brighter_colour(ground, settings.contrast, rng), alpha, left, top)
    canvas.add(label, digit, shape, left, top)
    return True


def draw_digit(digit: Float[np.ndarray, "10 10"], side: int, degrees: float) -> Float[np.ndarray, "h w"]:
    """The digit's opacity, 0 to 1: its 8×8 pixels drawn `side` wide and turned by `degrees`; empty edges are cut."""
    length = round(1.5 * side)
    cosine, sine = (8 / side * part for part in (math.cos(math.radians(degrees)), math.sin(math.radians(degrees))))
    # From the centre of the drawing to the centre of the digit, (5, 5) on its 10×10 pixels with the border.
    across, down = 5 - (cosine + sine) * length / 2, 5 - (cosine - sine) * length / 2
    drawn = Image.fromarray(digit).transform(
        (length, length),
        Image.Transform.AFFINE,
        (cosine, sine, across, -sine, cosine, down),
        Image.Resampling.BICUBIC,
    )
    alpha = np.clip(1.6 * np.asarray(drawn) - 0.3, 0, 1)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _brighter_colour(ground: np.ndarray, contrast: float, rng: np.random.Generator) -> np.ndarray:
    """A random colour that is brighter than the ground by `contrast` of the range, or the brightest of 32 draws."""
    colours = rng.uniform(0, 255, (32, 3))
    brighter = (colours - ground) @ np.array([0.299, 0.587, 0.114])
    return colours[np.argmax(brighter >= min(255 * contrast, brighter.max()))].astype(np.float32)


def _place_clutter(canvas: _Canvas, material: Material, rng: np.random.Generator) -> None:
    """Lay a scrap of photograph, or the shuffled pixels of a digit, somewhere; leave it out where it hides too much."""
    size = canvas.settings.size
    if rng.random() < 0.5:
        height, width = (int(side) for side in rng.integers(size // 16, size // 6, 2))
        photograph = material.photographs[rng.integers(len(material.photographs))]
        scrap = Image.fromarray(square_crop(photograph, 24, 96, rng)).resize((width, height), Image.Resampling.BILINEAR)
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
