"""Softmax maps in few passes: for rows that differ enough, between and within them, that float32 loses no digits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nlprobe.stats.logits import Logits
from nlprobe.stats.softmax_blocks import Found, HeadGroups, HeadMean, Seen, by_groups
from nlprobe.stats.streaming import block_elements, wide

BOUNDED_BELOW = 36.0
"""Largest logit by magnitude whose exponential, its square, and the sum of these over a row float32 can hold."""

LOWEST_LOGIT = -40.0
"""Logit below a row's largest at which a weight is taken for 0: its square would be a denormal number, with which
processors compute many times slower."""

SHORT = 400
"""Length up to which torch multiplies pairs of rows by itself, and faster than it multiplies and adds."""


def direct_statistics(
    logits: Logits, masked: bool, distance_only: bool, wanted: Tensor, average: Tensor | None
) -> tuple[Found, Found | None]:
    """Statistics of chosen maps ω_i = softmax_j(s_ij), and of their mean over the heads, from float32 weights.

    With w_ij = exp(s_ij), r_i = ‖w_i‖, z_i = Σ_j w_ij: avg_dist = ½ (1 − ‖mean_i w_i/r_i‖²),
    ‖c_i‖² = (r_i/z_i)² − 1/|S_i|, mean_i c_i = mean_i ω_i − mean_i 1_{S_i}/|S_i|, H_i = log z_i − Σ_j w_ij s_ij/z_i.
    The first three are differences of nearly equal numbers where rows are alike or even: what comes out there is to be
    discarded. The row's largest logit is taken off only where logits are not bounded by `BOUNDED_BELOW`.

    O(N·M·d) time; memory of three blocks of rows, and of one copy of the keys of some heads.

    Args:
        logits: The logits.
        masked: Whether any key is hidden from any query.
        distance_only: Leave all but the distance out (NaN).
        wanted: Which maps, (s, h).
        average: Of which sets the mean over the heads, (s,); None for no means.

    Returns:
        What is found of each set and head, (s, h), and of the sets' means, (s,); NaN where it is not wanted.
    """

    def measure(
        groups: HeadGroups, rows: list[slice], buffers: Tensor, average: bool
    ) -> tuple[list[Found], Found | None]:
        return _Walk(groups, buffers, distance_only).measure(rows, average)

    return by_groups(logits, masked, 2 * block_elements(logits.device), wanted, average, torch.float32, measure)


@dataclass(frozen=True)
class _Walk:
    """The pass over some sets and heads, with memory for three blocks."""

    groups: HeadGroups
    buffers: Tensor
    distance_only: bool

    def measure(self, rows: list[slice], average: bool) -> tuple[list[Found], Found | None]:
        """The statistics of the groups of heads, and of the mean over all of them."""
        groups, buffers, m = self.groups, self.buffers, self.groups.logits.shape[3]
        g = groups.sets.stop - groups.sets.start
        reaches = [_reach(groups, heads) for heads in groups.heads]
        bounded = [bool(reach.amax() < BOUNDED_BELOW) for reach in reaches]
        sums = [_Sums((*reach.shape, m), self.distance_only, buffers.device) for reach in reaches]
        mean_sums = _Sums((g, m), self.distance_only, buffers.device)
        for span in rows:
            mean = HeadMean(buffers[2])
            for heads, head_sums, reach, small in zip(groups.heads, sums, reaches, bounded, strict=True):
                logits, seen = groups.fill(heads, span, buffers[0])
                if not small:
                    reach = _take_off_largest(logits, seen, groups.masked)
                weights = torch.exp(logits, out=buffers[1, : logits.numel()].view_as(logits))
                mass = weights.sum(-1)
                if average:
                    mean.add(weights, mass, seen)
                if groups.masked or not small:
                    logits.clamp_min_(LOWEST_LOGIT)  # 0 · −∞ is not a number
                head_sums.add(logits, weights, mass, seen)
                head_sums.reach = head_sums.reach.maximum(reach)
            if average:
                weights, seen = mean.finish()
                logits = torch.log(weights, out=buffers[0, : weights.numel()].view_as(weights))
                logits.clamp_min_(2 * LOWEST_LOGIT)
                mean_sums.add(logits, weights, weights.sum(-1), seen)
        return [head_sums.found() for head_sums in sums], mean_sums.found() if average else None


def _reach(groups: HeadGroups, heads: slice) -> Tensor:
    """A bound of |s_ij|, (g, hh): infinity where the logits are given, or a bias without bound is added."""
    logits, sets = groups.logits, groups.sets
    key = groups.prepared(heads).key
    shape = (sets.stop - sets.start, heads.stop - heads.start)
    if key is None or logits.query is None:
        return torch.full(shape, math.inf, device=logits.device)
    lengths = torch.linalg.vector_norm(key, dim=-1).amax(-1).view(shape)
    query = torch.linalg.vector_norm(logits.query[sets, heads], dim=-1, dtype=torch.float32).amax(-1)
    bound = abs(logits.scale) * query.to(key.device) * lengths
    if logits.mask is not None and logits.mask.bias is not None:
        bias = logits.mask.bias
        bound = bound + bias.masked_fill(bias <= logits.mask.hidden_below, 0).abs().amax()
    return bound


def _take_off_largest(logits: Tensor, seen: Seen, masked: bool) -> Tensor:
    """Subtract each row's largest logit in place; returns the largest magnitude of these, (g, hh)."""
    largest = logits.amax(-1, keepdim=True)
    if masked:
        largest = torch.where(seen.present.unsqueeze(-1), largest, 0.0)
    torch.threshold_(logits.sub_(largest), LOWEST_LOGIT, -math.inf)
    return largest.abs().amax((-2, -1))


