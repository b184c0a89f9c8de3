"""Outlines of objects as COCO writes them: polygons, and run lengths down the columns, plain or packed into a string.

pycocotools draws them. What it would not survive (numbers that are none, runs that do not fill the picture) is found
here before it gets to see it.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from nlprobe.errors import MissingExtraError

Outline = Sequence[Sequence[int | float]] | Mapping[str, Any]
"""Polygons [[x, y, x, y, …], …], or {"size": [height, width], "counts": runs}."""

FARTHEST = 1_000_000.0
"""A corner farther away than so many pixels is a mistake; pycocotools would walk all the way there."""


def pycocotools_masks() -> Any:
    """The module `pycocotools.mask`.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingExtraError("pycocotools", "coco", "reading and scoring the masks of COCO") from error
    return mask


def outline_fault(outline: Any) -> str:
    """What is wrong with an outline that was read from JSON, in words that go behind "its outline"; "" if nothing.

    A polygon of one or two corners encloses nothing and is no fault beside others. Cost: O(numbers in the outline).
    """
    if isinstance(outline, Mapping):
        return _fault_of_runs(outline)
    if not isinstance(outline, list) or not outline:
        return "is neither a list of polygons nor run lengths"
    faults = [_fault_of_polygon(polygon) for polygon in outline]
    if any(faults):
        return next(fault for fault in faults if fault)
    return "" if _enclosing(outline) else "has no polygon of three corners or more"


def outline_size(outline: Outline) -> tuple[int, int] | None:
    """Height and width that the outline itself tells; polygons tell none."""
    return (outline["size"][0], outline["size"][1]) if isinstance(outline, Mapping) else None


def packed(outline: Outline, size: tuple[int, int]) -> dict[str, Any]:
    """A faultless outline as pycocotools takes it: {"size": [height, width], "counts": bytes}."""
    masks = pycocotools_masks()
    if not isinstance(outline, Mapping):
        return dict(masks.merge(masks.frPyObjects(_enclosing(outline), *size)))
    if isinstance(outline["counts"], list):
        return dict(masks.frPyObjects(outline, *size))
    counts = outline["counts"]
    return {"size": list(size), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def filled(outline: Outline, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels inside of a faultless outline, in a picture of that height and width."""
    masks, runs = pycocotools_masks(), packed(outline, size)
    with warnings.catch_warnings():
        # pycocotools hands NumPy an array in a way that NumPy 2 has deprecated.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        drawn: UInt8[np.ndarray, "h w"] = masks.decode(runs)
    return drawn.astype(bool)


def unpack_runs(text: str) -> Int64[np.ndarray, " n"]:
    """The run lengths in a packed string: numbers of five bits a character.

    A character is 48 + five bits + 32 if the number goes on, low bits first; the last one's highest bit is the sign.
    From the fourth number on each is the difference to the one before the last.

    Raises:
        ValueError: it is no such string.
    """
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if len(codes) == 0:
        return np.zeros(0, np.int64)
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("no packed run lengths")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 12:
        raise ValueError("a run length of more than 60 bits")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * places), starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def _fault_of_runs(outline: Mapping[str, Any]) -> str:
    size, counts = outline.get("size"), outline.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        return "has run lengths without a `size` of two positive numbers"
    try:
        runs = unpack_runs(counts) if isinstance(counts, str) else _plain_runs(counts)
    except (ValueError, TypeError, OverflowError, UnicodeEncodeError):
        return "has `counts` that are no run lengths"
    if len(runs) and runs.min() < 0:
        return "has negative run lengths"
    if runs.sum() != size[0] * size[1]:
        return f"has run lengths of {runs.sum()} pixels in all, in a picture of {size[1]}x{size[0]}"
    return ""


def _plain_runs(counts: Any) -> Int64[np.ndarray, " n"]:
    if not isinstance(counts, list) or not all(type(run) is int for run in counts):
        raise TypeError("no list of whole numbers")
    return np.array(counts, dtype=np.int64)


def _enclosing(polygons: Sequence[Sequence[int | float]]) -> list[Sequence[int | float]]:
    """Those of three corners or more; pycocotools would take a list of four numbers for a box."""
    return [polygon for polygon in polygons if len(polygon) >= 6]


def _fault_of_polygon(polygon: Any) -> str:
    if not isinstance(polygon, list) or not polygon or len(polygon) % 2:
        return "has a polygon that is no list of corners"
    try:
        farthest = max(max(polygon), -min(polygon))
        finite = math.isfinite(sum(polygon))
    except TypeError:
        return "has a polygon with corners that are no numbers"
    if not finite or farthest > FARTHEST:
        return "has a polygon with a corner that lies nowhere near the picture"
    return ""
