"""Softmax maps by way of residuals: small differences between rows, and within them, keep their digits."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nlprobe.stats.logits import Logits, PreparedLogits
from nlprobe.stats.masks import Rows
from nlprobe.stats.softmax_blocks import Found, Seen, layout, seen
from nlprobe.stats.streaming import block_elements, wide

SHIFT_ROWS = 32
"""At most so many rows give the direction that is subtracted from all: enough of them that an odd one is diluted."""

MOST_ELEMENTS = 1 << 21
"""Float32 numbers in a block of rows: larger ones lose nothing in the cache but more in memory (8 MiB, three times)."""

LEAST_ROWS = 64
"""Rows of one head in a block, whatever their length: fewer make poor products."""

KEY_BYTES = 1 << 24
"""Size of the keys of several heads that are kept for all blocks of queries; more are laid out anew for each block."""

LOWEST_LOGIT = {torch.float32: -40.0, torch.float64: -700.0}
"""Logit below a row's largest at which a weight is taken for 0: it adds less than rounding, and its square, or itself,
would be a denormal number, with which processors compute many times slower."""


def shifted_statistics(
    logits: Logits, masked: bool, dtype: torch.dtype, distance_only: bool, wanted: Tensor, average: Tensor | None
) -> tuple[Found, Found | None]:
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
        wanted: Which maps, (s, h).
        average: Of which sets the mean over the heads, (s,); None for no means.

    Returns:
        What is found of each set and head, (s, h), and of the sets' means, (s,); NaN where it is not wanted.
    """
    s, h, _, m = logits.shape
    room = min(8 * block_elements(logits.device), MOST_ELEMENTS) * 4 // dtype.itemsize
    plan = layout(logits.shape, room, LEAST_ROWS)
    g, hh, r = plan.largest
    buffers = torch.empty(3, g * hh * r * m, dtype=dtype, device=logits.device)
    found, means = Found.unknown((s, h), logits.device), Found.unknown((s,), logits.device)
    for sets in plan.sets:
        with_mean = average is not None and bool(average[sets].any())
        heads = [span for span in plan.heads if with_mean or bool(wanted[sets, span].any())]
        if not heads:
            continue
        group = _Group(logits, sets, heads, masked, buffers)
        parts, mean = group.measure(plan.rows, distance_only, with_mean)
        for span, part in zip(heads, parts, strict=True):
            found.put((sets, span), part)
        if mean is not None:
            means.put((sets,), mean)
    return found, None if average is None else means


