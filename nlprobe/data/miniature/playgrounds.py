"""Playgrounds for the miniature COCO: plates with a handwritten digit as objects, in the light of day or of evening.

A scene is a crop of a photograph in the colour of its light, on which plates lie: of a shape and a colour of their
kind, with a digit on them, scaled, turned, hidden in part by one another and by clutter. Plates that carry no digit,
but its shuffled pixels, are clutter, too.

The digits 0, 1, 3, 4, 5, 6 and 8 each belong to a class. The digit 7 belongs to one class by day and to another one in
the evening. The light falls on the ground only, so such an object's own pixels do not tell its class; the scene does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int32
from PIL import Image, ImageDraw

from nlprobe.data.miniature.scenes import Material, draw_digit, square_crop

Corners = tuple[tuple[float, float], ...]

LIGHTS = {"day": (0.75, 0.95, 1.15), "evening": (1.15, 0.75, 0.5)}
"""How much red, green and blue the ground gets, by the light."""

_FINE = 4  # plates are drawn so many times larger, and then shrunk, so that their edges are smooth


@dataclass(frozen=True)
class PlaygroundSettings:
    """What scenes look like; lengths are in pixels.

    Attributes:
        shorter: Range of the shorter side.
        longer: Range of the longer side.
        most: Objects in a scene; they are 1 to `most`.
        smallest: Diameter of the smallest plate.
        largest: Diameter of the largest one.
        least_visible: The share of a plate that others leave to be seen.
        clutter: Things that are no objects, at most.
        empty: Share of the scenes without any object.
        crowded: Share of the scenes with a crowd, of so many plates that nobody would outline each.
    """

    shorter: tuple[int, int] = (72, 96)
    longer: tuple[int, int] = (104, 128)
    most: int = 6
    smallest: int = 20
    largest: int = 56
    least_visible: float = 0.55
    clutter: int = 3
    empty: float = 0.04
    crowded: float = 0.05


@dataclass(frozen=True)
class Kind:
    """How the plates of a digit look, and what class they are by day and in the evening."""

    names: tuple[str, str]
    corners: Corners
    colour: tuple[int, int, int]


def _round(across: float, down: float, corners: int = 40) -> Corners:
    """Corners on an ellipse, the first a half step from its right end."""
    turns = [2 * math.pi * (place + 0.5) / corners for place in range(corners)]
    return tuple((across * math.cos(turn), down * math.sin(turn)) for turn in turns)


def _tile(across: float, down: float) -> Corners:
    return ((-across, -down), (across, -down), (across, down), (-across, down))


KINDS = {
    0: Kind(("car", "car"), _round(1.0, 1.0), (30, 60, 160)),
    1: Kind(("person", "person"), _tile(0.6, 0.95), (30, 120, 40)),
    3: Kind(("bus", "bus"), _tile(0.8, 0.8), (20, 120, 120)),
    4: Kind(("kite", "kite"), ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)), (110, 80, 20)),
    5: Kind(("train", "train"), _tile(1.0, 0.55), (90, 30, 140)),
    6: Kind(("stop sign", "stop sign"), _round(1.0, 1.0, 8), (160, 20, 40)),
    7: Kind(("sports ball", "clock"), _round(1.0, 1.0), (170, 90, 20)),
    8: Kind(("bowl", "bowl"), _round(1.0, 0.68), (150, 40, 130)),
}
"""The kinds of plates by their digit."""

AMBIGUOUS = tuple(digit for digit, kind in KINDS.items() if kind.names[0] != kind.names[1])


@dataclass(frozen=True)
class Plate:
    """An object: its class, the digit on it, and whether it is a crowd of such objects."""

    name: str
    digit: int
    crowd: bool = False


@dataclass
class Playground:
    """A scene while it is being composed, and when it is done.

    Attributes:
        pixels: Colours.
        light: Name of the light.
        owner: Which object is seen at each pixel, from 1; 0 is none.
        plates: The objects, from the bottom to the top.
    """

    pixels: Float[np.ndarray, "h w 3"]
    light: str
    owner: Int32[np.ndarray, "h w"]
    plates: list[Plate] = field(default_factory=list)
    _areas: list[int] = field(default_factory=list)

    def image(self) -> Image.Image:
        """The picture."""
        return Image.fromarray(np.clip(self.pixels, 0, 255).round().astype(np.uint8))

    def mask(self, number: int) -> Bool[np.ndarray, "h w"]:
        """What is seen of the object of that number, from 0."""
        return self.owner == number + 1

    def hides_too_much(self, cover: Bool[np.ndarray, "h w"], least_visible: float) -> bool:
        """Whether `cover` leaves less than the least share of an object to be seen, or a hole in it."""
        for number in np.unique(self.owner[cover]).tolist():
            if number:
                left = self.mask(number - 1) & ~cover
                if left.sum() < least_visible * self._areas[number - 1] or has_hole(left):
                    return True
        return False

    def lay(self, shape: Bool[np.ndarray, "h w"], plate: Plate | None = None) -> None:
        """Note what is seen where `shape` is: an object, or clutter."""
        self.owner[shape] = 0
        if plate is not None:
            self.plates.append(plate)
            self._areas.append(int(shape.sum()))
            self.owner[shape] = len(self.plates)

    def blend(self, colour: np.ndarray, alpha: Float[np.ndarray, "h w"]) -> None:
        """Paint a colour, or one a pixel, through `alpha`."""
        self.pixels += alpha[..., None] * (colour - self.pixels)


def compose_playground(material: Material, rng: np.random.Generator, settings: PlaygroundSettings) -> Playground:
    """A scene; everything is drawn from `rng`."""
    scene = _ground(material, rng, settings)
    if rng.random() >= settings.empty:
        if rng.random() < settings.crowded:
            _lay_crowd(scene, material, rng)
        for _ in range(int(rng.integers(1, settings.most + 1))):
            _lay_plate(scene, material, rng, settings)
    for _ in range(int(rng.integers(settings.clutter + 1))):
        _lay_clutter(scene, material, rng, settings)
    return scene


def outlines(mask: Bool[np.ndarray, "h w"]) -> list[list[int]]:
    """Polygons [x, y, x, y, …] along the pixels' edges, one around each connected part, and holes the other way round.

    Parts that touch at a corner only are two. Cost: O(edge pixels).
    """
    solid = np.pad(mask, 1)
    inside = solid[1:-1, 1:-1]
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # The inside lies to the right of each step: rightwards above a pixel, leftwards below, up on its left, down on
    # its right.
    for outside, start, step in (
        (solid[:-2, 1:-1], (0, 0), (1, 0)),
        (solid[2:, 1:-1], (1, 1), (-1, 0)),
        (solid[1:-1, :-2], (0, 1), (0, -1)),
        (solid[1:-1, 2:], (1, 0), (0, 1)),
    ):
        for row, column in np.argwhere(inside & ~outside).tolist():
            steps.setdefault((column + start[0], row + start[1]), []).append(step)
    found = []
    while steps:
        begin = next(iter(steps))
        found.append(_walk(steps, begin))
    return found


def _walk(steps: dict[tuple[int, int], list[tuple[int, int]]], begin: tuple[int, int]) -> list[int]:
    """Take the steps of one closed way out of all; its corners."""
    place, step = begin, steps[begin][0]
    first, before = step, step
    corners: list[int] = []
    while True:
        ways = steps[place]
        ways.remove(step)
        if not ways:
            del steps[place]
        if step != before:
            corners += place
        place, before = (place[0] + step[0], place[1] + step[1]), step
        right = (-step[1], step[0])
        ways = steps.get(place, [])
        # Where two parts meet at a corner, turning right stays on this one.
        step = right if len(ways) == 2 or (place == begin and right == first) else ways[0] if ways else first
        if place == begin and step == first:
            return [*begin, *corners] if before != first else corners


def has_hole(mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether something is wholly surrounded by the mask, which no polygon of COCO could tell."""
    return any(_turned(polygon) < 0 for polygon in outlines(mask))


