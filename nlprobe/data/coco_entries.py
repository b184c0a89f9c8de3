"""The entries of COCO's instances JSON, one by one: what is kept of each, and what may be wrong with it by itself."""

import json
import math
import zlib
from array import array
from dataclasses import dataclass, field
from typing import Any

from nlprobe.data.json_entries import Entry, as_written
from nlprobe.data.outlines import outline_fault, outline_size

NO_ID = -1
MISSING = "is missing"

_NUMBERS = frozenset((int, float))


@dataclass(frozen=True)
class Fault:
    """Something in the file that cannot be used as it is.

    Attributes:
        thing: What it is: "annotation 17", "picture 4".
        picture: Name of the picture that it belongs to; "" where that is not known.
        reason: What is wrong, in the same words for all that have the same wrong with them.
        detail: The numbers, where they tell more.
        kept: Whether it is used nevertheless.
    """

    thing: str
    picture: str
    reason: str
    detail: str = ""
    kept: bool = False

    def __str__(self) -> str:
        place = f" of `{self.picture}`" if self.picture else ""
        return f"{self.thing}{place}: {self.reason}{f' ({self.detail})' if self.detail else ''}"


@dataclass
class Pictures:
    """What is kept of the list of pictures."""

    ids: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _taken: set[int | str] = field(default_factory=set)

    def add(self, entry: Entry, text: str) -> None:
        """Keep a picture, or say what is wrong with it."""
        picture = entry.value if isinstance(entry.value, dict) else {}
        number, name = picture.get("id"), picture.get("file_name")
        shape = (picture.get("height"), picture.get("width"))
        if type(number) is not int:
            self.faults.append(Fault(f"entry {entry.number} of the pictures", "", "no whole number as `id`"))
        elif not isinstance(name, str) or not name:
            self.faults.append(Fault(f"picture {number}", "", "no `file_name`"))
        elif not all(type(side) is int and side > 0 for side in shape):
            self.faults.append(Fault(f"picture {number}", as_written(name), "no `height` and `width`"))
        elif number in self._taken or name in self._taken:
            self.faults.append(Fault(f"picture {number}", as_written(name), "id or file that another one has, too"))
        else:
            self._taken |= {number, name}
            self.ids.append(number)
            self.names.append(as_written(name))
            self.shapes.append(shape)  # type: ignore[arg-type]  # both are whole numbers

    def refusal(self) -> str:
        """Why one cannot go on with these; "" if one can."""
        if self.ids:
            return ""
        return f"lists no picture that can be used: {self.faults[0]}" if self.faults else "lists no pictures"


@dataclass
class Categories:
    """Names of the classes by their ids."""

    names: dict[int, str] = field(default_factory=dict)
    _fault: str = ""

    def add(self, entry: Entry, text: str) -> None:
        """Keep a category; one that cannot be understood leaves nothing to go on with."""
        category = entry.value if isinstance(entry.value, dict) else {}
        number, name = category.get("id"), category.get("name")
        if type(number) is not int or not isinstance(name, str):
            self._fault = f"has a category without a whole number as `id` and a `name`: {json.dumps(entry.value)[:80]}"
        elif number in self.names:
            self._fault = f"has two categories with the id {number}"
        else:
            self.names[number] = as_written(name)

    def refusal(self) -> str:
        """Why one cannot go on with these; "" if one can."""
        return self._fault or ("" if self.names else "lists no categories")


@dataclass
class Annotations:
    """What is kept of the annotations, in the order of the file."""

    ids: array = field(default_factory=lambda: array("q"))
    pictures: array = field(default_factory=lambda: array("q"))
    categories: array = field(default_factory=lambda: array("q"))
    boxes: array = field(default_factory=lambda: array("d"))
    crowd: bytearray = field(default_factory=bytearray)
    sizes: array = field(default_factory=lambda: array("q"))
    spans: array = field(default_factory=lambda: array("q"))
    checksums: array = field(default_factory=lambda: array("q"))
    outline_faults: dict[int, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def add(self, entry: Entry, text: str) -> None:
        """Keep an annotation, or say what is wrong with it."""
        one = entry.value
        if fault := _annotation_fault(one):
            known = one.get("id") if isinstance(one, dict) else None
            thing = f"entry {entry.number} of the annotations" if known is None else f"annotation {known}"
            self.faults.append(Fault(thing, "", fault))
            return
        outline = one.get("segmentation")
        fault = outline_fault(outline) if outline else MISSING
        if fault:
            self.outline_faults[len(self.ids)] = fault
        self.ids.append(whole_number(one.get("id"), NO_ID))
        self.pictures.append(one["image_id"])
        self.categories.append(one["category_id"])
        self.boxes.extend(one["bbox"])
        self.crowd.append(bool(one.get("iscrowd")))
        self.sizes.extend((0, 0) if fault else outline_size(outline) or (0, 0))
        self.spans.extend((entry.start, entry.end))
        self.checksums.append(zlib.crc32(text[entry.start : entry.end].encode("latin-1")))


def _annotation_fault(one: Any) -> str:
    """What is wrong with an annotation by itself, its outline left aside."""
    if not isinstance(one, dict):
        return "no object with `image_id`, `category_id` and `bbox`"
    for key in ("image_id", "category_id"):
        if whole_number(one.get(key), None) is None:
            return f"no whole number as `{key}`"
    box = one.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not _NUMBERS.issuperset(map(type, box)):
        return "no `bbox` of four numbers"
    return "" if math.isfinite(sum(box)) else "a `bbox` that is not finite"


def whole_number(value: Any, otherwise: Any) -> Any:
    """The value if it is a whole number of 64 bits."""
    return value if type(value) is int and -(2**63) <= value < 2**63 else otherwise