@dataclass
class _Group:
    """Some sets with some of their heads."""

    logits: Logits
    sets: slice
    heads: list[slice]
    masked: bool
    buffers: Tensor
    prepared: dict[int, PreparedLogits] = field(default_factory=dict)

    def measure(self, rows: list[slice], distance_only: bool, average: bool) -> tuple[list[Found], Found | None]:
        """The statistics of the groups of heads, and of the mean over all of them."""
        shifts, mean_shift = self._shifts(rows[0].stop - rows[0].start, average)
        sums = [_Sums(shift, distance_only) for shift in shifts]
        mean_sums = _Sums(mean_shift, distance_only)
        for span in rows:
            mean = _Mean(self.buffers[2])
            for heads, head_sums in zip(self.heads, sums, strict=True):
                block = self._weights(heads, span)
                entropy = None if distance_only else block.entropy()
                if average:
                    mean.add(block)
                head_sums.add(block, entropy)
            if average:
                block = mean.block(self.buffers)
                mean_sums.add(block, None if distance_only else block.entropy())
        return [head_sums.found() for head_sums in sums], mean_sums.found() if average else None

    def _shifts(self, step: int, average: bool) -> tuple[list[Tensor], Tensor]:
        """The mean direction t of a few rows: for each group of heads (g, hh, m), and of their mean (g, m)."""
        n = self.logits.shape[2]
        count = min(n, max(4, min(SHIFT_ROWS, n // 64)), step)
        sample = torch.linspace(0, n - 1, count, device=self.logits.device).long()
        shifts, mean = [], _Mean(self.buffers[2])
        for heads in self.heads:
            block = self._weights(heads, sample)
            if average:
                mean.add(block)
            shifts.append(block.direction())
        return shifts, mean.block(self.buffers).direction() if average else shifts[0]

    def _weights(self, heads: slice, rows: Rows) -> "_Block":
        g, hh, m = self.sets.stop - self.sets.start, heads.stop - heads.start, self.logits.shape[3]
        r = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        deviations, weights = (buffer[: g * hh * r * m].view(g, hh, r, m) for buffer in self.buffers[:2])
        self._prepared(heads).fill(rows, deviations)
        sight = seen(self.logits, self.sets, heads, rows, deviations, self.masked)
        largest = deviations.amax(-1, keepdim=True)
        if self.masked:
            largest = torch.where(sight.present.unsqueeze(-1), largest, 0.0)
        deviations.sub_(largest)
        torch.threshold_(deviations, LOWEST_LOGIT[deviations.dtype], -math.inf)
        torch.exp(deviations, out=weights)
        return _Block(deviations, weights, weights.sum(-1), sight, largest.abs_().amax((-2, -1)))

    def _prepared(self, heads: slice) -> PreparedLogits:
        if heads.start in self.prepared:
            return self.prepared[heads.start]
        prepared = self.logits.prepare(self.sets, heads, self.buffers.dtype, centred=True)
        size = 0 if prepared.key is None else prepared.key.numel() * prepared.key.element_size()
        if size * len(self.heads) <= KEY_BYTES:
            self.prepared[heads.start] = prepared
        return prepared


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

    def entropy(self) -> Tensor:
        """H_i of the rows w_i/z_i, in float64; spends the deviations."""
        finite = self.deviations.clamp_min_(LOWEST_LOGIT[self.deviations.dtype])
        expected = wide(finite.mul_(self.weights).sum(-1))
        mass = wide(self.mass)
        return torch.where(self.seen.present, mass.log() - expected / mass, 0.0)

    def direction(self) -> Tensor:
        """The mean of the unit rows."""
        return wide(torch.nn.functional.normalize(self.weights, dim=-1)).mean(-2).to(self.weights.dtype)


class _Mean:
    """The mean of a block's rows over the heads that see any key, (g, r, m), added up in the memory given."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.rows: Tensor | None = None
        self.support: Tensor | None = None
        self.contributing: Tensor | float = 0.0

    def add(self, block: _Block) -> None:
        """Add some heads; spends the block's deviations."""
        inverse = torch.where(block.seen.present, 1 / block.mass, 0.0)
        part = torch.mul(block.weights, inverse.unsqueeze(-1), out=block.deviations)
        g, hh, r, m = part.shape
        rows = self.memory[: g * r * m].view(g, r, m)
        self.rows = torch.sum(part, 1, out=rows) if self.rows is None else rows.add_(part.sum(1))
        self.contributing = self.contributing + block.seen.present.to(part.dtype).expand(g, hh, -1).sum(1)
        if block.seen.support is not None:
            union = block.seen.support.amax(1)
            self.support = union if self.support is None else self.support.maximum(union)

    def block(self, buffers: Tensor) -> _Block:
        """The rows as a block of their own, with their logarithms."""
        assert self.rows is not None
        assert isinstance(self.contributing, Tensor)
        m = self.rows.shape[-1]
        rows = self.rows.div_(self.contributing.clamp_min(1).unsqueeze(-1))
        logarithms = torch.log(rows, out=buffers[0, : rows.numel()].view_as(rows))
        count = wide(rows.new_full((1,), m)) if self.support is None else wide(self.support).sum(-1)
        return _Block(logarithms, rows, rows.sum(-1), Seen(self.support, count), rows.new_zeros(len(rows)))


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

    def add(self, block: _Block, entropy: Tensor | None) -> None:
        """Add a block of rows, which is spent."""
        weights, sight = block.weights, block.seen
        present = sight.present.expand(block.mass.shape)
        self.total += block.mass.shape[-1]
        self.rows += present.sum(-1)
        self.reach = self.reach.maximum(block.reach)
        norm = torch.linalg.vector_norm(weights, dim=-1)
        inverse = torch.where(present, 1 / norm, 0.0)
        if entropy is not None:
            self._add_shape(block, norm, present, entropy)
        residual = weights.addcmul_(norm.unsqueeze(-1), self.shift.unsqueeze(-2), value=-1)
        self.drift += inverse.unsqueeze(-2) @ residual
        self.squares += wide(torch.linalg.vector_norm(residual, dim=-1) * inverse).square().sum(-1)

    def _add_shape(self, block: _Block, norm: Tensor, present: Tensor, entropy: Tensor) -> None:
        sight, count = block.seen, block.seen.count
        several = (count > 1).expand(present.shape)
        self.entropies += several.sum(-1)
        self.entropy += torch.where(several, entropy / count.log(), 0.0).sum(-1)
        self.n_eff += torch.where(present, (wide(block.mass) / wide(norm)).square(), 0.0).sum(-1)
        inverse = torch.where(present, 1 / block.mass, 0.0)
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
        )
