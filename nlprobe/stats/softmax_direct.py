"""Softmax maps in few passes: for rows that differ enough, between and within them, that float32 loses no digits."""

import math
from functools import partial

import torch
from torch import Tensor

from nlprobe.stats.logits import Logits
from nlprobe.stats.softmax_blocks import Found, HeadGroups, HeadMean, Seen, layout, wanted_groups
from nlprobe.stats.streaming import block_elements, wide

BOUNDED_BELOW = 36.0
"""Largest logit by magnitude whose exponential, its square, and the sum of these over a row float32 can hold."""

LOWEST_LOGIT = -40.0
"""Logit below a row's largest at which a weight is taken for 0: its square would be a denormal number, with which
processors compute many times slower."""

SHORT = 400
"""Length up to which torch multiplies pairs of rows by itself, and faster than it multiplies and adds."""


def direct_statistics(
    logits: Logits, masked: bool, distance_only: bool, prefix: int, wanted: Tensor, average: Tensor | None
) -> list[tuple[Found, Found | None]]:
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
        prefix: Measure the rows after so many once more without these; 0 for no second measurement.
        wanted: Which maps, (s, h).
        average: Of which sets the mean over the heads, (s,); None for no means.

    Returns:
        What is found of each set and head, (s, h), and of the sets' means, (s,), NaN where it is not wanted; of all
        rows, and with a prefix of those after it.
    """
    s, h, n, m = logits.shape
    room = block_elements(logits.device) * (4 if m < SHORT else 2)
    plan = layout(logits.shape, room)
    buffers = torch.empty(3, math.prod(plan.largest) * m, device=logits.device)
    empty = partial(_Maps, masked=masked, distance_only=distance_only, prefix=prefix, device=logits.device)
    maps = empty((s, h, n, m))
    means = empty((s, n, m)) if average is not None else None
    for groups, with_mean in wanted_groups(logits, masked, plan, wanted, average, torch.float32):
        _measure(groups, plan.rows, buffers, maps, means if with_mean else None)
    return [
        (maps.found(skipped), None if means is None else means.found(skipped))
        for skipped in ([False, True] if prefix else [False])
    ]


def _measure(groups: HeadGroups, rows: list[slice], buffers: Tensor, maps: "_Maps", means: "_Maps | None") -> None:
    bounds = []
    for heads in groups.heads:
        bound = _bound(groups, heads)
        bounds.append(bool(bound.amax() < BOUNDED_BELOW))
        maps.reach[groups.sets, heads] = bound if bounds[-1] else 0.0
    for span in rows:
        mean = HeadMean(buffers[2])
        for heads, bounded in zip(groups.heads, bounds, strict=True):
            logits, seen = groups.fill(heads, span, buffers[0])
            at = (groups.sets, heads)
            if not bounded:
                largest = _take_off_largest(logits, seen, groups.masked)
                maps.reach[at] = maps.reach[at].maximum(largest)
            # in place where the logits are not asked for again: one stream of memory less
            memory = buffers[0 if maps.distance_only else 1]
            weights = torch.exp(logits, out=memory[: logits.numel()].view_as(logits))
            if not maps.distance_only and (groups.masked or not bounded):
                logits.clamp_min_(LOWEST_LOGIT)  # 0 · −∞ is not a number
            mass = maps.add(at, span, logits, weights, seen)
            if means is not None:
                mean.add(weights, mass, seen)
        if means is not None:
            weights, seen = mean.finish()
            logits = torch.log(weights, out=buffers[0, : weights.numel()].view_as(weights))
            means.add((groups.sets,), span, logits.clamp_min_(2 * LOWEST_LOGIT), weights, seen)


def _bound(groups: HeadGroups, heads: slice) -> Tensor:
    """A bound of |s_ij|, (g, hh): infinity where the logits are given."""
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


class _Maps:
    """What the passes over blocks of rows leave of a number of maps, (…, n, m): a few numbers a row, and mean rows."""

    def __init__(
        self, shape: tuple[int, ...], *, masked: bool, distance_only: bool, prefix: int, device: torch.device
    ) -> None:
        *batch, n, m = shape
        self.distance_only, self.prefix = distance_only, prefix
        self.lengths = torch.ones(*batch, 1 if distance_only else 2, n, device=device)  # r_i, z_i
        self.products = torch.zeros(*batch, n, device=device)  # Σ_j w_ij s_ij
        self.count = torch.full((*batch, n) if masked else (1,), m, dtype=torch.float64, device=device)  # |S_i|
        # Σ_i w_i/r_i, Σ_i w_i/z_i
        self.directions = torch.zeros(*batch, 1 if distance_only else 2, m, dtype=torch.float64, device=device)
        self.even = torch.zeros(*batch, 1, m if masked else 1, dtype=torch.float64, device=device)  # Σ_i 1_{S_i}/|S_i|
        self.skipped = (torch.zeros_like(self.directions), torch.zeros_like(self.even))  # the part of the prefix
        self.reach = torch.zeros(batch, device=device)

    def add(self, at: tuple[slice, ...], rows: slice, logits: Tensor, weights: Tensor, seen: Seen) -> Tensor:
        """Add a block of rows (…, r, m) of the maps at `at`; spends the logits, returns the rows' sums z_i."""
        lengths = self.lengths[at][..., rows]
        torch.linalg.vector_norm(weights, dim=-1, out=lengths[..., 0, :])
        mass = lengths[..., -1, :]
        if self.distance_only:
            mass = weights.sum(-1)
        else:
            torch.sum(weights, -1, out=mass)
            self._add_products(self.products[at][..., rows], logits, weights)
        factors = lengths.reciprocal()
        if seen.support is not None:
            self._add_support(at, rows, seen)
            factors = torch.where(seen.present.unsqueeze(-2), factors, 0.0)
        self.directions[at] += factors @ weights
        before = self.prefix - rows.start
        if before > 0:
            self.skipped[0][at] += factors[..., :before] @ weights[..., :before, :]
        return mass

    def _add_products(self, out: Tensor, logits: Tensor, weights: Tensor) -> None:
        m = logits.shape[-1]
        if m < SHORT:
            out.copy_(torch.bmm(weights.view(-1, 1, m), logits.view(-1, m, 1)).view(out.shape))
        else:
            torch.sum(logits.mul_(weights), -1, out=out)

    def _add_support(self, at: tuple[slice, ...], rows: slice, seen: Seen) -> None:
        assert seen.support is not None
        count = self.count[at][..., rows]
        count.copy_(seen.count)
        if not self.distance_only:
            inverse = torch.where(seen.present, 1 / seen.count, 0.0).to(seen.support.dtype).unsqueeze(-2)
            # one row of the support may stand for all
            repeated = count.shape[-1] // seen.support.shape[-2]
            self.even[at] += wide(inverse @ seen.support) * repeated
            before = min(self.prefix - rows.start, count.shape[-1])
            if before > 0 and repeated == 1:
                self.skipped[1][at] += wide(inverse[..., :before] @ seen.support[..., :before, :])
            elif before > 0:
                self.skipped[1][at] += wide(inverse @ seen.support) * before

    def found(self, without_prefix: bool = False) -> Found:
        """The statistics of all rows, or of those after the prefix."""
        rows = slice(self.prefix if without_prefix else 0, None)
        products, lengths = self.products[..., rows], self.lengths[..., rows]
        total, count = products.shape[-1], self.count if self.count.dim() == 1 else self.count[..., rows]
        present, several = (torch.broadcast_to(count > least, products.shape) for least in (0, 1))
        n = wide(present.sum(-1))
        directions, even = self.directions, self.even
        if without_prefix:
            directions, even = directions - self.skipped[0], even - self.skipped[1]
        means = directions / n[..., None, None]
        found = Found.unknown(n.shape, n.device)
        found.distance.copy_(0.5 * (1 - means[..., 0, :].square().sum(-1)))
        found.zero_rows.copy_(total - n)
        found.reach.copy_(self.reach)
        if self.distance_only:
            return found
        norm, mass = wide(lengths).unbind(-2)
        n_eff = (mass / norm).square()
        uneven = torch.where(present, 1 / n_eff - 1 / count, 0.0)
        entropy = torch.where(several, (mass.log() - wide(products) / mass) / count.log(), 0.0)
        even = even if even.shape[-1] > 1 else (total / count)
        mean_uneven = means[..., 1, :] - (even / n[..., None, None]).squeeze(-2)
        found.entropy.copy_(entropy.sum(-1) / several.sum(-1))
        found.n_eff.copy_(torch.where(present, n_eff, 0.0).sum(-1) / n)
        found.mean_unevenness.copy_(mean_uneven.square().sum(-1))
        found.unevenness.copy_(uneven.sum(-1) / n)
        found.variation.copy_((uneven * count).sum(-1) / n)
        return found