class _Sums:
    """Sums over the rows of maps, in float64: `shape` is theirs without the rows."""

    def __init__(self, shape: tuple[int, ...], distance_only: bool, device: torch.device) -> None:
        self.distance_only = distance_only
        zeros = torch.zeros(8, *shape[:-1], dtype=torch.float64, device=device)
        self.total, self.rows, self.entropy, self.entropies = zeros[:4]
        self.n_eff, self.unevenness, self.variation, self.reach = zeros[4:]
        self.directions = zeros.new_zeros(*shape[:-1], 1 if distance_only else 2, shape[-1])
        self.even: Tensor | float = 0.0  # Σ_i 1_{S_i}/|S_i|, (…, 1, m) or broadcast to it

    def add(self, logits: Tensor, weights: Tensor, mass: Tensor, seen: Seen) -> None:
        """Add a block of rows (…, r, m); spends the logits."""
        present = seen.present.expand(mass.shape)
        norm = torch.linalg.vector_norm(weights, dim=-1)
        factors = 1 / (norm.unsqueeze(-2) if self.distance_only else torch.stack((norm, mass), dim=-2))
        if seen.support is not None:
            factors = torch.where(present.unsqueeze(-2), factors, 0.0)
        self.directions += factors @ weights
        self.total += mass.shape[-1]
        self.rows += present.sum(-1)
        if not self.distance_only:
            self._add_shape(wide(mass), wide(norm), present, seen)
            self._add_entropy(logits, weights, wide(mass), present, seen)

    def _add_shape(self, mass: Tensor, norm: Tensor, present: Tensor, seen: Seen) -> None:
        n_eff = (mass / norm).square()
        uneven = 1 / n_eff - 1 / seen.count
        if seen.support is None:
            self.even = self.even + mass.shape[-1] / seen.count
        else:
            n_eff, uneven = torch.where(present, n_eff, 0.0), torch.where(present, uneven, 0.0)
            inverse = torch.where(seen.present, 1 / seen.count, 0.0).to(seen.support.dtype)
            even = wide(inverse.unsqueeze(-2) @ seen.support)
            self.even = self.even + even * (mass.shape[-1] // seen.support.shape[-2])
        self.n_eff += n_eff.sum(-1)
        self.unevenness += uneven.sum(-1)
        self.variation += (uneven * seen.count).sum(-1)

    def _add_entropy(self, logits: Tensor, weights: Tensor, mass: Tensor, present: Tensor, seen: Seen) -> None:
        m = logits.shape[-1]
        if m < SHORT:
            products = torch.bmm(weights.view(-1, 1, m), logits.view(-1, m, 1)).view(mass.shape)
        else:
            products = logits.mul_(weights).sum(-1)
        several = (seen.count > 1).expand(present.shape)
        entropy = (mass.log() - wide(products) / mass) / seen.count.log()
        self.entropy += torch.where(several, entropy, 0.0).sum(-1)
        self.entropies += several.sum(-1)

    def found(self) -> Found:
        """The statistics."""
        n, undefined = self.rows, math.nan if self.distance_only else 1.0
        means = self.directions / n[..., None, None]
        uneven = means[..., 1:, :] - self.even / n[..., None, None]
        return Found(
            distance=0.5 * (1 - means[..., 0, :].square().sum(-1)),
            zero_rows=self.total - n,
            entropy=self.entropy / self.entropies * undefined,
            n_eff=self.n_eff / n * undefined,
            mean_unevenness=uneven.square().sum((-2, -1)) * undefined,
            unevenness=self.unevenness / n * undefined,
            variation=self.variation / n * undefined,
            reach=self.reach,
        )
