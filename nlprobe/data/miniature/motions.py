"""Films for the miniature Kinetics: handwritten digits that move over a photograph, and a camera that drifts.

A film's class is the motion that its digits share: they move left, right, up or down, turn one way or the other, grow
or shrink. No single frame tells it. The scene is a torus, on which a digit that leaves at one side comes in at the
other; places are uniform on it, angles uniform on the circle, and the logarithms of sizes uniform on their range, on
which a digit that has outgrown it begins anew. A uniform motion round a circle leaves what is uniform on it uniform: so
in every frame of every class digits, places, angles and sizes have one and the same joint distribution. What differs
between classes is the order of frames alone, and played backwards each film is one of another class.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from nlprobe.data.miniature.scenes import Material, square_crop

MOTIONS = {
    "growing": (0.0, 0.0, 0.0, 1.0),
    "moving down": (0.0, 1.0, 0.0, 0.0),
    "moving left": (-1.0, 0.0, 0.0, 0.0),
    "moving right": (1.0, 0.0, 0.0, 0.0),
    "moving up": (0.0, -1.0, 0.0, 0.0),
    "shrinking": (0.0, 0.0, 0.0, -1.0),
    "turning clockwise": (0.0, 0.0, 1.0, 0.0),
    "turning counterclockwise": (0.0, 0.0, -1.0, 0.0),
}
"""Directions across, down, of the angle (clockwise) and of the size, by class."""

_SHARPER = 4  # digits are enlarged once by so much, smoothly, and sampled linearly after


@dataclass(frozen=True)
class FilmSettings:
    """What films look like; lengths are in pixels, rates by frame, and ranges are drawn from uniformly for each digit.

    Attributes:
        size: Sides of a frame.
        fewest, most: Frames in a film.
        digits: How many digits there are.
        smallest, largest: Width of a digit's eight pixels.
        speed: Of a moving digit.
        turn: Degrees of a turning digit.
        cycle: Frames in which a growing or shrinking digit goes through the whole range of sizes.
        drift: Largest speed of the camera, which moves everything.
        clutter: Scraps of photograph at most, that lie still in the scene.
    """

    size: int = 64
    fewest: int = 32
    most: int = 40
    digits: tuple[int, int] = (1, 2)
    smallest: float = 16.0
    largest: float = 34.0
    speed: tuple[float, float] = (1.5, 2.5)
    turn: tuple[float, float] = (10.0, 15.0)
    cycle: tuple[float, float] = (20.0, 28.0)
    drift: float = 0.3
    clutter: int = 1


@dataclass(frozen=True)
class Film:
    """The frames of a film, and what moves in it: by digit its number in the material, and its state in each frame.

    The states are (digits, frames, 4): across, down, degrees clockwise, width.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    digits: tuple[int, ...]
    states: Float[np.ndarray, "n t 4"]

    def describe(self) -> list[dict[str, Any]]:
        """The digits with the states in which they begin."""
        names = ("x", "y", "degrees", "width")
        return [
            {"digit": digit, **{name: round(float(value), 2) for name, value in zip(names, states[0], strict=True)}}
            for digit, states in zip(self.digits, self.states, strict=True)
        ]


def compose_film(material: Material, motion: str, rng: np.random.Generator, settings: FilmSettings) -> Film:
    """Draw a film whose digits move so.

    Args:
        material: Where the digits and photographs come from.
        motion: One of `MOTIONS`.
        rng: Draws everything; which numbers it draws does not hang on the motion.
        settings: What films look like.
    """
    count = int(rng.integers(settings.fewest, settings.most + 1))
    drift = settings.drift * math.sqrt(rng.random()) * _direction(rng)
    frames = _backgrounds(material, count, drift, rng, settings)
    for _ in range(rng.integers(settings.clutter + 1)):
        _lay_clutter(frames, material, drift, rng, settings)
    number = int(rng.integers(settings.digits[0], settings.digits[1] + 1))
    digits = tuple(int(drawn) for drawn in rng.choice(len(material.digits), number, replace=False))
    states = np.stack([_states(motion, count, drift, rng, settings) for _ in digits])
    for digit, course in zip(digits, states, strict=True):
        colour = _bright_colour(rng)
        # Frame by frame, which stays in the processor's cache.
        for frame, alpha in zip(frames, _drawn(material.digits[digit], course, settings.size), strict=True):
            frame += alpha[..., None] * (colour - frame)
    return Film(np.rint(frames, out=frames).astype(np.uint8), digits, states)


def _direction(rng: np.random.Generator) -> Float[np.ndarray, "2"]:
    angle = rng.uniform(0, 2 * math.pi)
    return np.array([math.cos(angle), math.sin(angle)])


