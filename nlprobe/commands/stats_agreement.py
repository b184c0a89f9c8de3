"""`nlprobe stats --agreement`: which sites of two networks are compared, and what comes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch

from nlprobe.commands.inputs import Feed
from nlprobe.commands.sources import Named
from nlprobe.errors import ConfigError
from nlprobe.measuring import Measured, forward
from nlprobe.probe import MeanMaps, probe
from nlprobe.probe.adapters import Adapter
from nlprobe.probe.mean_maps import MapGrids
from nlprobe.stats.agreement import Grid, SiteAgreement, site_agreement
from nlprobe.stats.records import AVERAGED_HEAD, COMPOSED_HEAD
from nlprobe.suggestions import did_you_mean

Grids = Mapping[str, tuple[Grid, Grid]]
"""By site, the grids of its queries and of its keys."""


@dataclass(frozen=True)
class Pair:
    """Two sites that are compared: of the first network, and of another one; and why these two, in words."""

    first: str
    second: str
    matched: str


class Comparison:
    """The first network against each of the others, at pairs of sites.

    Args:
        pairs: By the label of another network, the pairs of sites.
        first: The label of the first network.
    """

    def __init__(self, first: str, pairs: Mapping[str, Sequence[Pair]]) -> None:
        self.first, self.pairs = first, pairs
        own = dict.fromkeys(pair.first for each in pairs.values() for pair in each)
        self.readers = {first: MeanMaps(own)}
        self.readers |= {label: MeanMaps([pair.second for pair in each]) for label, each in pairs.items()}

    def results(self, seed: int) -> list[SiteAgreement]:
        """What the readers have found."""
        return [
            site_agreement(
                (self.first, label),
                (pair.first, pair.second),
                pair.matched,
                (self.readers[self.first].maps[pair.first], self.readers[label].maps[pair.second]),
                seed,
            )
            for label, pairs in self.pairs.items()
            for pair in pairs
        ]


def compare(
    networks: Sequence[Named],
    feeds: Mapping[str, Feed],
    given: Sequence[str],
    sites: Sequence[str],
    device: torch.device,
    adapters: Sequence[Adapter],
) -> Comparison:
    """Which sites are compared: those of `--match`, else as `matched` finds them.

    Args:
        networks: Two or more.
        feeds: What each is shown, by its label.
        given: `SITE` or `SITE=SITE`, of the first network and of the others; where there are none, sites are matched.
        sites: The sites that are measured, by name or glob; all of them where there are none.
        device: Where to compute.
        adapters: Tried before the library's own.

    Raises:
        ConfigError: fewer than two networks, no such site, or none that matches.
    """
    if len(networks) < 2:
        raise ConfigError("--agreement compares networks, and there is one", "give two or more --ckpt or --model")
    grids = {one.label: _grids(one, feeds[one.label], sites, device, adapters) for one in networks}
    first, *others = (one.label for one in networks)
    asked = [_parsed(text) for text in given]
    pairs = {}
    for label in others:
        pairs[label] = [_known(pair, first, label, grids) for pair in asked] or matched(grids[first], grids[label])
        if not pairs[label]:
            raise ConfigError(
                f"no site of `{label}` has maps of the size of one of `{first}`: {_listed(grids[label])} against "
                f"{_listed(grids[first])}",
                "name two sites with --match SITE=SITE",
            )
    return Comparison(first, pairs)


def matched(first: Grids, second: Grids) -> list[Pair]:
    """For each site of one network a site of another whose queries lie on the same grid, each taken at most once.

    The site of the same name; else one in the same residual block (the module before the colon); else the last one that
    nobody has taken, in the order of the network.

    Args:
        first: The grids of the one network's sites, for one picture.
        second: Those of the other's, for the same picture.
    """
    pairs: dict[str, Pair] = {}
    reasons = {
        "the same name": lambda own, other: own == other,
        "the same residual block": lambda own, other: own.partition(":")[0] == other.partition(":")[0],
        "maps of the same size, the last such site": lambda own, other: True,
    }
    for reason, fits in reasons.items():
        for own in (site for site in first if site not in pairs):
            taken = {pair.second for pair in pairs.values()}
            left = [other for other in second if other not in taken and first[own][0] == second[other][0]]
            if chosen := [other for other in left if fits(own, other)]:
                pairs[own] = Pair(own, chosen[-1], reason)
    return [pairs[site] for site in first if site in pairs]


def with_agreement(measured: Sequence[Measured], found: Sequence[SiteAgreement]) -> list[Measured]:
    """The networks with `agreement` and `agreement_shuffled` in the second's records of the maps that were compared.

    These are the records of `att` over the valid positions, of the head-averaged or composed map where there is one.

    Args:
        measured: The networks and their null models.
        found: What was compared.
    """
    frames = {one.label: one.frame.copy() for one in measured if one.kind == "trained"}
    for one in found:
        frame = frames[one.second]
        rows = _rows_of_maps(frame, one.sites[1])
        for column, name in (("agreement", "agreement"), ("agreement_shuffled", "shuffled")):
            frame.loc[rows, column] = frame.loc[rows, "image"].map(one.by_image[name])
    return [replace(one, frame=frames[one.label]) if one.kind == "trained" else one for one in measured]


def _rows_of_maps(frame: pd.DataFrame, site: str) -> pd.Index:
    maps = frame[(frame["site"] == site) & (frame["quantity"] == "att")]
    head = next((head for head in (AVERAGED_HEAD, COMPOSED_HEAD) if (maps["head"] == head).any()), "0")
    maps = maps[maps["head"] == head]
    padded = maps.loc[maps["positions"] == "valid", "image"]
    return maps.index[(maps["positions"] == "valid") | ((maps["positions"] == "all") & ~maps["image"].isin(padded))]


def _grids(
    one: Named, feed: Feed, sites: Sequence[str], device: torch.device, adapters: Sequence[Adapter]
) -> dict[str, tuple[Grid, Grid]]:
    """The sites of a network that have maps over whole pictures, with their grids for one picture of noise."""
    seen = MapGrids()
    chosen = list(sites) or None
    network = one.model.to(device).eval()
    with probe(network, chosen, quantities=("input",), adapters=adapters, readers=[seen]), torch.no_grad():
        forward(network, feed.example(), device)
    if not seen.grids:
        raise ConfigError(f"no site of `{one.label}` has maps over whole pictures", "leave --agreement out")
    return seen.grids


def _parsed(text: str) -> Pair:
    first, _, second = text.partition("=")
    if not first or text.count("=") > 1 or (text.count("=") and not second):
        raise ConfigError(f"`--match {text}` names no two sites", "write `--match SITE`, or `--match SITE=SITE`")
    return Pair(first, second or first, "named by --match")


def _known(pair: Pair, first: str, second: str, grids: Mapping[str, Grids]) -> Pair:
    for label, site in ((first, pair.first), (second, pair.second)):
        if site not in grids[label]:
            hint = did_you_mean(site, grids[label], otherwise=f"its sites are {_listed(grids[label])}")
            raise ConfigError(f"`{label}` has no site `{site}` with maps over whole pictures", hint)
    return pair


def _listed(grids: Grids) -> str:
    return ", ".join(f"`{site}` ({query[0]}x{query[1]})" for site, (query, _) in grids.items())
