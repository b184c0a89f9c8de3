"""Statistics of softmax attention maps, streamed over blocks of queries: no N×M matrix is ever held."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats.logit_blocks import logits_kernel, require_usable
from nlprobe.stats.logits import Logits
from nlprobe.stats.results import MapStatistics
from nlprobe.stats.softmax_blocks import Found, hides
from nlprobe.stats.softmax_shifted import shifted_statistics
from nlprobe.stats.streaming import kernel

EVEN_BELOW = 1e-3
"""N·M·`shared`·mean_i |S_i|·‖c_i‖² under which the rounding of float32 weights, which N·M of them average out, shows in
the energy of c and of its mean: the rounding is 6e-8 of a weight, the promise 1e-5."""

MASKED_EVEN_BELOW = 1e-4
"""The same without N·M, where queries that see few keys may hold most of the energy of c, and nothing averages out."""

OPPOSED_BELOW = 0.05
"""N·`shared` under which the rows of c, other than by chance, cancel in their mean."""

PEAKED_BELOW = 2e-2
"""√N times the mean row entropy in nats, relative to the largest logit or 1, under which the rounding of float32 shows:
the logarithm of a sum that is nearly 1, and the logits' own errors."""

_NO_VARIATION = 1e-26
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
    is at most 1e-5·true + 1e-9 and that of the other columns 1e-5 relative: maps so even (`EVEN_BELOW`), so opposed
    (`OPPOSED_BELOW`) or so peaked (`PEAKED_BELOW`) that these would lose digits, and logits that overflow float32, are
    redone in float64.

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
    found, mean = _measured(logits, precision, distance_only, average)
    return _statistics(found), None if mean is None else _statistics(mean)


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


def _measured(logits: Logits, precision: str, distance_only: bool, average: bool) -> tuple[Found, Found | None]:
    s, h, n, m = logits.shape
    masked = hides(logits)
    wanted = torch.ones(s, h, dtype=torch.bool, device=logits.device)
    mean_wanted = wanted[:, 0] if average else None
    double = precision == "float64" or logits.dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    found, mean = shifted_statistics(logits, masked, dtype, distance_only, wanted, mean_wanted)
    if not double:
        wanted = ~_trustworthy(found, n, m, masked, distance_only)
        mean_wanted = None if mean is None else ~_trustworthy(mean, n, m, masked, distance_only)
        if bool(wanted.any()) or (mean_wanted is not None and bool(mean_wanted.any())):
            if not bool(_finite(found, n).all()):
                require_usable(logits)
            again, mean_again = shifted_statistics(logits, masked, torch.float64, distance_only, wanted, mean_wanted)
            found = found.replaced(wanted, again)
            if mean is not None and mean_again is not None and mean_wanted is not None:
                mean = mean.replaced(mean_wanted, mean_again)
    if not bool(_finite(found, n).all()):
        require_usable(logits)
        raise NlprobeError("the logits of `query` and `key` overflow", "scale them down")
    return found, mean


def _finite(found: Found, n_queries: int) -> Tensor:
    """Whether the distance is a number, or rightly none because all rows are zero."""
    return torch.isfinite(found.distance) | (found.zero_rows == n_queries)


def _trustworthy(found: Found, n: int, m: int, masked: bool, distance_only: bool) -> Tensor:
    """Whether float32 has kept the digits that are promised."""
    finite = torch.isfinite(found.distance)
    if distance_only:
        return finite
    shared = found.mean_unevenness / found.unevenness
    even = MASKED_EVEN_BELOW if masked else max(EVEN_BELOW / (n * m), 1e-9)
    peaked = found.entropy * math.log(max(m, 2)) < PEAKED_BELOW / math.sqrt(n) * found.reach.clamp_min(1)
    return finite & (found.variation * shared >= even) & (n * shared >= OPPOSED_BELOW) & ~peaked


def _statistics(found: Found) -> MapStatistics:
    shared = torch.where(found.variation > _NO_VARIATION, found.mean_unevenness / found.unevenness, math.nan)
    return MapStatistics(
        avg_dist=found.distance,
        zero_rows=found.zero_rows.long(),
        entropy=found.entropy,
        n_eff=found.n_eff,
        shared=shared,
    )
