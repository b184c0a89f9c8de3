"""What COCO's instances JSON holds and where: numbers in arrays, while the outlines stay in the file.

The file of the 118 287 training pictures has 448 MB, and parsed as a whole it takes some GB. Here each annotation is
parsed, checked, and let go; kept are a few numbers of it and where in the file its text is.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from nlprobe.data.coco_entries import MISSING, NO_ID, Annotations, Categories, Fault, Pictures, whole_number
from nlprobe.data.json_entries import bytes_as_text, entries
from nlprobe.errors import DataError

_BEYOND = 1.0  # pixels that a box may lie beyond its picture's edge before it is worth a word: COCO rounds


@dataclass(frozen=True)
class CocoIndex:
    """The pictures by their ids, and the annotations picture by picture.

    Attributes:
        path: The JSON.
        image_ids: Number of each picture, rising.
        names: File of each picture.
        shapes: Height and width of each.
        category_ids: The JSON's number of each class, rising.
        classes: Name of each class.
        first: The annotations of picture i are number first[i] to first[i + 1] - 1.
        annotation_ids: The JSON's number of each annotation, -1 where it has none.
        boxes: Left, top, width, height, as they are written.
        labels: Class of each annotation.
        crowd: Whether it is an area full of objects.
        outlined: Whether it has an outline that can be drawn.
        learnt: Whether a network can learn from it: its box has an area within the picture, and if others of the file
            have outlines, so has it.
        spans: Where its text begins and ends, in bytes.
        checksums: A number for each picture that changes with its annotations.
        faults: What is wrong. Annotations whose picture, class or box is not known are in none of the arrays.
    """

    path: Path
    image_ids: Int64[np.ndarray, " n"]
    names: list[str]
    shapes: Int64[np.ndarray, "n 2"]
    category_ids: list[int]
    classes: list[str]
    first: Int64[np.ndarray, " n_plus_1"]
    annotation_ids: Int64[np.ndarray, " m"]
    boxes: Float[np.ndarray, "m 4"]
    labels: Int64[np.ndarray, " m"]
    crowd: Bool[np.ndarray, " m"]
    outlined: Bool[np.ndarray, " m"]
    learnt: Bool[np.ndarray, " m"]
    spans: Int64[np.ndarray, "m 2"]
    checksums: Int64[np.ndarray, " n"]
    faults: tuple[Fault, ...]

    def of(self, picture: int) -> slice:
        """The annotations of a picture."""
        return slice(int(self.first[picture]), int(self.first[picture + 1]))

    def read(self, chosen: Sequence[int]) -> list[dict[str, Any]]:
        """The annotations of these numbers, with all that the file says of them.

        Raises:
            DataError: the file is gone, or was changed since the index was made.
        """
        found = []
        try:
            with self.path.open("rb") as file:
                for number in chosen:
                    start, end = self.spans[number].tolist()
                    file.seek(start)
                    one = json.loads(file.read(end - start))
                    if whole_number(one.get("id"), NO_ID) != self.annotation_ids[number]:
                        raise ValueError("another annotation stands there")
                    found.append(one)
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"`{self.path}` was changed while it was in use: {error}", "start again") from error
        return found


def read_index(path: Path) -> CocoIndex:
    """Read COCO's instances JSON once, from beginning to end: O(its length) time, some 100 bytes an annotation.

    Raises:
        DataError: the file is missing, empty, no JSON, or has no pictures or categories.
    """
    text = bytes_as_text(path)
    pictures, annotations, categories = Pictures(), Annotations(), Categories()
    takers = {"images": pictures.add, "annotations": annotations.add, "categories": categories.add}
    try:
        for entry in entries(text, takers):
            takers[entry.key](entry, text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"`{path}` is no whole JSON: {error.msg} at byte {error.pos} of {len(text)}",
            "unpack the data set's annotations archive there once more",
        ) from error
    except RecursionError as error:
        raise DataError(f"`{path}` is nested too deeply for COCO's JSON", "give its instances JSON") from error
    if fault := pictures.refusal() or categories.refusal():
        raise DataError(f"`{path}` {fault}", "give COCO's instances JSON, with `images`, `annotations`, `categories`")
    return _assembled(path, pictures, annotations, categories)


@dataclass(frozen=True)
class _Placed:
    """The annotations that belong to a picture and a category of the lists, picture by picture.

    Attributes:
        rows: Their numbers in the order of the file.
        ids: The file's own numbers.
        pictures: Place of each one's picture.
        names: Files of the pictures.
        shapes: Height and width of each one's picture.
        boxes: Left, top, width, height.
    """

    rows: Int64[np.ndarray, " m"]
    ids: Int64[np.ndarray, " m"]
    pictures: Int64[np.ndarray, " m"]
    names: list[str]
    shapes: Int64[np.ndarray, "m 2"]
    boxes: Float[np.ndarray, "m 4"]

    def fault(self, place: int, reason: str, detail: str = "", *, kept: bool = False) -> Fault:
        """Something that is wrong with one of them."""
        thing = f"annotation {self.ids[place]}" if self.ids[place] != NO_ID else "an annotation without an id"
        return Fault(thing, self.names[self.pictures[place]], reason, detail, kept)


def _assembled(path: Path, pictures: Pictures, annotations: Annotations, categories: Categories) -> CocoIndex:
    """Bring the three lists together."""
    order = np.argsort(np.array(pictures.ids, dtype=np.int64))
    image_ids = np.array(pictures.ids, dtype=np.int64)[order]
    names = [pictures.names[number] for number in order]
    shapes = np.array(pictures.shapes, dtype=np.int64)[order]
    category_ids = sorted(categories.names)
    of_picture, owned = _places(np.array(annotations.pictures, dtype=np.int64), image_ids)
    labels, classed = _places(np.array(annotations.categories, dtype=np.int64), np.array(category_ids, dtype=np.int64))
    rows = np.flatnonzero(owned & classed)
    rows = rows[np.argsort(of_picture[rows], kind="stable")]
    owners = of_picture[rows]
    boxes = np.array(annotations.boxes, dtype=np.float64).reshape(-1, 4)[rows]
    ids = np.array(annotations.ids, dtype=np.int64)
    placed = _Placed(rows, ids[rows], owners, names, shapes[owners], boxes)
    outlined, outline_faults = _outlined(placed, annotations)
    learnt, box_faults = _within(placed)
    checksums = np.zeros(len(image_ids), dtype=np.int64)
    np.add.at(checksums, owners, np.array(annotations.checksums, dtype=np.int64)[rows])
    homeless = _homeless(annotations, names, of_picture, owned, classed)
    return CocoIndex(
        path=path,
        image_ids=image_ids,
        names=names,
        shapes=shapes,
        category_ids=category_ids,
        classes=[categories.names[number] for number in category_ids],
        first=np.searchsorted(owners, np.arange(len(image_ids) + 1)),
        annotation_ids=placed.ids,
        boxes=boxes,
        labels=labels[rows],
        crowd=np.frombuffer(annotations.crowd, dtype=np.bool_)[rows],
        outlined=outlined,
        learnt=learnt & (outlined | ~outlined.any()),
        spans=np.array(annotations.spans, dtype=np.int64).reshape(-1, 2)[rows],
        checksums=checksums,
        faults=(*pictures.faults, *annotations.faults, *homeless, *_shared_ids(placed), *box_faults, *outline_faults),
    )


def _places(
    wanted: Int64[np.ndarray, " m"], known: Int64[np.ndarray, " n"]
) -> tuple[Int64[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """Where each number stands among the known ones, which rise; and whether it does."""
    places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return places, known[places] == wanted


def _homeless(
    annotations: Annotations,
    names: list[str],
    of_picture: Int64[np.ndarray, " m"],
    owned: Bool[np.ndarray, " m"],
    classed: Bool[np.ndarray, " m"],
) -> list[Fault]:
    """Annotations of pictures or categories that are not in the lists."""
    faults = []
    for row in np.flatnonzero(~(owned & classed)).tolist():
        thing = f"annotation {annotations.ids[row]}" if annotations.ids[row] != NO_ID else "an annotation without an id"
        if owned[row]:
            reason, number = "category that is not in the list", annotations.categories[row]
        else:
            reason, number = "picture that is not in the list", annotations.pictures[row]
        faults.append(Fault(thing, names[of_picture[row]] if owned[row] else "", reason, str(number)))
    return faults


def _shared_ids(placed: _Placed) -> list[Fault]:
    """Annotations whose id an earlier one has: nothing here hangs on it, but other tools lose one of the two."""
    known = np.flatnonzero(placed.ids != NO_ID)
    _, firsts = np.unique(placed.ids[known], return_index=True)
    again = np.delete(known, firsts)
    return [placed.fault(place, "id that another one has, too", kept=True) for place in again.tolist()]


def _within(placed: _Placed) -> tuple[Bool[np.ndarray, " m"], list[Fault]]:
    """Whether each box has an area within its picture."""
    left, top, width, height = placed.boxes.T
    rows, columns = placed.shapes.T
    flat = (width <= 0) | (height <= 0)
    outside = ~flat & ((left + width <= 0) | (top + height <= 0) | (left >= columns) | (top >= rows))
    beyond = np.maximum.reduce([-left, -top, left + width - columns, top + height - rows])
    reaching = ~flat & ~outside & (beyond > _BEYOND)
    faults = []
    for chosen, reason, kept in (
        (flat, "box without area", False),
        (outside, "box outside of its picture", False),
        (reaching, "box that reaches beyond its picture, and is cut off there", True),
    ):
        for place in np.flatnonzero(chosen).tolist():
            box = "x {:g}, y {:g}, width {:g}, height {:g}".format(*placed.boxes[place])
            shape = f" in {columns[place]}x{rows[place]} pixels"
            faults.append(placed.fault(place, reason, box + shape, kept=kept))
    return ~(flat | outside), faults


def _outlined(placed: _Placed, annotations: Annotations) -> tuple[Bool[np.ndarray, " m"], list[Fault]]:
    """Whether each annotation has an outline that can be drawn; where none has, that is no fault."""
    bad = np.zeros(len(annotations.ids), dtype=np.bool_)
    bad[list(annotations.outline_faults)] = True
    sizes = np.array(annotations.sizes, dtype=np.int64).reshape(-1, 2)[placed.rows]
    other = (sizes[:, 0] > 0) & (sizes != placed.shapes).any(1)
    outlined = ~bad[placed.rows] & ~other
    faults = []
    for place in np.flatnonzero(~outlined).tolist():
        if other[place]:
            (height, width), (rows, columns) = sizes[place], placed.shapes[place]
            detail = f"{width}x{height}, the picture is {columns}x{rows}"
            faults.append(placed.fault(place, "mask of another size than its picture", detail))
        elif (fault := annotations.outline_faults[int(placed.rows[place])]) != MISSING:
            faults.append(placed.fault(place, "outline that cannot be drawn", f"it {fault}"))
        elif outlined.any():
            faults.append(placed.fault(place, "no outline, though others have one"))
    return outlined, faults
