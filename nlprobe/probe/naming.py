"""The images that a caller names: their ids and views, and how far each picture reaches within its padded tensor."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool
from torch import Tensor

from nlprobe.errors import ConfigError

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class Objects:
    """What a picture shows.

    Attributes:
        masks: Where each object is, in pixels of the picture at any resolution; the picture without padding.
        classes: What each is.
        sizes: Whether it is small, medium or large, or another such group.
    """

    masks: Bool[Tensor, "k h w"]
    classes: tuple[str, ...]
    sizes: tuple[str, ...]


class _Named(NamedTuple):
    name: str
    view: int
    size: Size | None
    objects: Objects | None


@dataclass(frozen=True)
class Upcoming:
    """The images of the forward call under way, in the order of its batch.

    Attributes:
        ids: Their names.
        views: The crop or clip that each is.
        sizes: Of each picture, which fills its tensor from the top left; None where nobody says that there is padding.
        canvas: Of the padded tensors, in the pixels that `sizes` are in; None for that of the model's input.
        objects: What each picture shows; None where nobody says.
    """

    ids: list[str]
    views: list[int]
    sizes: list[Size] | None = None
    canvas: Size | None = None
    objects: list[Objects] | None = None


class Naming:
    """Hands out the names of the images in the order in which forward calls ask for them; numbers without names."""

    def __init__(self) -> None:
        self.numbered = 0
        self._named: list[_Named] | None = None
        self._canvas: Size | None = None

    @contextmanager
    def images(
        self,
        ids: Sequence[object],
        views: Sequence[int] | None,
        sizes: Sequence[Size] | None,
        canvas: Size | None,
        objects: Sequence[Objects] | None,
    ) -> Iterator[None]:
        """Name the images of the forward calls inside the block; see `Probe.images`."""
        given = {"views": views, "sizes": sizes, "objects": objects}
        for what, values in given.items():
            if values is not None and len(values) != len(ids):
                raise ConfigError(
                    f"`images` got {len(ids)} ids and {len(values)} {what}", f"give one of the {what} for each id"
                )
        views = [0] * len(ids) if views is None else views
        pictures = [None] * len(ids) if sizes is None else [(int(height), int(width)) for height, width in sizes]
        shown = [None] * len(ids) if objects is None else objects
        named = zip(map(str, ids), views, pictures, shown, strict=True)
        self._named = [_Named(*one) for one in named]
        self._canvas = canvas
        try:
            yield
            if self._named:
                raise ConfigError(
                    f"`images` named {len(ids)} images, and {len(self._named)} of them never came",
                    "give one id for each image of the batch",
                )
        finally:
            self.close()

    def upcoming(self, count: int) -> Upcoming:
        """The next `count` images, which stay the next ones."""
        if self._named is None:
            return Upcoming([str(number) for number in range(self.numbered, self.numbered + count)], [0] * count)
        named = self._named[:count]
        sizes = [one.size for one in named if one.size is not None]
        objects = [one.objects for one in named if one.objects is not None]
        names, views = [one.name for one in named], [one.view for one in named]
        return Upcoming(names, views, sizes or None, self._canvas, objects or None)

    def take(self, count: int) -> Upcoming:
        """The next `count` images, which then are gone.

        Raises:
            ConfigError: not so many were named.
        """
        if self._named is not None and count > len(self._named):
            raise ConfigError(
                f"a forward call held {count} images, and `images` has {len(self._named)} names left",
                "give one id for each image of the batch",
            )
        found = self.upcoming(count)
        if self._named is None:
            self.numbered += count
        else:
            self._named = self._named[count:]
        return found

    def close(self) -> None:
        """Forget the names."""
        self._named = self._canvas = None
