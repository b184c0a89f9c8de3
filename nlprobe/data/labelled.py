"""Images with a class each, for what compares classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nlprobe.data.opening import Split, open_dataset
from nlprobe.data.part import Part
from nlprobe.errors import ConfigError, DataError
from nlprobe.suggestions import did_you_mean


@dataclass(frozen=True)
class LabelledImages:
    """A data set, or a part of it, with a class for each image.

    Attributes:
        data: The images.
        classes: Names of all classes, those without images here too.
        labels: Class of each image by its name.
    """

    data: Part
    classes: tuple[str, ...]
    labels: dict[str, int]

    @classmethod
    def open(cls, root: Path | str, split: Split = "val", limit: int | None = None) -> "LabelledImages":
        """The data set at `root`, or `limit` of its images, spread evenly.

        Raises:
            DataError: its images have no class each, or as `open_dataset`.
        """
        data = Part(open_dataset(root, split), limit)
        if data.labels is None or data.classes is None:
            raise DataError(
                f"`{root}` ({data.kind}) has no class for each image, and classes are to be compared",
                "give a data set with a folder for each class, such as ImageNet or its miniature (`nlprobe data`)",
            )
        return cls(data, tuple(data.classes), dict(zip(data.ids, data.labels, strict=True)))

    def chosen(self, names: Sequence[str] = (), count: int = 4) -> list[int]:
        """The classes of these names; without names `count` of those that have images, spread evenly.

        Raises:
            ConfigError: there is no such class, or it has no image here.
        """
        there = sorted(set(self.labels.values()))
        if not names:
            taken = min(count, len(there))
            return [there[at * len(there) // taken] for at in range(taken)]
        found = []
        for name in dict.fromkeys(names):
            if name not in self.classes:
                raise ConfigError(f"`{self.data.root}` has no class `{name}`", did_you_mean(name, self.classes))
            if (label := self.classes.index(name)) not in there:
                raise ConfigError(f"the class `{name}` has no image here", "use another class, or a larger --limit")
            found.append(label)
        return found
