"""A part of a data set, for a quick try."""

from typing import Any

from PIL import Image

from nlprobe.data.dataset import ImageDataset


class Part(ImageDataset):
    """`count` images of a data set, spread evenly over it: its first ones would all be of the first class.

    Args:
        whole: The data set.
        count: How many images; all where it holds fewer, or for None.
    """

    def __init__(self, whole: ImageDataset, count: int | None) -> None:
        self.whole = whole
        self.kind, self.root, self.classes = whole.kind, whole.root, whole.classes
        taken = len(whole) if count is None else min(count, len(whole))
        self._indices = [position * len(whole) // taken for position in range(taken)]
        self.ids = [whole.ids[index] for index in self._indices]
        self.labels = None if whole.labels is None else [whole.labels[index] for index in self._indices]

    def picture(self, index: int) -> Image.Image:
        """The picture in RGB."""
        return self.whole.picture(self._indices[index])

    def label(self, index: int, picture: Image.Image) -> Any:
        """What the whole data set tells of it."""
        return self.whole.label(self._indices[index], picture)

    def size(self, index: int) -> int:
        """As in the whole data set."""
        return self.whole.size(self._indices[index])