def _turned(polygon: Sequence[int]) -> float:
    """The area of a polygon, negative if it runs the other way round."""
    x, y = np.array(polygon).reshape(-1, 2).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


def _ground(material: Material, rng: np.random.Generator, settings: PlaygroundSettings) -> Playground:
    """A crop of a photograph, grey in the colour of the light, of a random size, upright or lying."""
    sides = [int(rng.integers(low, high + 1)) for low, high in (settings.shorter, settings.longer)]
    height, width = sides if rng.random() < 0.6 else sides[::-1]
    photograph = material.photographs[rng.integers(len(material.photographs))]
    crop = Image.fromarray(square_crop(photograph, 110, min(photograph.shape[:2]), rng)).convert("L")
    grey = np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    if rng.random() < 0.5:
        grey = grey[:, ::-1]
    light = str(rng.choice(list(LIGHTS)))
    colour = np.array(LIGHTS[light], np.float32) * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    pixels = rng.uniform(0.55, 0.85) * (0.6 * grey[..., None] + 90) * colour
    return Playground(np.clip(pixels, 0, 255).astype(np.float32), light, np.zeros((height, width), np.int32))


def _lay_plate(scene: Playground, material: Material, rng: np.random.Generator, settings: PlaygroundSettings) -> None:
    """Lay a plate with a digit somewhere; leave it out where twenty places hide others too much."""
    digit = int(rng.choice(list(KINDS)))
    diameter = math.exp(rng.uniform(math.log(settings.smallest), math.log(settings.largest)))
    place = _free_place(scene, KINDS[digit].corners, diameter, rng, settings)
    if place is None:
        return
    ink = material.digits[int(rng.choice(material.instances(digit)))]
    _paint_plate(scene, digit, ink, place, diameter, rng)
    scene.lay(place.alpha > 0.5, Plate(KINDS[digit].names[list(LIGHTS).index(scene.light)], digit))


