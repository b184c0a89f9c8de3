"""`nlprobe stats --objects`: what the pictures show, and how much of the attention falls on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nlprobe.commands.inputs import Data, Feed
from nlprobe.data import ImageDataset
from nlprobe.data.coco import Coco
from nlprobe.data.instances import Instances
from nlprobe.data.part import Selection
from nlprobe.errors import ConfigError
from nlprobe.files import write_text
from nlprobe.probe.naming import Objects
from nlprobe.probe.objects import ObjectMasses
from nlprobe.stats.objects import ObjectSummary, size_of, summarise_objects

OBJECT_RECORDS = "object_records.csv"


def shown_objects(data: Data) -> Callable[[Instances], Objects]:
    """How the labels of a data set become the objects of its pictures.

    Raises:
        ConfigError: the data have no boxes or outlines of objects.
    """
    whole = data
    while isinstance(whole, Selection):
        whole = whole.whole
    if not isinstance(whole, Coco) or not whole.has_instances or whole.classes is None:
        kind = f"{whole.kind} in `{whole.root}`" if isinstance(whole, ImageDataset) else "the data"
        raise ConfigError(
            f"--objects needs boxes or outlines of objects, and {kind} have none",
            "give a folder in COCO's layout with its instances JSON, or leave --objects out",
        )
    return partial(objects_of, classes=whole.classes)


def objects_of(instances: Instances, classes: Sequence[str]) -> Objects:
    """The single objects of a picture in its original pixels: their outlines, else their boxes; crowds are left out.

    Args:
        instances: The picture's label.
        classes: Names of the classes.
    """
    single = instances.without_crowds()
    masks = single.masks if single.masks is not None else _filled(single.boxes, single.size)
    areas = masks.flatten(1).sum(1).tolist()
    return Objects(
        masks, tuple(classes[label] for label in single.labels.tolist()), tuple(size_of(area) for area in areas)
    )


def refuse_cropped(feeds: Mapping[str, Feed]) -> None:
    """Make sure that networks see whole pictures, on which objects are where the data say.

    Raises:
        ConfigError: with what is done to them.
    """
    for label, feed in feeds.items():
        if feed.settings.get("crop") != 0:
            raise ConfigError(
                f"--objects needs whole pictures, and `{label}` is shown others: {feed.description}",
                "use networks for detection or segmentation, or leave --objects out",
            )


@dataclass(frozen=True)
class ObjectResults:
    """What was found of each network.

    Attributes:
        lines: A line for each object, with the column `model` in front.
        summaries: By network, site, size and class.
        notes: Sites without a map, in words.
    """

    lines: pd.DataFrame
    summaries: tuple[ObjectSummary, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, readers: Mapping[str, ObjectMasses], seed: int) -> "ObjectResults":
        """From what was read of each network.

        Raises:
            ConfigError: no picture shows an object, or no site has a map.
        """
        frames = {label: reader.frame() for label, reader in readers.items()}
        for label, frame in frames.items():
            if frame.empty:
                reasons = "; ".join(f"`{site}`: {why}" for site, why in readers[label].unmapped.items())
                raise ConfigError(
                    f"`{label}` has no map over objects" + (f" ({reasons})" if reasons else ": no picture shows any"),
                    "leave --objects out, or choose other data or sites",
                )
        lines = pd.concat([frame.assign(model=label) for label, frame in frames.items()], ignore_index=True)
        classes = sorted(set(lines["class"]))
        summaries = [one for label, frame in frames.items() for one in summarise_objects(frame, label, classes, seed)]
        notes = [
            f"{label} {site}: no attention on objects, {reason}"
            for label, reader in readers.items()
            for site, reason in reader.unmapped.items()
        ]
        order = ["model", *(name for name in lines if name != "model")]
        return cls(lines[order], tuple(summaries), tuple(notes))

    def write(self, folder: Path) -> None:
        """Write the lines as `object_records.csv`."""
        write_text(folder / OBJECT_RECORDS, self.lines.to_csv(index=False))


def _filled(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Bool[Tensor, "n h w"]:
    """The pixels whose centres lie in each box."""
    left, top, right, bottom = (edge.view(-1, 1) for edge in boxes.unbind(1))
    rows, columns = (torch.arange(length) + 0.5 for length in size)
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return down.unsqueeze(2) & across.unsqueeze(1)