def _states(
    motion: str, count: int, drift: np.ndarray, rng: np.random.Generator, settings: FilmSettings
) -> Float[np.ndarray, "t 4"]:
    """Place, angle and width of a digit in each frame."""
    begin = rng.random(4)
    rates = np.array([rng.uniform(*each) for each in (settings.speed, settings.turn, settings.cycle)])
    across, down, turning, growing = MOTIONS[motion]
    time = np.arange(count)
    places = begin[:2] * settings.size + np.outer(time, rates[0] * np.array([across, down]) + drift)
    degrees = 360 * begin[2] + time * turning * rates[1]
    share = (begin[3] + time * growing / rates[2]) % 1
    widths = settings.smallest * (settings.largest / settings.smallest) ** share
    return np.column_stack([places % settings.size, degrees % 360, widths])


def _drawn(
    digit: Float[np.ndarray, "10 10"], states: Float[np.ndarray, "t 4"], size: int
) -> Float[np.ndarray, "t size size"]:
    """Opacity of a digit in each frame; what leaves the frame comes in at the other side."""
    x, y, degrees, width = (torch.from_numpy(column.astype(np.float32))[:, None, None] for column in states.T)
    centres = torch.arange(size) + 0.5
    # From the digit's centre, on the shorter way round the torus.
    across = (centres[None, None, :] - x + size / 2) % size - size / 2
    down = (centres[None, :, None] - y + size / 2) % size - size / 2
    cosine, sine = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    # The digit's 10x10 pixels reach from -1 to 1; its inner eight are `width` wide.
    scale = 8 / width / 5
    grid = torch.stack([cosine * across + sine * down, cosine * down - sine * across], -1) * scale[..., None]
    sharp = functional.interpolate(_tensor(digit), scale_factor=_SHARPER, mode="bicubic", align_corners=False)
    drawn = functional.grid_sample(sharp.expand(len(states), -1, -1, -1), grid, align_corners=False)[:, 0]
    return (1.6 * drawn - 0.3).clamp(0, 1).numpy()


def _backgrounds(
    material: Material, count: int, drift: np.ndarray, rng: np.random.Generator, settings: FilmSettings
) -> Float[np.ndarray, "t size size 3"]:
    """What a drifting camera sees of a photograph, darkened and tinted, in each frame."""
    margin = math.ceil(settings.drift * settings.most) + 1
    side = settings.size + 2 * margin
    photograph = material.photographs[rng.integers(len(material.photographs))]
    crop = square_crop(photograph, side, min(photograph.shape[:2]), rng)
    pixels = np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)
    pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    tint = rng.uniform(0.25, 0.5) * rng.uniform(0.7, 1.3, 3)
    return _shifted(np.minimum(pixels * tint, 255).astype(np.float32), count, -drift, margin, settings.size)


def _shifted(pixels: np.ndarray, count: int, rate: np.ndarray, margin: int, size: int) -> np.ndarray:
    """Windows of a picture that move, in the middle of the film in its middle."""
    offsets = np.outer(np.arange(count) - (count - 1) / 2, rate) + margin
    whole = np.floor(offsets).astype(int)
    windows = np.empty((count, size, size, 3), dtype=np.float32)
    for window, (left, top), (x, y) in zip(windows, whole.tolist(), (offsets - whole).tolist(), strict=True):
        part = pixels[top : top + size + 1, left : left + size + 1]
        rows = part[:-1] + y * (part[1:] - part[:-1])
        window[:] = rows[:, :-1] + x * (rows[:, 1:] - rows[:, :-1])
    return windows


def _lay_clutter(
    frames: np.ndarray, material: Material, drift: np.ndarray, rng: np.random.Generator, settings: FilmSettings
) -> None:
    """Lay a scrap of photograph somewhere on the torus, where it drifts with the scene."""
    height, width = (int(side) for side in rng.integers(settings.size // 8, settings.size // 4, 2))
    photograph = material.photographs[rng.integers(len(material.photographs))]
    scrap = Image.fromarray(square_crop(photograph, 24, 96, rng)).resize((width, height), Image.Resampling.BILINEAR)
    colour = 0.6 * np.asarray(scrap, dtype=np.float32)
    begin = settings.size * rng.random(2)
    for time, frame in enumerate(frames):
        left, top = np.floor(begin + time * drift).astype(int)
        rows, columns = (top + np.arange(height)) % settings.size, (left + np.arange(width)) % settings.size
        frame[np.ix_(rows, columns)] = colour


def _bright_colour(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """A random colour in which one channel at least is bright."""
    colour = rng.uniform(60, 255, 3)
    colour[rng.integers(3)] = rng.uniform(200, 255)
    return colour.astype(np.float32)


def _tensor(digit: np.ndarray) -> Tensor:
    return torch.from_numpy(digit.astype(np.float32))[None, None]
