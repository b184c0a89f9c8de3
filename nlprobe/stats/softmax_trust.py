"""Which results of float32 keep the digits that are promised: 1e-5·true + 1e-9 for the distance, else 1e-5 relative."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nlprobe.stats.softmax_blocks import Found

CLOSE_BELOW = 0.04
"""Distance, relative to that of which it is a difference (`Found.level`), under which it loses digits."""

FLAT_BELOW = 0.1
"""mean_i |S_i|·‖c_i‖² under which ‖a_i‖² − 1/|S_i| of float32 weights loses digits, for the same reason."""

UNSHARED_BELOW = 0.02
"""M·`shared`·mean_i |S_i|·‖c_i‖² under which the same holds for the mean row less the mean flat row."""

LOW_BELOW = 0.1
"""√N times the mean row entropy in nats, relative to the largest logit or 1, under which log z_i less the expected
logit, both as large as the logits, loses digits."""

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


@dataclass(frozen=True)
class Trust:
    """What is kept of results for n queries and m keys.

    Attributes:
        n: Queries.
        m: Keys.
        masked: Whether any key is hidden from any query.
        distance_only: Only the distance is asked for.
    """

    n: int
    m: int
    masked: bool
    distance_only: bool

    def rows_differ(self, found: Found) -> Tensor:
        """Whether rows differ enough, between and within them, for the direct way."""
        differ = found.distance >= CLOSE_BELOW * found.level
        return differ if self.distance_only else differ & ((found.variation >= FLAT_BELOW) | (found.offset > 0))

    def direct(self, found: Found) -> Tensor:
        """Whether what the direct way has found is kept."""
        if self.distance_only:
            return self.rows_differ(found)
        shared = found.mean_unevenness / found.unevenness
        peaked = self._nats(found) < LOW_BELOW / math.sqrt(self.n) * found.reach.clamp_min(1)
        varied = self.m * shared * found.variation >= UNSHARED_BELOW
        # weights held as e = w − 1 lose nothing where the mean row is nearly flat, but their own rounding shows
        varied |= (found.offset > 0) & (found.variation * shared >= self._even())
        enough = varied & (self.n * shared >= OPPOSED_BELOW)
        return self.rows_differ(found) & enough & ~peaked

    def shifted(self, found: Found) -> Tensor:
        """Whether what float32 residuals have given is kept."""
        finite = torch.isfinite(found.distance)
        if self.distance_only:
            return finite
        shared = found.mean_unevenness / found.unevenness
        even = self._even()
        peaked = self._nats(found) < PEAKED_BELOW / math.sqrt(self.n) * found.reach.clamp_min(1)
        return finite & (found.variation * shared >= even) & (self.n * shared >= OPPOSED_BELOW) & ~peaked

    def _even(self) -> float:
        return MASKED_EVEN_BELOW if self.masked else max(EVEN_BELOW / (self.n * self.m), 1e-9)

    def _nats(self, found: Found) -> Tensor:
        return found.entropy * math.log(max(self.m, 2))
