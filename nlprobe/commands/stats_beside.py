"""What `nlprobe stats` sets beside the distances on request: agreement of networks, attention on objects."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click
import torch

from nlprobe.commands.inputs import Data, Feed
from nlprobe.commands.sources import Named
from nlprobe.commands.stats_agreement import Comparison, compare, with_agreement
from nlprobe.commands.stats_objects import OBJECT_RECORDS, ObjectResults, refuse_cropped, shown_objects
from nlprobe.errors import ConfigError
from nlprobe.measuring import Measured
from nlprobe.probe import Reader
from nlprobe.probe.adapters import Adapter
from nlprobe.probe.objects import ObjectMasses
from nlprobe.results import write_table
from nlprobe.stats.agreement import SiteAgreement
from nlprobe.tables import Table, agreement_table, object_table

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = {
    "agreement": click.option(
        "--agreement",
        is_flag=True,
        help="Also compare the mean maps of the first network with those of each other one on the same images, beside "
        "those of other images and the uniform map.",
    ),
    "match": click.option(
        "--match",
        "match",
        multiple=True,
        metavar="SITE[=SITE]",
        help="Sites of the first network and of the others that --agreement compares; repeatable. By default sites of "
        "equal map size are matched, and the table says which.",
    ),
    "objects": click.option(
        "--objects",
        is_flag=True,
        help="Also measure the attention on objects over their share of the area, by size and class (COCO).",
    ),
}


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        agreement: Compare networks.
        match: At which sites.
        objects: Measure the attention on objects.
    """

    agreement: bool
    match: tuple[str, ...]
    objects: bool


def beside_options(command: Function) -> Function:
    """The flags for what stands beside the distances: the command gets them as one argument `asked`."""

    @functools.wraps(command)
    def with_asked(*arguments: Any, **settings: Any) -> Any:
        asked = Asked(**{name: settings.pop(name) for name in _OPTIONS})
        return command(*arguments, asked=asked, **settings)

    decorated: Any = with_asked
    for option in reversed(_OPTIONS.values()):
        decorated = option(decorated)
    return cast(Function, decorated)


@dataclass(frozen=True)
class Beside:
    """What reads the captures for it.

    Attributes:
        comparison: Reads mean maps; None where networks are not compared.
        objects: Reads the attention on objects, by the label of the network.
    """

    comparison: Comparison | None
    objects: Mapping[str, ObjectMasses]

    @classmethod
    def of(
        cls,
        asked: Asked,
        networks: Sequence[Named],
        feeds: Mapping[str, Feed],
        sites: Sequence[str],
        device: torch.device,
        adapters: Sequence[Adapter],
    ) -> "Beside":
        """The readers for what is asked.

        Args:
            asked: What is asked for.
            networks: The networks.
            feeds: What each is shown, by its label.
            sites: The sites that are measured, by name or glob.
            device: Where to compute.
            adapters: Tried before the library's own.

        Raises:
            ConfigError: it cannot be measured of these networks.
        """
        if asked.match and not asked.agreement:
            raise ConfigError("--match is given without --agreement", "give both, or neither")
        comparison = compare(networks, feeds, asked.match, sites, device, adapters) if asked.agreement else None
        if asked.objects:
            refuse_cropped(feeds)
        return cls(comparison, {one.label: ObjectMasses() for one in networks} if asked.objects else {})

    def readers(self, label: str) -> list[Reader]:
        """What reads the captures of a network."""
        found: list[Reader] = [self.comparison.readers[label]] if self.comparison is not None else []
        return [*found, *([self.objects[label]] if label in self.objects else [])]

    def plan(self) -> list[str]:
        """What will be compared, in lines."""
        if self.comparison is None:
            return []
        return [
            f"would compare {pair.first} of {self.comparison.first} with {pair.second} of {label}: {pair.matched}"
            for label, pairs in self.comparison.pairs.items()
            for pair in pairs
        ]

    def files(self) -> list[str]:
        """What will be written beside the files of the distances."""
        found = ["agreement.*"] if self.comparison is not None else []
        return [*found, *(["objects.*", "object_classes.*", OBJECT_RECORDS] if self.objects else [])]

    def results(self, measured: Sequence[Measured], seed: int) -> "Found":
        """What was found, once everything is read."""
        agreements = self.comparison.results(seed) if self.comparison is not None else []
        objects = ObjectResults.of(self.objects, seed) if self.objects else None
        return Found(tuple(with_agreement(measured, agreements)), tuple(agreements), objects)


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        measured: The networks and their null models, with columns of agreement.
        agreements: Of the first network with each other one.
        objects: The attention on objects; None where nobody asks.
    """

    measured: tuple[Measured, ...]
    agreements: tuple[SiteAgreement, ...]
    objects: ObjectResults | None

    def tables(self) -> dict[str, Table]:
        """Tables beside that of distances, by the name of their files."""
        found = {"agreement": agreement_table(self.agreements)} if self.agreements else {}
        if self.objects is not None:
            found["objects"] = object_table(self.objects.summaries)
            found["object_classes"] = object_table(self.objects.summaries, by_class=True)
        return found

    def payload(self) -> dict[str, object]:
        """What `results.json` says of it."""
        found: dict[str, object] = {}
        if self.agreements:
            found["agreement"] = [one.as_dict() for one in self.agreements]
        if self.objects is not None:
            found["objects"] = [one.as_dict() for one in self.objects.summaries]
        return found

    def notes(self) -> tuple[str, ...]:
        """What could not be measured, in words."""
        return self.objects.notes if self.objects is not None else ()

    def write(self, folder: Path) -> None:
        """Write the tables, and a line for each object."""
        for name, table in self.tables().items():
            write_table(folder, name, table)
        if self.objects is not None:
            self.objects.write(folder)


def objects_shown(asked: Asked, data: Data) -> Callable[[Any], Any] | None:
    """How labels become objects, where somebody asks."""
    return shown_objects(data) if asked.objects else None
