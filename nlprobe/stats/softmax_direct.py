"""Softmax maps in few passes: for rows that differ enough, between and within them, that float32 loses no digits."""

import math

import torch
from torch import Tensor

from nlprobe.stats.logits import Logits
from nlprobe.stats.softmax_blocks import Found, HeadGroups, HeadMean, Layout, Seen, layout, wanted_groups
from nlprobe.stats.streaming import block_elements, wide

BOUNDED_BELOW = 36.0
"""Largest logit by magnitude whose exponential, its square, and the sum of these over a row float32 can hold."""

LOWEST_LOGIT = -40.0
"""Logit below a row's largest at which a weight is taken for 0: its square would be a denormal number, with which
processors compute many times slower."""

NEAR_EVEN = 1.0
"""Largest logit by magnitude up to which weights are held as their differences from 1."""


def direct_statistics(logits: Logits, masked: bool, distance_only: bool, prefix: int, wanted: Tensor) -> list[Found]:
    """Statistics of chosen maps ω_i = softmax_j(s_ij), and of their mean over the heads, from float32 weights.

    With w_ij = exp(s_ij), r_i = ‖w_i‖, z_i = Σ_j w_ij, and the residuals p_i = (w_i − z_i/M)/r_i of the unit rows from
    the flat one, whose part along it is α_i = √(1 − ‖p_i‖²): avg_dist = ½ (mean‖p_i‖² − ‖mean p_i‖² + var α_i),
    ‖c_i‖² = (r_i/z_i)² − 1/|S_i|, mean_i c_i = mean_i ω_i − mean_i 1_{S_i}/|S_i|, H_i = log z_i − Σ_j w_ij s_ij/z_i.
    Rows of products with centred keys have the mean 0, so that z_i ≥ M: w_ij = 1 + e_ij, and what is summed are the
    e_i, as also where no logit exceeds `NEAR_EVEN`. Residuals and c_i, which a constant does not change, then keep
    their digits however even the maps are. Under masks and large biases w_ij itself is summed, the row's largest logit
    taken off unless logits are bounded by `BOUNDED_BELOW`; where rows are alike or even, what comes out is then to be
    discarded, as it is where weights overflow (`softmax_trust`).

    O(N·M·d) time; memory of three blocks of rows, and of one copy of the keys of some sets and heads.

    Args:
        logits: The logits.
        masked: Whether any key is hidden from any query.
        distance_only: Leave all but the distance out (NaN).
        prefix: Measure the rows after so many once more without these; 0 for no second measurement.
        wanted: Which maps, (s, h), or (s, h + 1) with the mean over the heads.

    Returns:
        What is found of each set and head, and of the mean over the heads, as `wanted`, with no meaning where it is
        not wanted; of all rows, and with a prefix of those after it.
    """
    plan = layout(logits, 2 * block_elements(logits.device))
    n, m = logits.shape[2:]
    buffers = torch.empty(3, plan.largest * m, device=logits.device)
    maps = _Maps((*wanted.shape, n, m), masked, distance_only, prefix, logits.device)
    for groups, with_mean in wanted_groups(logits, masked, plan.groups, plan.heads, wanted, torch.float32):
        _measure(groups, plan, buffers, maps, with_mean)
    return maps.found()


def _measure(groups: HeadGroups, plan: Layout, buffers: Tensor, maps: "_Maps", with_mean: bool) -> None:
    plain = groups.plain and not groups.masked
    blocks = plan.blocks(groups.sets)
    bounds = [math.inf if plain else max(_bound(groups, sets, heads) for sets in blocks) for heads in groups.heads]
    # rows of plain logits have the mean 0: z_i ≥ M, and no sum over e_i = w_i − 1 cancels, however large some are
    offset = plain or (max(bounds) <= NEAR_EVEN and not groups.masked)
    maps.offset[groups.sets] = float(offset)
    for rows in plan.rows:
        mean = HeadMean(groups.sets, buffers[2], offset)
        for sets in blocks:
            for heads, bound in zip(groups.heads, bounds, strict=True):
                logits, seen = groups.fill(sets, heads, rows, buffers[0])
                reach = maps.reach[sets, heads]
                bounded = plain or bound < BOUNDED_BELOW
                if not bounded:
                    reach.copy_(reach.maximum(_take_off_largest(logits, seen, groups.masked)))
                elif not plain:
                    reach.fill_(bound)
                # in place where the logits are not asked for again: one stream of memory less
                memory = buffers[0 if maps.distance_only else 1]
                weights = torch.exp(logits, out=memory[: logits.numel()].view_as(logits))
                if offset:
                    weights.sub_(1)
                if not maps.distance_only and (groups.masked or not bounded):
                    logits.clamp_min_(LOWEST_LOGIT)  # 0 · −∞ is not a number
                inverse = maps.add((sets, heads, rows), logits, weights, seen, offset, plain=plain)
                if with_mean:
                    mean.add(sets, weights, inverse, seen)
        if with_mean:
            weights, seen = mean.finish()
            memory = buffers[0, : weights.numel()].view_as(weights)
            logits = torch.log1p(weights, out=memory) if offset else torch.log(weights, out=memory)
            logits, weights = logits.clamp_min_(2 * LOWEST_LOGIT).unsqueeze(1), weights.unsqueeze(1)
            maps.add((groups.sets, maps.last, rows), logits, weights, seen.of_one_head(), offset, plain=False)


