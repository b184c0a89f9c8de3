"""Statistics of softmax attention maps, streamed over blocks of queries: no N×M matrix is ever held."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats.logit_blocks import logits_kernel, require_usable
from nlprobe.stats.logits import Logits
from nlprobe.stats.results import MapStatistics
from nlprobe.stats.softmax_blocks import Found, hides, is_plain
from nlprobe.stats.softmax_direct import direct_statistics
from nlprobe.stats.softmax_shifted import shifted_statistics
from nlprobe.stats.softmax_trust import Trust
from nlprobe.stats.streaming import kernel

SAMPLED_FROM = 1024
"""Queries from which on a look at a few rows, to choose the way, costs less than a way that does not lead there."""

SAMPLE_ROWS = 32

NO_VARIATION = 1e-26
"""mean_i |S_i|·‖c_i‖² in float64 that is nothing but rounding."""


@logits_kernel
def softmax_statistics(
    logits: Logits,
    *,
    precision: Literal["float32", "float64"] = "float32",
    distance_only: bool = False,
    average: bool = False,
) -> tuple[MapStatistics, MapStatistics | None]:
    """Statistics of the rows ω_i = softmax_j(s_ij) of each head, and of the head-averaged map.

    Rows are taken in full, zeros outside the support S_i. A query that sees no key has a zero row: left out, counted.
    The head-averaged map is mean_h ω_i over the heads that see any key; its S_i is the union of theirs.

    O(s·h·N·M·d) time; memory of a few blocks of rows and of a copy of some heads' keys. In float32 the distance's error
    is at most 1e-5·true + 1e-9 and that of the other columns 1e-5 relative: each map is measured in few passes
    (`softmax_direct`), redone by way of residuals (`softmax_shifted`) where these lose digits, and in float64 where
    float32 does, or overflows (`softmax_trust`).

    Args:
        logits: s_ij for s sets of positions and h heads.
        precision: Of the products; float64 input is never narrowed.
        distance_only: Leave entropy, n_eff and shared out (NaN).
        average: Measure the head-averaged map too.

    Returns:
        The statistics of each set and head, (s, h); those of each set's head-averaged map, (s,), or None.

    Raises:
        NlprobeError: queries or keys hold NaN or infinity, bias or given logits NaN or +∞, or the logits overflow.
    """
    (found,) = _measured(logits, precision, distance_only, average, 0)
    return _statistics(found.found), _statistics(found.means) if average else None


@logits_kernel
def softmax_statistics_beside_prefix(
    logits: Logits, prefix: int, *, precision: Literal["float32", "float64"] = "float32", average: bool = False
) -> list[tuple[MapStatistics, MapStatistics | None]]:
    """`softmax_statistics` of all queries, and of those after the first `prefix`, for little more than one of them.

    Args:
        logits: s_ij for s sets of positions and h heads.
        prefix: How many of the first queries are left out the second time; fewer than there are queries.
        precision: As in `softmax_statistics`.
        average: As in `softmax_statistics`.

    Returns:
        What `softmax_statistics` returns, for all queries and for those after the prefix.

    Raises:
        NlprobeError: as in `softmax_statistics`.
    """
    return [
        (_statistics(one.found), _statistics(one.means) if average else None)
        for one in _measured(logits, precision, False, average, prefix)
    ]


@kernel
def softmax_map_statistics(
    query: Float[Tensor, "*batch n d"],
    key: Float[Tensor, "*batch m d"],
    scale: float = 1.0,
    precision: Literal["float32", "float64"] = "float32",
    distance_only: bool = False,
) -> MapStatistics:
    """`softmax_statistics` of the rows softmax_j(scale · q_i·k_j), for any number of batch dimensions.

    Args:
        query: Queries as they enter the product; half precision is widened first.
        key: Keys as they enter the product.
        scale: Factor on the logits.
        precision: Of the products; float64 input is never narrowed.
        distance_only: Leave entropy, n_eff and shared out (NaN).

    Raises:
        NlprobeError: query or key holds NaN or infinity, or the logits overflow.
    """
    batch = query.shape[:-2]
    heads = batch[-1] if batch else 1
    queries, keys = (t.reshape(-1, heads, *t.shape[-2:]) for t in (query, key))
    found, _ = softmax_statistics(Logits(queries, keys, scale), precision=precision, distance_only=distance_only)
    return MapStatistics(**{name: value.reshape(batch) for name, value in vars(found).items()})


def _measured(logits: Logits, precision: str, distance_only: bool, average: bool, prefix: int) -> list["_Open"]:
    masked = hides(logits)
    sources = [logits]
    if prefix:
        sources.append(logits.restricted(slice(prefix, logits.shape[2]), slice(0, logits.shape[3])))
    opened = [_Open.everything(logits, average) for _ in sources]
    single = precision == "float32" and logits.dtype == torch.float32
    if single:
        trusted = Trust(logits.shape[2], logits.shape[3], masked, distance_only)
        likely = _likely(logits, masked, trusted, average)
        if bool(likely[0].any()) or bool(likely[1].any()):
            direct = direct_statistics(
                logits, masked, distance_only, prefix, likely[0], likely[1] if bool(likely[1].any()) else None
            )
            for one, (found, means) in zip(opened, direct, strict=True):
                one.take(found, means, likely, trusted.direct)
    for one, source in zip(opened, sources, strict=True):
        if single:
            one.attempt(partial(shifted_statistics, source, masked, torch.float32, distance_only), trusted.shifted)
        one.attempt(partial(shifted_statistics, source, masked, torch.float64, distance_only), None)
        if not bool((torch.isfinite(one.found.distance) | (one.found.zero_rows == source.shape[2])).all()):
            require_usable(logits)
            raise NlprobeError("the logits of `query` and `key` overflow", "scale them down")
    return opened


@dataclass
class _Open:
    """What has been found so far, and which maps are still to be measured.

    Attributes:
        found: By set and head, (s, h).
        means: Of the sets' means over the heads, (s,).
        wanted: Which maps are still open, (s, h).
        means_wanted: Which means are still open, (s,).
    """

    found: Found
    means: Found
    wanted: Tensor
    means_wanted: Tensor

    @staticmethod
    def everything(logits: Logits, average: bool) -> "_Open":
        """Nothing found, all maps open, and their means if these are asked for."""
        (s, h), device = logits.shape[:2], logits.device
        wanted = torch.ones(s, h, dtype=torch.bool, device=device)
        return _Open(Found.unknown((s, h), device), Found.unknown((s,), device), wanted, wanted[:, 0] & average)

    def attempt(
        self,
        measure: Callable[[Tensor, Tensor | None], tuple[Found, Found | None]],
        trusted: Callable[[Found], Tensor] | None,
    ) -> None:
        """Measure what is open, and close what is `trusted`."""
        now, means_now = self.wanted, self.means_wanted
        with_means = bool(means_now.any())
        if with_means or bool(now.any()):
            found, means = measure(now, means_now if with_means else None)
            self.take(found, means, (now, means_now), trusted)

    def take(
        self,
        found: Found,
        means: Found | None,
        measured: tuple[Tensor, Tensor],
        trusted: Callable[[Found], Tensor] | None,
    ) -> None:
        """Take in what was found of the maps, and means, that were `measured`, and close those that are trusted."""
        self.found = self.found.replaced(measured[0], found)
        if means is not None:
            self.means = self.means.replaced(measured[1], means)
        if trusted is None:
            return
        self.wanted = self.wanted & ~(measured[0] & trusted(found))
        if means is not None:
            self.means_wanted = self.means_wanted & ~(measured[1] & trusted(means))


def _likely(logits: Logits, masked: bool, trusted: Trust, average: bool) -> tuple[Tensor, Tensor]:
    """Which maps, and means over heads, the direct way can measure, as far as a few rows tell.

    All of short ones, and of plain products, which it can measure however alike or even they are.
    """
    n, m = logits.shape[2:]
    everything = _Open.everything(logits, average)
    if n < SAMPLED_FROM or (is_plain(logits) and not masked):
        return everything.wanted, everything.means_wanted
    sample = torch.linspace(0, n - 1, SAMPLE_ROWS, device=logits.device).long()
    rows = logits.restricted(sample, slice(0, m))
    found, means = shifted_statistics(
        rows, masked, torch.float32, trusted.distance_only, everything.wanted, everything.means_wanted
    )
    assert means is not None
    return trusted.rows_differ(found), everything.means_wanted & trusted.rows_differ(means)


def _statistics(found: Found) -> MapStatistics:
    shared = torch.where(found.variation > NO_VARIATION, found.mean_unevenness / found.unevenness, math.nan)
    return MapStatistics(
        avg_dist=found.distance,
        zero_rows=found.zero_rows.long(),
        entropy=found.entropy,
        n_eff=found.n_eff,
        shared=shared,
    )