@dataclass(frozen=True)
class _Place:
    """Where a plate lies: its centre, how it is turned, and how much of each pixel it covers."""

    x: float
    y: float
    degrees: float
    alpha: Float[np.ndarray, "h w"]


def _free_place(
    scene: Playground, corners: Corners, diameter: float, rng: np.random.Generator, settings: PlaygroundSettings
) -> _Place | None:
    height, width = scene.owner.shape
    for _ in range(20):
        degrees = rng.uniform(-12, 12)
        x, y = (rng.uniform(0.35 * diameter, side - 0.35 * diameter) for side in (width, height))
        alpha = _drawn(corners, diameter, degrees, x, y, (height, width))
        if not scene.hides_too_much(alpha > 0.5, settings.least_visible):
            return _Place(x, y, degrees, alpha)
    return None


def _drawn(
    corners: Corners, diameter: float, degrees: float, x: float, y: float, shape: tuple[int, int]
) -> Float[np.ndarray, "h w"]:
    """How much of each pixel a shape covers."""
    cosine, sine = (diameter / 2 * part for part in (math.cos(math.radians(degrees)), math.sin(math.radians(degrees))))
    points = [
        (_FINE * (x + cosine * across - sine * down), _FINE * (y + sine * across + cosine * down))
        for across, down in corners
    ]
    fine = Image.new("L", (_FINE * shape[1], _FINE * shape[0]))
    ImageDraw.Draw(fine).polygon(points, fill=255)
    return np.asarray(fine.reduce(_FINE), dtype=np.float32) / 255


