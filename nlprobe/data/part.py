"""A part of a data set, for a quick try; or its pictures without what it tells of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from nlprobe.data.dataset import ImageDataset


class Selection(ImageDataset):
    """Some images of a data set.

    Args:
        whole: The data set.
        indices: Their numbers in it, in the order that they get here.
    """

    def __init__(self, whole: ImageDataset, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, list(indices)
        self.kind, self.root, self.classes = whole.kind, whole.root, whole.classes
        self.holds, self.missing = whole.holds, whole.missing
        self.ids = [whole.ids[index] for index in self.indices]
        self.labels = None if whole.labels is None else [whole.labels[index] for index in self.indices]

    @property
    def shapes(self) -> Int64[np.ndarray, "n 2"] | None:
        """As in the whole data set."""
        return None if self.whole.shapes is None else self.whole.shapes[self.indices]

    def notes(self) -> list[str]:
        """Those of the whole data set."""
        return self.whole.notes()

    def picture(self, index: int) -> Any:
        """As in the whole data set."""
        return self.whole.picture(self.indices[index])

    def label(self, index: int, picture: Any) -> Any:
        """What the whole data set tells of it."""
        return self.whole.label(self.indices[index], picture)

    def size(self, index: int) -> int:
        """As in the whole data set."""
        return self.whole.size(self.indices[index])


class Part(Selection):
    """`count` images of a data set, spread evenly over it: its first ones would all be of the first class.

    Args:
        whole: The data set.
        count: How many images; all where it holds fewer, or for None.
    """

    def __init__(self, whole: ImageDataset, count: int | None) -> None:
        taken = len(whole) if count is None else min(count, len(whole))
        super().__init__(whole, [position * len(whole) // taken for position in range(taken)])


class Unlabelled(Selection):
    """The pictures of a data set alone: nothing is read but them, and nothing has to be there but them."""

    def __init__(self, whole: ImageDataset) -> None:
        super().__init__(whole, range(len(whole)))
        self.labels = None

    def label(self, index: int, picture: Any) -> None:
        """Nothing."""
