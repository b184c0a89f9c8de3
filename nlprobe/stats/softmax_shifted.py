"""Softmax maps by way of residuals: small differences between rows, and within them, keep their digits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Rows
from nlprobe.stats.softmax_blocks import Found, HeadGroups, HeadMean, Seen, layout, wanted_groups
from nlprobe.stats.streaming import block_elements, wide

SHIFT_ROWS = 32
"""At most so many rows give the direction that is subtracted from all: enough of them that an odd one is diluted."""

MOST_ELEMENTS = 1 << 20
"""Float32 numbers in a block of rows: larger ones lose nothing in the cache but more in memory (4 MiB, three times)."""

LOWEST_LOGIT = {torch.float32: -40.0, torch.float64: -700.0}
"""Logit below a row's largest at which a weight is taken for 0: it adds less than rounding, and its square, or itself,
would be a denormal number, with which processors compute many times slower."""


def shifted_statistics(logits: Logits, masked: bool, dtype: torch.dtype, distance_only: bool, wanted: Tensor) -> Found:
    """Statistics of chosen maps ω_i = softmax_j(s_ij), and of their mean over the heads.

    With w_ij = exp(s_ij − max_j s_ij), r_i = ‖w_i‖, z_i = Σ_j w_ij and t the mean direction of a few rows,
    d_i = (w_i − r_i t)/r_i is the unit row less t, and avg_dist = ½ (mean‖d_i‖² − ‖mean d_i‖²): the softmax denominator
    cancels, and small distances do not. c_i = (w_i − 1_{S_i} z_i/|S_i|)/z_i;
    H_i = log z_i − Σ_j w_ij (s_ij − max_j s_ij)/z_i.

    O(N·M·d) time; memory of three blocks of rows, and of one copy of the keys of some heads.

    Args:
        logits: The logits.
        masked: Whether any key is hidden from any query.
        dtype: Of the products and weights; sums over rows are float64.
        distance_only: Leave all but the distance out (NaN).
        wanted: Which maps, (s, h), or (s, h + 1) with the mean over the heads.

    Returns:
        What is found of each set and head, and of the mean over the heads, as `wanted`; NaN where it is not wanted.
    """
    room = min(8 * block_elements(logits.device), MOST_ELEMENTS) * 4 // dtype.itemsize
    _, h, _, m = logits.shape
    plan = layout(logits, room)
    buffers = torch.empty(3, plan.largest * m, dtype=dtype, device=logits.device)
    found = Found.unknown(tuple(wanted.shape), logits.device)
    blocks = [sets for group in plan.groups for sets in plan.blocks(group)]
    for groups, with_mean in wanted_groups(logits, masked, blocks, plan.heads, wanted, dtype):
        parts, mean = _Walk(groups, buffers).measure(plan.rows, distance_only, with_mean)
        for heads, part in zip(groups.heads, parts, strict=True):
            found.put((groups.sets, heads), part)
        if mean is not None:
            found.put((groups.sets, h), mean)
    return found


@dataclass(frozen=True)
class _Walk:
    """The passes over some sets and heads, with memory for three blocks."""

    groups: HeadGroups
    buffers: Tensor

    def measure(self, rows: list[slice], distance_only: bool, average: bool) -> tuple[list[Found], Found | None]:
        """The statistics of the groups of heads, and of the mean over all of them."""
        shifts, mean_shift = self._shifts(rows[0].stop - rows[0].start, average)
        sums = [_Sums(shift, distance_only) for shift in shifts]
        mean_sums = _Sums(mean_shift, distance_only)
        for span in rows:
            mean = HeadMean(self.groups.sets, self.buffers[2])
            for heads, head_sums in zip(self.groups.heads, sums, strict=True):
                block = self._weights(heads, span)
                if average:
                    mean.add(self.groups.sets, block.weights, block.inverse(), block.seen)
                head_sums.add(block)
            if average:
                mean_sums.add(self._mean_block(mean))
        return [head_sums.found() for head_sums in sums], mean_sums.found() if average else None

    def _shifts(self, step: int, average: bool) -> tuple[list[Tensor], Tensor]:
        """The mean direction t of a few rows: for each group of heads (g, hh, m), and of their mean (g, m)."""
        n, device = self.groups.logits.shape[2], self.buffers.device
        sample = torch.linspace(0, n - 1, min(n, max(4, min(SHIFT_ROWS, n // 64)), step), device=device).long()
        shifts, mean = [], HeadMean(self.groups.sets, self.buffers[2])
        for heads in self.groups.heads:
            block = self._weights(heads, sample)
            if average:
                mean.add(self.groups.sets, block.weights, block.inverse(), block.seen)
            shifts.append(block.direction())
        return shifts, self._mean_block(mean).direction() if average else shifts[0]

    def _weights(self, heads: slice, rows: Rows) -> "_Block":
        deviations, seen = self.groups.fill(self.groups.sets, heads, rows, self.buffers[0])
        largest = deviations.amax(-1, keepdim=True)
        if self.groups.masked:
            largest = torch.where(seen.present.unsqueeze(-1), largest, 0.0)
        deviations.sub_(largest)
        torch.threshold_(deviations, LOWEST_LOGIT[deviations.dtype], -math.inf)
        weights = torch.exp(deviations, out=self.buffers[1, : deviations.numel()].view_as(deviations))
        return _Block(deviations, weights, weights.sum(-1), seen, largest.abs_().amax((-2, -1)))

    def _mean_block(self, mean: HeadMean) -> "_Block":
        rows, seen = mean.finish()
        logarithms = torch.log(rows, out=self.buffers[0, : rows.numel()].view_as(rows))
        return _Block(logarithms, rows, rows.sum(-1), seen, rows.new_zeros(len(rows)))


@dataclass(frozen=True)
class _Block:
    """A block of rows (…, r, m).

    Attributes:
        deviations: s_ij − max_j s_ij, or log w_ij up to a constant; the memory is used for other things in the end.
        weights: w_ij, the rows up to a factor.
        mass: z_i = Σ_j w_ij.
        seen: The supports.
        reach: The largest magnitude of a row's largest logit, (…).
    """

    deviations: Tensor
    weights: Tensor
    mass: Tensor
    seen: Seen
    reach: Tensor

    def inverse(self) -> Tensor:
        """1/z_i, and 0 for rows that see nothing."""
        return torch.where(self.seen.present, 1 / self.mass, 0.0)

    def entropy(self) -> Tensor:
        """H_i of the rows w_i/z_i, in float64; spends the deviations."""
        finite = self.deviations.clamp_min_(LOWEST_LOGIT[self.deviations.dtype])
        expected = wide(finite.mul_(self.weights).sum(-1))
        mass = wide(self.mass)
        return torch.where(self.seen.present, mass.log() - expected / mass, 0.0)

    def direction(self) -> Tensor:
        """The mean of the unit rows."""
        return wide(torch.nn.functional.normalize(self.weights, dim=-1)).mean(-2).to(self.weights.dtype)


class _Sums:
    """Sums over the rows of maps with the shape `batch`, in float64."""

    def __init__(self, shift: Tensor, distance_only: bool) -> None:
        self.shift = shift  # (*batch, m)
        self.distance_only = distance_only
        zeros = wide(shift.new_zeros(9, *shift.shape[:-1]))
        self.total, self.rows, self.squares, self.entropy, self.entropies = zeros[:5]
        self.n_eff, self.unevenness, self.variation, self.reach = zeros[5:]
        self.drift = wide(torch.zeros_like(shift)).unsqueeze(-2)
        self.uneven = torch.zeros_like(self.drift)

    def add(self, block: _Block) -> None:
        """Add a block of rows, which is spent."""
        weights, sight = block.weights, block.seen
        present = sight.present.expand(block.mass.shape)
        self.total += block.mass.shape[-1]
        self.rows += present.sum(-1)
        self.reach = self.reach.maximum(block.reach)
        norm = torch.linalg.vector_norm(weights, dim=-1)
        inverse = torch.where(present, 1 / norm, 0.0)
        if not self.distance_only:
            self._add_shape(block, norm, present)
        residual = weights.addcmul_(norm.unsqueeze(-1), self.shift.unsqueeze(-2), value=-1)
        self.drift += inverse.unsqueeze(-2) @ residual
        self.squares += wide(torch.linalg.vector_norm(residual, dim=-1) * inverse).square().sum(-1)

    def _add_shape(self, block: _Block, norm: Tensor, present: Tensor) -> None:
        sight, count = block.seen, block.seen.count
        several = (count > 1).expand(present.shape)
        self.entropies += several.sum(-1)
        self.entropy += torch.where(several, block.entropy() / count.log(), 0.0).sum(-1)
        self.n_eff += torch.where(present, (wide(block.mass) / wide(norm)).square(), 0.0).sum(-1)
        inverse = block.inverse()
        even = (block.mass / count.clamp_min(1).to(block.mass.dtype)).unsqueeze(-1)
        if sight.support is None:
            uneven = torch.sub(block.weights, even, out=block.deviations)
        else:
            uneven = torch.addcmul(block.weights, sight.support, even, value=-1, out=block.deviations)
        square = wide(torch.linalg.vector_norm(uneven, dim=-1) * inverse).square()
        self.uneven += inverse.unsqueeze(-2) @ uneven
        self.unevenness += square.sum(-1)
        self.variation += (square * count).sum(-1)

    def found(self) -> Found:
        """The statistics."""
        n, undefined = self.rows, math.nan if self.distance_only else 1.0
        return Found(
            distance=(0.5 * (self.squares / n - (self.drift.squeeze(-2) / n.unsqueeze(-1)).square().sum(-1))).clamp_min(
                0
            ),
            zero_rows=self.total - n,
            entropy=self.entropy / self.entropies * undefined,
            n_eff=self.n_eff / n * undefined,
            mean_unevenness=(self.uneven.squeeze(-2) / n.unsqueeze(-1)).square().sum(-1) * undefined,
            unevenness=self.unevenness / n * undefined,
            variation=self.variation / n * undefined,
            reach=self.reach,
            level=torch.full_like(n, 0.5),
            offset=torch.zeros_like(n),
        )
