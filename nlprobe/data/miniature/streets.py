"""Street scenes for the miniature Cityscapes: bands of photograph, with handwritten digits on discs as objects.

From top to bottom a scene has sky, a row of building, wall, fence and vegetation with poles in front of it, sidewalk or
terrain, and road; the lower edge is hidden by the ego vehicle, as in Cityscapes. Each is a crop of a photograph in a
colour and pattern of its kind.

Objects are discs with a digit, each digit on a colour of its own. The digits 0, 3, 4, 5, 6 and 8 each belong to a
class. The digits 2 and 7 belong to one of two classes each: one under a blue sky, the other one under a red sky.
So such an object's own pixels do not tell its class, and the scene does.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from nlprobe.data.miniature.scenes import Material, draw_digit, square_crop

SKIES = ("blue", "red")


@dataclass(frozen=True)
class StreetSettings:
    """What scenes look like; lengths are in pixels."""

    width: int = 256
    height: int = 128
    fewest: int = 8
    most: int = 11
    smallest: int = 22
    largest: int = 32
    least_visible: float = 0.6


@dataclass(frozen=True)
class Surface:
    """How a kind of surface looks: the mean of its colour, how strong the photograph shows through, and a pattern."""

    colour: tuple[int, int, int]
    texture: float
    pattern: str = "none"


SURFACES = {
    "building": Surface((150, 120, 95), 0.5, "windows"),
    "wall": Surface((150, 150, 160), 0.2, "bricks"),
    "fence": Surface((110, 90, 120), 0.4, "bars"),
    "vegetation": Surface((60, 120, 50), 0.6),
    "terrain": Surface((150, 150, 70), 0.4),
    "sidewalk": Surface((190, 160, 190), 0.2),
    "road": Surface((90, 80, 95), 0.2),
    "pole": Surface((40, 40, 45), 0.1),
}
SKY = {"blue": Surface((120, 160, 230), 0.25), "red": Surface((230, 150, 120), 0.25)}

OBJECTS: dict[int, tuple[str, str]] = {
    0: ("car", "car"),
    2: ("bicycle", "motorcycle"),
    3: ("bus", "bus"),
    4: ("truck", "truck"),
    5: ("train", "train"),
    6: ("person", "person"),
    7: ("traffic sign", "traffic light"),
    8: ("rider", "rider"),
}
"""Name of a digit's class under a blue and under a red sky."""

COLOURS = {
    0: (20, 50, 130),
    2: (120, 20, 40),
    3: (20, 100, 100),
    4: (90, 60, 20),
    5: (70, 20, 110),
    6: (30, 100, 30),
    7: (130, 80, 30),
    8: (120, 30, 110),
}
"""Mean colour of a digit's disc."""

AMBIGUOUS = tuple(digit for digit, names in OBJECTS.items() if names[0] != names[1])
EGO = "ego vehicle"


@dataclass
class Street:
    """A street while it is being composed, and when it is done.

    Attributes:
        pixels: Colours, (H, W, 3).
        ids: Number of the name seen at each pixel, in `names`.
        names: What the numbers mean.
        sky: Colour of the sky.
        objects: A line for each object: class, digit, centre, diameter.
    """

    pixels: Float[np.ndarray, "h w 3"]
    ids: UInt8[np.ndarray, "h w"]
    sky: str
    names: list[str] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)

    def image(self) -> Image.Image:
        """The picture."""
        return Image.fromarray(np.clip(self.pixels, 0, 255).round().astype(np.uint8))

    def paint(self, name: str, colour: np.ndarray, where: np.ndarray) -> None:
        """Lay a colour, or one a pixel, where `where` is true, and note what is seen there."""
        self.pixels[where] = colour[where] if colour.ndim == 3 else colour
        self.ids[where] = self._number(name)

    def _number(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)


