"""Rows p_i + u: a softmax map together with one fixed map, as the disentangled non-local block has them."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.errors import NlprobeError
from nlprobe.stats.logit_blocks import logit_blocks, logits_kernel, require_usable
from nlprobe.stats.logits import Logits
from nlprobe.stats.results import MapStatistics
from nlprobe.stats.softmax_maps import NO_VARIATION
from nlprobe.stats.streaming import require_finite, wide


@logits_kernel
def unary_map_statistics(
    logits: Logits, unary: Float[Tensor, "s m"], weights: tuple[float, float] = (1.0, 1.0)
) -> MapStatistics:
    """Statistics of the rows a_i = w_p p_i + w_u u, with p_i = softmax_j(s_ij) and u the same for all queries i.

    With c_i = a_i − mean_j a_ij, r_i = ‖a_i‖ and ā = (w_p + w_u)/M, the unit rows differ by c_i/r_i and, along the flat
    row, by √M ā/r_i: avg_dist = ½ (mean ‖c_i/r_i‖² − ‖mean c_i/r_i‖² + M ā² var 1/r_i). All in float64, in which the
    difference is good to 1e-15. `entropy` is that of the rows divided by w_p + w_u, which are mixtures of two
    distributions; NaN where a weight is negative. O(s·h·N·M·d) time; memory of one block and a few rows.

    Args:
        logits: s_ij, without bias and mask.
        unary: u; it is divided by its sum, which rounding leaves near 1.
        weights: w_p and w_u.

    Returns:
        The statistics of each set and head.

    Raises:
        NlprobeError: queries, keys or the unary map hold NaN or infinity, or there is a mask or bias.
    """
    if logits.mask is not None or logits.given is not None:
        raise NlprobeError("a map with a unary map beside it cannot be masked or biased here", "pass plain logits")
    require_usable(logits)
    require_finite(unary=unary)
    s, h, _, m = logits.shape
    mean = (weights[0] + weights[1]) / m
    fixed = wide(unary)
    fixed = fixed / fixed.sum(-1, keepdim=True) * weights[1] - mean  # with w_p p_i it is c_i
    sums = _Sums.zeros((s, h, m), weights, logits.device)
    for sets, heads, _, block in logit_blocks(logits, torch.float64, centred=True):
        block.sub_(block.amax(-1, keepdim=True)).exp_()
        block.mul_(weights[0] / block.sum(-1, keepdim=True)).add_(fixed[sets, None, None])
        sums.add((sets, heads), block)
    return sums.statistics()


@dataclass
class _Sums:
    """Sums over the rows seen so far, by set and head."""

    weights: tuple[float, float]
    count: Tensor  # rows that are not zero
    seen: Tensor
    units: Tensor  # (s, h, m): Σ c_i/r_i
    squares: Tensor  # Σ ‖c_i‖²/r_i²
    inverse: Tensor  # Σ 1/r_i
    inverse_squares: Tensor  # Σ 1/r_i²
    uneven: Tensor  # (s, h, m): Σ c_i
    unevenness: Tensor  # Σ ‖c_i‖²
    entropy: Tensor
    n_eff: Tensor

    @classmethod
    def zeros(cls, shape: tuple[int, int, int], weights: tuple[float, float], device: torch.device) -> "_Sums":
        """Nothing seen."""
        units, uneven = torch.zeros(2, *shape, dtype=torch.float64, device=device)
        count, seen, squares, inverse, inverse_squares, unevenness, entropy, n_eff = torch.zeros(
            8, *shape[:2], dtype=torch.float64, device=device
        )
        return cls(weights, count, seen, units, squares, inverse, inverse_squares, uneven, unevenness, entropy, n_eff)

    def add(self, at: tuple[slice, slice], c: Tensor) -> None:
        """Add the rows c_i, (g, hh, r, m), of the maps `at`; they are overwritten."""
        m, mass = c.shape[-1], self.weights[0] + self.weights[1]
        energy = torch.linalg.vecdot(c, c)
        norms = (energy + mass**2 / m).sqrt()
        present = norms > 0
        inverse = torch.where(present, 1 / norms, 0.0)
        self.seen[at] += norms.shape[-1]
        self.count[at] += present.sum(-1)
        self.squares[at] += (energy * inverse.square()).sum(-1)
        self.inverse[at] += inverse.sum(-1)
        self.inverse_squares[at] += inverse.square().sum(-1)
        self.unevenness[at] += energy.sum(-1)
        sums = torch.stack((inverse, present.to(inverse.dtype)), -2) @ c
        self.units[at] += sums[..., 0, :]
        self.uneven[at] += sums[..., 1, :]
        a = c.add_(mass / m)
        if min(self.weights) < 0 or mass <= 0:
            self.entropy[at] = math.nan
            self.n_eff[at] += (a.abs_().sum(-1) * inverse).square().sum(-1)
            return
        self.n_eff[at] += (mass * inverse).square().sum(-1)
        # −Σ a log a; a weight that underflows counts for nothing
        logarithms = a.clamp_min(torch.finfo(a.dtype).tiny).log_()
        self.entropy[at] += math.log(mass) * norms.shape[-1] - torch.linalg.vecdot(a, logarithms).sum(-1) / mass

    def statistics(self) -> MapStatistics:
        """What the sums say of the rows that are not zero."""
        n, m, mass = self.count, self.units.shape[-1], self.weights[0] + self.weights[1]
        unevenness = self.unevenness / n
        shared = (self.uneven / n.unsqueeze(-1)).square().sum(-1) / unevenness
        varied = m * unevenness > NO_VARIATION * sum(abs(weight) for weight in self.weights) ** 2
        across = self.squares / n - (self.units / n.unsqueeze(-1)).square().sum(-1)
        along = mass**2 / m * (self.inverse_squares / n - (self.inverse / n).square())
        return MapStatistics(
            avg_dist=(0.5 * (across + along)).clamp_min(0),
            zero_rows=(self.seen - n).long(),
            entropy=self.entropy / n / math.log(m) if m > 1 else torch.full_like(n, math.nan),
            n_eff=self.n_eff / n,
            shared=torch.where(varied, shared, math.nan),
        )