def _paint_plate(
    scene: Playground,
    digit: int,
    ink: Float[np.ndarray, "10 10"],
    place: _Place,
    diameter: float,
    rng: np.random.Generator,
) -> None:
    """Paint a plate in the colour of its kind, with a bright rim and the ink in the middle."""
    colour = np.array(KINDS[digit].colour, np.float32) + rng.uniform(-25, 25, 3).astype(np.float32)
    bright = rng.uniform(195, 255, 3).astype(np.float32)
    inner = _drawn(KINDS[digit].corners, 0.86 * diameter, place.degrees, place.x, place.y, scene.owner.shape)
    scene.blend(bright, place.alpha)
    scene.blend(colour, inner)
    drawn = draw_digit(ink, max(round(0.62 * diameter), 8), place.degrees)
    scene.blend(bright, _stamped(drawn, place, scene.owner.shape) * inner)


def _stamped(drawn: Float[np.ndarray, "a b"], place: _Place, shape: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """A drawing, its middle at a place of an otherwise empty picture."""
    room = max(drawn.shape)
    canvas = np.zeros((shape[0] + 2 * room, shape[1] + 2 * room), np.float32)
    top, left = (
        room + round(centre - length / 2) for centre, length in zip((place.y, place.x), drawn.shape, strict=True)
    )
    canvas[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return canvas[room:-room, room:-room]


def _lay_crowd(scene: Playground, material: Material, rng: np.random.Generator) -> None:
    """Lay so many small plates of one kind beside one another that they are one object, a crowd."""
    digit = int(rng.choice(list(KINDS)))
    height, width = scene.owner.shape
    middle = rng.uniform(25, width - 25), rng.uniform(20, height - 20)
    covered = np.zeros((height, width), dtype=bool)
    for _ in range(int(rng.integers(9, 16))):
        x, y = middle[0] + rng.uniform(-22, 22), middle[1] + rng.uniform(-16, 16)
        alpha = _drawn(KINDS[digit].corners, 12.0, 0.0, x, y, (height, width))
        ink = material.digits[int(rng.choice(material.instances(digit)))]
        _paint_plate(scene, digit, ink, _Place(x, y, 0.0, alpha), 12.0, rng)
        covered |= alpha > 0.5
    scene.lay(covered, Plate(KINDS[digit].names[list(LIGHTS).index(scene.light)], digit, crowd=True))


def _lay_clutter(scene: Playground, material: Material, rng: np.random.Generator, settings: PlaygroundSettings) -> None:
    """Lay a scrap of photograph, or a plate without a digit, somewhere; leave it out where it hides too much."""
    height, width = scene.owner.shape
    if rng.random() < 0.5:
        size = [int(side) for side in rng.integers(8, 22, 2)]
        photograph = material.photographs[rng.integers(len(material.photographs))]
        scrap = Image.fromarray(square_crop(photograph, 24, 96, rng)).resize((size[1], size[0]))
        top, left = (int(rng.integers(side - length + 1)) for side, length in zip((height, width), size, strict=True))
        cover = np.zeros((height, width), dtype=bool)
        cover[top : top + size[0], left : left + size[1]] = True
        if not scene.hides_too_much(cover, settings.least_visible):
            scene.pixels[cover] = np.asarray(scrap, dtype=np.float32).reshape(-1, 3)
            scene.lay(cover)
        return
    digit = int(rng.choice(list(KINDS)))
    diameter = rng.uniform(settings.smallest, 0.6 * settings.largest)
    place = _free_place(scene, KINDS[digit].corners, diameter, rng, settings)
    if place is not None:
        grey = np.full(3, rng.uniform(60, 180), np.float32)
        ink = material.digits[rng.integers(len(material.digits))].copy()
        ink[1:-1, 1:-1] = rng.permutation(ink[1:-1, 1:-1].ravel()).reshape(8, 8)
        scene.blend(grey, place.alpha)
        drawn = draw_digit(ink, max(round(0.62 * diameter), 8), place.degrees)
        scene.blend(np.full(3, 230.0, np.float32), _stamped(drawn, place, scene.owner.shape) * place.alpha)
        scene.lay(place.alpha > 0.5)