def compose_street(material: Material, rng: np.random.Generator, settings: StreetSettings) -> Street:
    """A street scene; everything is drawn from `rng`."""
    shape = (settings.height, settings.width)
    sky = SKIES[int(rng.integers(2))]
    street = Street(np.zeros((*shape, 3), np.float32), np.zeros(shape, np.uint8), sky)
    rows, columns = np.mgrid[: settings.height, : settings.width]
    everywhere = np.ones(shape, dtype=bool)
    street.paint("sky", _surface(SKY[sky], material, rng, shape), everywhere)
    horizon = _line(rng, settings, 0.25, 0.4)
    curb = _line(rng, settings, 0.6, 0.7)
    border = _line(rng, settings, 0.72, 0.82)
    for name, left, right in _row_of_buildings(rng, settings.width):
        inside = (rows >= horizon) & (columns >= left) & (columns < right)
        street.paint(name, _surface(SURFACES[name], material, rng, shape), inside)
    distances = columns - rng.integers(4, settings.width - 12, 3)[:, None, None]
    poles = ((distances >= 0) & (distances < 8)).any(0) & (rows >= horizon - 0.1 * settings.height)
    street.paint("pole", _surface(SURFACES["pole"], material, rng, shape), poles)
    split = int(rng.integers(settings.width // 4, 3 * settings.width // 4))
    for name, side in zip(rng.permutation(["sidewalk", "terrain"]), (columns < split, columns >= split), strict=True):
        street.paint(name, _surface(SURFACES[name], material, rng, shape), (rows >= curb) & side)
    street.paint("road", _surface(SURFACES["road"], material, rng, shape), rows >= border)
    for _ in range(int(rng.integers(settings.fewest, settings.most + 1))):
        _place_object(street, material, rng, settings)
    middle = settings.width / 2
    bonnet = rows >= settings.height - 7 + 5 * ((columns - middle) / middle) ** 2
    street.paint(EGO, np.array([25, 25, 30], np.float32), bonnet)
    return street


def _line(rng: np.random.Generator, settings: StreetSettings, low: float, high: float) -> np.ndarray:
    """A slightly wavy line from left to right, as a row for each column."""
    columns = np.arange(settings.width) / settings.width
    wave = rng.uniform(-0.03, 0.03) * np.sin(2 * np.pi * (rng.uniform(0.5, 2) * columns + rng.random()))
    return settings.height * (rng.uniform(low, high) + wave)[None, :]


def _row_of_buildings(rng: np.random.Generator, width: int) -> list[tuple[str, int, int]]:
    """What stands along the street: name, first and last column."""
    names = [*rng.permutation(["building", "wall", "fence", "vegetation"]), "building"]
    ends = np.sort(rng.choice(np.arange(2, width // 16 - 1), len(names) - 1, replace=False)) * 16
    edges = [0, *(int(end) for end in ends), width]
    return [(str(name), edges[at], edges[at + 1]) for at, name in enumerate(names)]


def _surface(
    surface: Surface, material: Material, rng: np.random.Generator, shape: tuple[int, int]
) -> Float[np.ndarray, "h w 3"]:
    """A whole picture of one surface: its colour, jittered, with a photograph's light and shade and its pattern."""
    photograph = material.photographs[rng.integers(len(material.photographs))]
    crop = Image.fromarray(square_crop(photograph, 110, min(photograph.shape[:2]), rng)).convert("L")
    light = np.asarray(crop.resize(shape[::-1], Image.Resampling.BILINEAR), dtype=np.float32) / 128 - 1
    colour = np.array(surface.colour, np.float32) * rng.uniform(0.85, 1.15, 3).astype(np.float32)
    pixels = colour * (1 + surface.texture * light[..., None])
    pixels *= 1 - 0.35 * _pattern(surface.pattern, rng, shape)[..., None]
    return np.clip(pixels + rng.normal(0, 4, (*shape, 1)), 0, 255).astype(np.float32)


def _pattern(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Where the surface is darker, 0 or 1."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + rng.integers(0, 16, 2)[:, None, None]
    if name == "windows":
        dark = (rows % 14 > 4) & (rows % 14 < 11) & (columns % 12 > 3) & (columns % 12 < 9)
    elif name == "bricks":
        dark = (rows % 8 < 2) | ((columns + 8 * (rows // 8 % 2)) % 16 < 2)
    elif name == "bars":
        dark = columns % 6 < 3
    else:
        dark = np.zeros(shape, dtype=bool)
    return dark.astype(np.float32)


def _place_object(street: Street, material: Material, rng: np.random.Generator, settings: StreetSettings) -> None:
    """Lay a disc with a digit somewhere below the sky; leave it out where twenty places hide another one too much."""
    digit = int(rng.choice(list(OBJECTS)))
    name = OBJECTS[digit][SKIES.index(street.sky)]
    diameter = int(rng.integers(settings.smallest, settings.largest + 1))
    height, width = street.ids.shape
    rows, columns = np.mgrid[:height, :width]
    for _ in range(20):
        x = int(rng.integers(diameter // 2, width - diameter // 2))
        y = int(rng.integers(round(0.4 * height), height - 8 - diameter // 3))
        apart = (np.hypot(x - one["x"], y - one["y"]) / (diameter + one["diameter"]) * 2 for one in street.objects)
        if all(distance >= settings.least_visible for distance in apart):
            break
    else:
        return
    disc = np.hypot(columns - x, rows - y) <= diameter / 2
    ground = np.array(COLOURS[digit], np.float32) + rng.uniform(-20, 20, 3).astype(np.float32)
    street.paint(name, ground, disc)
    index = int(rng.choice(material.instances(digit)))
    alpha = draw_digit(material.digits[index], round(0.8 * diameter), rng.uniform(-10, 10))
    stamp = np.zeros((height, width), np.float32)
    top, left = y - alpha.shape[0] // 2, x - alpha.shape[1] // 2
    first_row, first_column = max(-top, 0), max(-left, 0)
    part = alpha[first_row : height - top, first_column : width - left]
    stamp[max(top, 0) :, max(left, 0) :][: part.shape[0], : part.shape[1]] = part
    ink = rng.uniform(190, 255, 3).astype(np.float32)
    street.pixels += (stamp * disc)[..., None] * (ink - street.pixels)
    street.objects.append({"class": name, "digit": digit, "x": x, "y": y, "diameter": diameter})
