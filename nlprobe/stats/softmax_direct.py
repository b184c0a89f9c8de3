"""Softmax maps in few passes: for rows that differ enough, between and within them, that float32 loses no digits."""

import math

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

NEAR_EVEN = 1.0
"""Largest logit by magnitude up to which weights are held as their differences from 1."""

SHORT = 400
"""Length up to which torch multiplies pairs of rows by itself, and faster than it multiplies and adds."""


def direct_statistics(
    logits: Logits, masked: bool, distance_only: bool, prefix: int, wanted: Tensor, average: Tensor | None
) -> list[tuple[Found, Found | None]]:
    """Statistics of chosen maps ω_i = softmax_j(s_ij), and of their mean over the heads, from float32 weights.

    With w_ij = exp(s_ij), r_i = ‖w_i‖, z_i = Σ_j w_ij, and the residuals p_i = (w_i − z_i/M)/r_i of the unit rows from
    the flat one, whose part along it is α_i = √(1 − ‖p_i‖²): avg_dist = ½ (mean‖p_i‖² − ‖mean p_i‖² + var α_i),
    ‖c_i‖² = (r_i/z_i)² − 1/|S_i|, mean_i c_i = mean_i ω_i − mean_i 1_{S_i}/|S_i|, H_i = log z_i − Σ_j w_ij s_ij/z_i.
    Rows of products with centred keys have the mean 0, so that z_i ≥ M: w_ij = 1 + e_ij, and what is summed are the
    e_i, as also where no logit exceeds `NEAR_EVEN`. Residuals and c_i, which a constant does not change, then keep
    their digits however even the maps are. Under masks and large biases w_ij itself is summed, the row's largest logit
    taken off unless logits are bounded by `BOUNDED_BELOW`; where rows are alike or even, what comes out is then to be
    discarded, as it is where weights overflow (`softmax_trust`).

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
    room = block_elements(logits.device) * (6 if m < SHORT else 2)
    plan = layout(logits.shape, room)
    buffers = torch.empty(3, math.prod(plan.largest) * m, device=logits.device)
    # the mean over the heads is one head more
    maps = _Maps(
        (s, h + (average is not None), n, m),
        masked=masked,
        distance_only=distance_only,
        prefix=prefix,
        device=logits.device,
    )
    for groups, with_mean in wanted_groups(logits, masked, plan, wanted, average, torch.float32):
        _measure(groups, plan.rows, buffers, maps, with_mean)
    return [(found.of_heads(slice(0, h)), None if average is None else found.of_heads(h)) for found in maps.found()]


def _measure(groups: HeadGroups, rows: list[slice], buffers: Tensor, maps: "_Maps", with_mean: bool) -> None:
    plain = groups.plain and not groups.masked
    bounds = (
        [math.inf] * len(groups.heads) if plain else [float(_bound(groups, heads).amax()) for heads in groups.heads]
    )
    # rows of plain logits have the mean 0: z_i ≥ M, and no sum over e_i = w_i − 1 cancels, however large some are
    offset = plain or (max(bounds) <= NEAR_EVEN and not groups.masked)
    last = maps.offset.shape[1] - 1
    for span in rows:
        mean = HeadMean(buffers[2], offset)
        for heads, bound in zip(groups.heads, bounds, strict=True):
            logits, seen = groups.fill(heads, span, buffers[0])
            at = (groups.sets, heads)
            maps.offset[at] = float(offset)
            bounded = plain or bound < BOUNDED_BELOW
            if not bounded:
                maps.reach[at] = maps.reach[at].maximum(_take_off_largest(logits, seen, groups.masked))
            elif not plain:
                maps.reach[at] = bound
            # in place where the logits are not asked for again: one stream of memory less
            memory = buffers[0 if maps.distance_only else 1]
            weights = torch.exp(logits, out=memory[: logits.numel()].view_as(logits))
            if offset:
                weights.sub_(1)
            if not maps.distance_only and (groups.masked or not bounded):
                logits.clamp_min_(LOWEST_LOGIT)  # 0 · −∞ is not a number
            mass = maps.add(at, span, logits, weights, seen, offset, plain=plain)
            if with_mean:
                mean.add(weights, mass, seen)
        if with_mean:
            weights, seen = mean.finish()
            memory = buffers[0, : weights.numel()].view_as(weights)
            logits = torch.log1p(weights, out=memory) if offset else torch.log(weights, out=memory)
            at = (groups.sets, slice(last, last + 1))
            maps.offset[at] = float(offset)
            logits, weights = logits.clamp_min_(2 * LOWEST_LOGIT).unsqueeze(1), weights.unsqueeze(1)
            maps.add(at, span, logits, weights, seen.of_one_head(), offset, plain=False)


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
    """What the passes over blocks of rows leave of a number of maps, (…, n, m): a few numbers a row, and mean rows.

    The rows are e_ij = w_ij − 1 where `offset` is 1, and w_ij where it is 0.
    """

    def __init__(
        self, shape: tuple[int, ...], *, masked: bool, distance_only: bool, prefix: int, device: torch.device
    ) -> None:
        *batch, n, m = shape
        self.distance_only, self.prefix = distance_only, prefix
        self.rows = torch.ones(2, *batch, n, device=device)  # ‖e_i‖, Σ_j e_ij
        self.products = torch.zeros(*batch, n, device=device)  # Σ_j w_ij s_ij
        self.count = torch.full((*batch, n) if masked else (1,), m, dtype=torch.float64, device=device)  # |S_i|
        # Σ_i e_i/r_i and Σ_i e_i/z_i, over all rows and over the prefix
        parts = 2 if prefix else 1
        self.sums = torch.zeros(parts, *batch, 1 if distance_only else 2, m, dtype=torch.float64, device=device)
        self.even = torch.zeros(
            parts, *batch, m if masked else 0, dtype=torch.float64, device=device
        )  # Σ_i 1_{S_i}/|S_i|
        self.reach, self.offset = torch.zeros(2, *batch, device=device)

    def add(
        self,
        at: tuple[slice, ...],
        rows: slice,
        logits: Tensor,
        weights: Tensor,
        seen: Seen,
        offset: bool,
        *,
        plain: bool,
    ) -> Tensor:
        """Add a block of rows (…, r, m) of the maps at `at`; spends the logits, returns the rows' sums z_i.

        Args:
            at: Which maps.
            rows: Which rows of them.
            logits: s_ij.
            weights: e_ij.
            seen: The supports.
            offset: Whether the weights are w_ij − 1.
            plain: Whether each row of the logits sums to zero.
        """
        m = weights.shape[-1]
        norm, total = (part[at][..., rows] for part in self.rows)
        torch.linalg.vector_norm(weights, dim=-1, out=norm)
        torch.sum(weights, -1, out=total)
        mass, length = total, norm
        if offset:
            mass, length = total + m, (norm.square() + (2 * total + m)).sqrt_()
        if not self.distance_only:
            self._add_products(self.products[at][..., rows], logits, weights, offset and not plain)
        factors = torch.stack((length,) if self.distance_only else (length, mass), -2).reciprocal_()
        if seen.support is not None:
            self._add_support(at, rows, seen)
            factors = torch.where(seen.present.unsqueeze(-2), factors, 0.0)
        self.sums[0][at] += factors @ weights
        before = self.prefix - rows.start
        if before > 0:
            self.sums[1][at] += factors[..., :before] @ weights[..., :before, :]
        return mass

    def _add_products(self, out: Tensor, logits: Tensor, weights: Tensor, with_ones: bool) -> None:
        m = logits.shape[-1]
        ones = logits.sum(-1) if with_ones else 0.0
        if m < SHORT:
            out.copy_(torch.bmm(weights.view(-1, 1, m), logits.view(-1, m, 1)).view(out.shape))
        else:
            torch.sum(logits.mul_(weights), -1, out=out)
        out += ones

    def _add_support(self, at: tuple[slice, ...], rows: slice, seen: Seen) -> None:
        assert seen.support is not None
        count = self.count[at][..., rows]
        count.copy_(seen.count)
        if not self.distance_only:
            inverse = torch.where(seen.present, 1 / seen.count, 0.0).to(seen.support.dtype).unsqueeze(-2)
            # one row of the support may stand for all
            repeated = count.shape[-1] // seen.support.shape[-2]
            self.even[0][at] += wide(inverse @ seen.support).squeeze(-2) * repeated
            before = min(self.prefix - rows.start, count.shape[-1])
            if before > 0 and repeated == 1:
                self.even[1][at] += wide(inverse[..., :before] @ seen.support[..., :before, :]).squeeze(-2)
            elif before > 0:
                self.even[1][at] += wide(inverse @ seen.support).squeeze(-2) * before

    def found(self) -> list[Found]:
        """The statistics of all rows, and with a prefix of those after it."""
        m, masked = self.sums.shape[-1], self.count.dim() > 1
        offset = wide(self.offset).unsqueeze(-1)
        norm, total = wide(self.rows)
        present = (self.count > 0).expand_as(total)
        square = norm.square()
        mass, length = total + offset * m, square + offset * (2 * total + m)  # z_i, r_i²
        apart = torch.where(present, (square - total.square() / m) / length, 0.0)  # ‖p_i‖²
        along = (1 - apart).clamp_min(0).sqrt()
        columns = [present, apart, along, total * length.rsqrt() / m]
        if not self.distance_only:
            n_eff = mass.square() / length
            uneven = (square - total.square() / m) / mass.square() if not masked else 1 / n_eff - 1 / self.count
            entropy = (mass.log() - wide(self.products) / mass) / self.count.log()
            several = (self.count > 1).expand_as(present)
            columns += [n_eff, uneven, uneven * self.count, entropy, several, total / mass / m]
        if masked:
            columns = [torch.where(present, column, 0.0) for column in columns]
            if not self.distance_only:
                columns[7] = torch.where(several, columns[7], 0.0)
        parts = [(_sums(columns), self.sums[0], self.even[0])]
        if self.prefix:
            first = _sums([column[..., : self.prefix] for column in columns])
            parts.append((parts[0][0] - first, self.sums[0] - self.sums[1], self.even[0] - self.even[1]))
        sizes = (total.shape[-1], total.shape[-1] - self.prefix)
        # ‖w_i‖ is no less than the largest weight of a row
        reach = torch.maximum(self.reach, torch.where(self.offset > 0, 0.5 * length.log().amax(-1), 0.0))
        # the variance of α is a small difference: from the rows themselves
        spread = [along[..., start:] for start in (0, self.prefix)]
        return [
            self._statistics(sums, vectors, even, size, _variance(one, present[..., size_at:]), reach)
            for (sums, vectors, even), size, one, size_at in zip(parts, sizes, spread, (0, self.prefix), strict=False)
        ]

    def _statistics(
        self, sums: Tensor, vectors: Tensor, even: Tensor, size: int, variance: Tensor, reach: Tensor
    ) -> Found:
        n = sums[0]
        found = Found.unknown(n.shape, n.device)
        mean = (vectors[..., 0, :] - sums[3].unsqueeze(-1)) / n.unsqueeze(-1)
        apart = sums[1] / n
        found.distance.copy_(0.5 * (apart - mean.square().sum(-1) + variance))
        found.zero_rows.copy_(size - n)
        found.reach.copy_(reach)
        found.offset.copy_(self.offset)
        found.level.copy_(torch.where(self.offset > 0, 0.5 * apart, 0.5))
        if self.distance_only:
            return found
        flat = even if even.shape[-1] else sums[9].unsqueeze(-1)
        mean_uneven = (vectors[..., 1, :] - flat) / n.unsqueeze(-1)
        found.n_eff.copy_(sums[4] / n)
        found.unevenness.copy_(sums[5] / n)
        found.variation.copy_(sums[6] / n)
        found.entropy.copy_(sums[7] / sums[8])
        found.mean_unevenness.copy_(mean_uneven.square().sum(-1))
        return found


def _sums(columns: list[Tensor]) -> Tensor:
    return torch.stack([wide(column.sum(-1)) for column in columns])


def _variance(along: Tensor, present: Tensor) -> Tensor:
    count = present.sum(-1, keepdim=True)
    mean = torch.where(present, along, 0.0).sum(-1, keepdim=True) / count
    return torch.where(present, along - mean, 0.0).square().sum(-1) / count.squeeze(-1)