def _bound(groups: HeadGroups, sets: slice, heads: slice) -> float:
    """A bound of |s_ij| of some sets and heads: infinity where the logits are given."""
    logits = groups.logits
    key = groups.prepared(sets, heads).key
    if key is None or logits.query is None:
        return math.inf
    lengths = torch.linalg.vector_norm(key, dim=-1).amax(-1)
    query = torch.linalg.vector_norm(logits.query[sets, heads], dim=-1, dtype=torch.float32).amax(-1)
    bound = abs(logits.scale) * float((query.to(key.device).flatten() * lengths).amax())
    if logits.mask is not None and logits.mask.bias is not None:
        bias = logits.mask.bias
        bound += float(bias.masked_fill(bias <= logits.mask.hidden_below, 0).abs().amax())
    return bound


def _take_off_largest(logits: Tensor, seen: Seen, masked: bool) -> Tensor:
    """Subtract each row's largest logit in place; returns the largest magnitude of these, (g, hh)."""
    largest = logits.amax(-1, keepdim=True)
    if masked:
        largest = torch.where(seen.present.unsqueeze(-1), largest, 0.0)
    torch.threshold_(logits.sub_(largest), LOWEST_LOGIT, -math.inf)
    return largest.abs().amax((-2, -1))


class _Maps:
    """What the passes over blocks of rows leave of a number of maps, (s, h, n, m): a few numbers a row, and mean rows.

    The rows are e_ij = w_ij − 1 where `offset` is 1, and w_ij where it is 0.
    """

    def __init__(
        self, shape: tuple[int, ...], masked: bool, distance_only: bool, prefix: int, device: torch.device
    ) -> None:
        s, h, n, m = shape
        self.distance_only, self.prefix, self.masked = distance_only, prefix, masked
        self.rows = torch.ones(3, s, h, n, device=device)  # ‖e_i‖, Σ_j e_ij, Σ_j w_ij s_ij
        # Σ_i e_i/r_i and Σ_i e_i/z_i, over the rows after the prefix, and over the prefix
        parts, vectors = 2 if prefix else 1, 1 if distance_only else 2
        self.sums = torch.zeros(parts, s, h, vectors, m, dtype=torch.float64, device=device)
        self.reach, self.offset = torch.zeros(2, s, h, device=device)
        if masked:
            self.count = torch.full((s, h, n), m, dtype=torch.float64, device=device)  # |S_i|
            self.even = torch.zeros(parts, s, h, m, dtype=torch.float64, device=device)  # Σ_i 1_{S_i}/|S_i|
        self.last = slice(h - 1, h)

    def add(
        self,
        at: tuple[slice, slice, slice],
        logits: Tensor,
        weights: Tensor,
        seen: Seen,
        offset: bool,
        *,
        plain: bool,
    ) -> Tensor:
        """Add a block of rows (g, hh, r, m); spends the logits, returns 1/z_i of the rows, or 0 where nothing is seen.

        Args:
            at: Which sets, heads, and rows of them.
            logits: s_ij.
            weights: e_ij.
            seen: The supports.
            offset: Whether the weights are w_ij − 1.
            plain: Whether each row of the logits sums to zero.
        """
        m = weights.shape[-1]
        norm, total, expected = self.rows[:, *at]
        torch.linalg.vector_norm(weights, dim=-1, out=norm)
        torch.sum(weights, -1, out=total)
        factors = norm.new_empty(*norm.shape[:2], 2, norm.shape[2])
        length, mass = factors.unbind(-2)
        if offset:
            torch.add(total, m, out=mass)
            torch.add(mass, total, out=length).addcmul_(norm, norm).sqrt_()
        else:
            length.copy_(norm)
            mass.copy_(total)
        factors.reciprocal_()
        if not self.distance_only:
            ones = logits.sum(-1) if offset and not plain else None
            torch.sum(logits.mul_(weights), -1, out=expected)
            if ones is not None:
                expected.add_(ones)
        if seen.support is not None:
            self._add_support(at, seen)
            factors.masked_fill_(~seen.present.unsqueeze(-2), 0.0)
        self._add_vectors(at, factors[:, :, :1] if self.distance_only else factors, weights)
        return mass

    def _add_vectors(self, at: tuple[slice, slice, slice], factors: Tensor, weights: Tensor) -> None:
        sets, heads, rows = at
        factors, weights = factors.flatten(0, 1), weights.flatten(0, 1)
        before = min(max(self.prefix - rows.start, 0), weights.shape[1])
        rest = self.sums[0, sets, heads]
        rest.add_(torch.bmm(factors[..., before:], weights[:, before:]).view_as(rest))
        if before:
            first = self.sums[1, sets, heads]
            first.add_(torch.bmm(factors[..., :before], weights[:, :before]).view_as(first))

    def _add_support(self, at: tuple[slice, slice, slice], seen: Seen) -> None:
        assert seen.support is not None
        sets, heads, rows = at
        count = self.count[at]
        count.copy_(seen.count)
        if self.distance_only:
            return
        inverse = torch.where(seen.present, 1 / seen.count, 0.0).to(seen.support.dtype).unsqueeze(-2)
        before = min(max(self.prefix - rows.start, 0), count.shape[-1])
        after = count.shape[-1] - before
        if seen.support.shape[-2] == 1:  # one row of the support stands for all
            row = wide(inverse @ seen.support).squeeze(-2)
            self.even[0, sets, heads] += row * after
            if before:
                self.even[1, sets, heads] += row * before
            return
        self.even[0, sets, heads] += wide(inverse[..., before:] @ seen.support[..., before:, :]).squeeze(-2)
        if before:
            self.even[1, sets, heads] += wide(inverse[..., :before] @ seen.support[..., :before, :]).squeeze(-2)

    def found(self) -> list[Found]:
        """The statistics of all rows, and with a prefix of those after it."""
        n = self.rows.shape[-1]
        columns = self._columns()
        sums = columns[..., self.prefix :].sum(-1, dtype=torch.float64)
        vectors, even = self.sums[0], self.even[0] if self.masked else None
        found = []
        if self.prefix:
            found.append(self._statistics(sums, vectors, even, n - self.prefix))
            sums = sums + columns[..., : self.prefix].sum(-1, dtype=torch.float64)
            vectors, even = self.sums.sum(0), self.even.sum(0) if self.masked else None
        return [self._statistics(sums, vectors, even, n), *found]

    def _columns(self) -> Tensor:
        """Of each row ‖p_i‖², 1 − α_i, its square; (z_i/r_i)², ‖c_i‖², H_i; |S_i|·‖c_i‖², and what is counted."""
        m = self.sums.shape[-1]
        # with hidden keys ‖c_i‖² is the small difference of (r_i/z_i)² and 1/|S_i|
        norm, total, expected = wide(self.rows) if self.masked else self.rows
        offset = self.offset.unsqueeze(-1)
        square = norm.square()
        mass = total + offset * m
        length = square + offset * (mass + total)
        self.reach = torch.maximum(self.reach, self.offset * 0.5 * length.amax(-1).log())
        residual = square.addcmul_(total, total, value=-1 / m)
        apart = residual / length
        # 1 − √(1 − x) = x / (1 + √(1 − x))
        along = apart / (1 + (1 - apart).clamp_min_(0).sqrt_())
        columns = [apart, along, along.square()]
        if not self.distance_only:
            n_eff = mass.square().div_(length)
            uneven = residual / mass.square() if not self.masked else 1 / n_eff - 1 / self.count
            columns += [n_eff, uneven, mass.log() - expected / mass]
        if not self.masked:
            return torch.stack(columns)
        present, several = self.count > 0, self.count > 1
        if not self.distance_only:
            columns[-1] = torch.where(several, columns[-1] / self.count.log(), 0.0)
            columns += [columns[-2] * self.count, several.double()]
        return torch.where(present, torch.stack([*columns, present.double()]), 0.0)

    def _statistics(self, sums: Tensor, vectors: Tensor, even: Tensor | None, size: int) -> Found:
        """From the sums over the rows: of the columns, of e_i/r_i and e_i/z_i, and of 1_{S_i}/|S_i|."""
        m = vectors.shape[-1]
        n = torch.full_like(sums[0], size) if even is None else sums[-1]
        means = sums / n
        # less their means, which are those of the rows' parts along the flat row
        squares = (vectors.square().sum(-1) - vectors.sum(-1).square() / m) / n.square().unsqueeze(-1)
        apart, along, along_square = means[:3]
        found = Found.unknown(n.shape, n.device)
        found.distance.copy_(0.5 * (apart - squares[..., 0] + along_square - along.square()))
        found.zero_rows.copy_(size - n)
        found.reach.copy_(self.reach)
        found.offset.copy_(self.offset)
        found.level.copy_(torch.where(self.offset > 0, 0.5 * apart, 0.5))
        if self.distance_only:
            return found
        found.n_eff.copy_(means[3])
        found.unevenness.copy_(means[4])
        if even is None:
            found.entropy.copy_(means[5] / (math.log(m) if m > 1 else math.nan))
            found.variation.copy_(means[4] * m)
            found.mean_unevenness.copy_(squares[..., 1])
        else:
            found.entropy.copy_(sums[5] / sums[7])
            found.variation.copy_(means[6])
            found.mean_unevenness.copy_(((vectors[..., 1, :] - even) / n.unsqueeze(-1)).square().sum(-1))
        return found
