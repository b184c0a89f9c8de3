"""Which sites a network shows, and how large the attention of each is, found out by one forward call."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nlprobe.measuring import Inputs, forward
from nlprobe.probe import Site, probe
from nlprobe.probe.adapters import Adapter
from nlprobe.stats.records import stands_alone
from nlprobe.stats.summary import at_positions


@dataclass(frozen=True)
class SizedSite:
    """A site with its numbers of queries, keys and heads, channels of its input, and windows in an image.

    The channels are None where the site neither names them nor has an input of one row a query.
    """

    site: Site
    n_queries: int
    n_keys: int
    heads: int
    channels: int | None
    groups: int


def sized_sites(
    model: nn.Module,
    inputs: Inputs,
    sites: Sequence[str] = (),
    device: torch.device | str = "cpu",
    adapters: Sequence[Adapter] = (),
) -> list[SizedSite]:
    """The sites that run for such inputs, in the order of the network.

    Raises:
        ConfigError: the network has no site, or none of that name.
        DataError: the network does not take the inputs.
    """
    chosen = list(sites) or None
    with probe(model.to(device), chosen, quantities=("input", "att"), adapters=adapters) as found, torch.no_grad():
        forward(model, inputs, device)
    frame = at_positions(found.frame())
    sized = []
    for site in found.sites:
        rows = frame[frame["site"] == site.name]
        maps = rows[rows["quantity"] == "att"]
        first = (maps if len(maps) else rows).iloc[0]
        heads = {head for head in maps["head"] if head != "-" and not stands_alone(head)}
        inputs_seen = rows.loc[rows["quantity"] == "input", "dim"]
        channels = int(inputs_seen.iloc[0]) if len(inputs_seen) else None
        channels = said if isinstance(said := site.settings.get("channels"), int) else channels
        n, m, groups = (int(first[column]) for column in ("n_queries", "n_keys", "groups"))
        sized.append(SizedSite(site, n, m, len(heads) or 1, channels, groups))
    return sized
