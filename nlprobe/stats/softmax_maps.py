"""Statistics of softmax attention maps, streamed over blocks of queries: no N×M matrix is ever held."""

import math
from collections.abc import Callable
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
    return _by_head(found, logits.shape[1])


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
    return [_by_head(one, logits.shape[1]) for one in _measured(logits, precision, False, average, prefix)]


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


def _measured(logits: Logits, precision: str, distance_only: bool, average: bool, prefix: int) -> list[Found]:
    """What is found of each set and head, (s, h), or (s, h + 1) with the mean over them; of all rows, of the rest."""
    s, h, n, m = logits.shape
    masked = hides(logits)
    wanted = torch.ones(s, h + average, dtype=torch.bool, device=logits.device)
    found, kept = [Found.unknown((s, h + average), logits.device)] * (1 + bool(prefix)), [~wanted] * (1 + bool(prefix))
    single = precision == "float32" and logits.dtype == torch.float32
    trusted = Trust(n, m, masked, distance_only)
    if single:
        likely = _likely(logits, masked, trusted, wanted)
        if bool(likely.any()):
            found = direct_statistics(logits, masked, distance_only, prefix, likely)
            kept = [likely & trusted.direct(one) for one in found]
    for at, start in enumerate((0, prefix) if prefix else (0,)):
        if not bool(kept[at].all()):
            source = logits.restricted(slice(start, n), slice(0, m)) if start else logits
            found[at] = _by_residuals(
                source, masked, distance_only, found[at], kept[at], trusted.shifted if single else None
            )
    for one, size in zip(found, (n, n - prefix), strict=False):
        if not bool((torch.isfinite(one.distance) | (one.zero_rows == size)).all()):
            require_usable(logits)
            raise NlprobeError("the logits of `query` and `key` overflow", "scale them down")
    return found


def _by_residuals(
    logits: Logits,
    masked: bool,
    distance_only: bool,
    found: Found,
    kept: Tensor,
    trusted: Callable[[Found], Tensor] | None,
) -> Found:
    """Redo what is not kept by way of residuals: in float32 where some of that is `trusted`, the rest in float64."""
    if trusted is not None:
        again = shifted_statistics(logits, masked, torch.float32, distance_only, ~kept)
        found = again.replaced(kept, found)
        kept = kept | trusted(again)
    if bool(kept.all()):
        return found
    return shifted_statistics(logits, masked, torch.float64, distance_only, ~kept).replaced(kept, found)


def _likely(logits: Logits, masked: bool, trusted: Trust, wanted: Tensor) -> Tensor:
    """Which maps, and means over heads, the direct way can measure, as far as a few rows tell.

    All of short ones, and of plain products, which it can measure however alike or even they are.
    """
    n, m = logits.shape[2:]
    if n < SAMPLED_FROM or (is_plain(logits) and not masked):
        return wanted
    sample = torch.linspace(0, n - 1, SAMPLE_ROWS, device=logits.device).long()
    rows = logits.restricted(sample, slice(0, m))
    return trusted.rows_differ(shifted_statistics(rows, masked, torch.float32, trusted.distance_only, wanted))


def _by_head(found: Found, h: int) -> tuple[MapStatistics, MapStatistics | None]:
    """The statistics of the heads, and of the mean over them where it was measured."""
    whole = _statistics(found)
    each, means = (MapStatistics(**{k: v[:, at] for k, v in vars(whole).items()}) for at in (slice(0, h), -1))
    return each, means if found.distance.shape[1] > h else None


def _statistics(found: Found) -> MapStatistics:
    shared = torch.where(found.variation > NO_VARIATION, found.mean_unevenness / found.unevenness, math.nan)
    return MapStatistics(
        avg_dist=found.distance,
        zero_rows=found.zero_rows.long(),
        entropy=found.entropy,
        n_eff=found.n_eff,
        shared=shared,
    )
