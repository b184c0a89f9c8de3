"""How the blocks of softmax maps are laid out, which keys their queries see, and what is found about the maps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from nlprobe.stats.logits import Logits, PreparedLogits
from nlprobe.stats.masks import Rows
from nlprobe.stats.streaming import spans, wide

LEAST_ROWS = 64
"""Rows of one head in a block, whatever their length: fewer make poor products."""

KEY_BYTES = 1 << 25
"""Size of the keys of several heads that are kept for all blocks of queries; more are laid out anew for each block."""


@dataclass(frozen=True)
class Found:
    """What is known of some maps, in float64, over the rows that are not zero; c_i = a_i − 1_{S_i}/|S_i|.

    Attributes:
        distance: Average cosine distance; NaN where all rows are zero.
        zero_rows: How many rows see no key.
        entropy: Mean of H_i / log|S_i| over the rows that see more than one key.
        n_eff: mean_i 1/‖a_i‖².
        mean_unevenness: ‖mean_i c_i‖².
        unevenness: mean_i ‖c_i‖².
        variation: mean_i |S_i|·‖c_i‖², the squared coefficient of variation within rows.
        reach: The largest magnitude of a row's largest logit, the keys centred; 0 for the mean over heads.
        level: Of what the distance is a difference: ½ where unit rows were summed, less where their residuals were.
        offset: 1 where weights were held as e_ij = w_ij − 1, 0 where as w_ij.
    """

    distance: Tensor
    zero_rows: Tensor
    entropy: Tensor
    n_eff: Tensor
    mean_unevenness: Tensor
    unevenness: Tensor
    variation: Tensor
    reach: Tensor
    level: Tensor
    offset: Tensor

    @staticmethod
    def unknown(shape: tuple[int, ...], device: torch.device) -> "Found":
        """NaN throughout."""
        return Found(*torch.full((len(fields(Found)), *shape), math.nan, dtype=torch.float64, device=device))

    def of_heads(self, heads: slice | int) -> "Found":
        """What is known of some heads of (s, h) maps, or of one, (s,)."""
        return Found(*(value[:, heads] for value in vars(self).values()))

    def put(self, where: tuple[slice, ...], part: "Found") -> None:
        """Write the values of some of the maps."""
        for name, value in vars(part).items():
            getattr(self, name)[where] = value

    def replaced(self, where: Tensor, other: "Found") -> "Found":
        """With the other's values where `where` holds."""
        return Found(*(torch.where(where, vars(other)[name], value) for name, value in vars(self).items()))


@dataclass(frozen=True)
class Seen:
    """The supports S_i of a block of rows.

    Attributes:
        support: 1 where a key is seen and 0 where it is hidden, (…, r, m) or broadcast to it; None where all are seen.
        count: |S_i| in float64, (…, r) or broadcast to it.
    """

    support: Tensor | None
    count: Tensor

    @property
    def present(self) -> Tensor:
        """Whether a row sees any key."""
        return self.count > 0

    def of_one_head(self) -> "Seen":
        """The same of rows (…, 1, r, m), one head each."""
        support = None if self.support is None else self.support.unsqueeze(1)
        return Seen(support, self.count if self.count.dim() == 1 else self.count.unsqueeze(1))


@dataclass(frozen=True)
class Layout:
    """A way to walk over the maps: groups of sets, then blocks of queries, then groups of heads, at least one each.

    Attributes:
        sets: Ranges of sets.
        rows: Ranges of queries.
        heads: Ranges of heads.
    """

    sets: list[slice]
    rows: list[slice]
    heads: list[slice]

    @property
    def largest(self) -> tuple[int, int, int]:
        """Sets, heads and rows of the largest block."""
        return _longest(self.sets), _longest(self.heads), _longest(self.rows)


def layout(shape: tuple[int, int, int, int], room: int) -> Layout:
    """Blocks of at most `room` numbers, or of `LEAST_ROWS` rows of one head where these do not fit.

    Whole sets share a block where they fit, then the heads of one set, then rows of some heads.
    """
    s, h, n, m = shape
    sets = list(spans(s, room // max(1, h * n * m)))
    rows = min(n, LEAST_ROWS)
    heads = list(spans(h, room // max(1, rows * m)))
    taken = _longest(sets) * _longest(heads) * m
    return Layout(sets, list(spans(n, max(rows, room // max(1, taken)))), heads)


def hides(logits: Logits) -> bool:
    """Whether any key is hidden from any query; reads the mask, or logits that are given, once."""
    if logits.given is not None and logits.given.numel():
        return bool(logits.given.amin() == -math.inf) or (
            logits.mask is not None and logits.mask.hides(*logits.shape[2:])
        )
    return logits.mask is not None and logits.mask.hides(*logits.shape[2:])


def is_plain(logits: Logits) -> bool:
    """Whether the rows of logits sum to zero once the keys are centred: products, and nothing added."""
    return logits.given is None and (logits.mask is None or logits.mask.bias is None)


def all_seen(block: Tensor) -> Seen:
    """Supports that hold every key of a block (…, m)."""
    return Seen(None, torch.full((1,), block.shape[-1], dtype=torch.float64, device=block.device))


@dataclass
class HeadGroups:
    """Some sets with some of their heads, whose logits are formed block by block.

    Attributes:
        logits: All logits.
        sets: Which sets.
        heads: Ranges of heads.
        masked: Whether any key is hidden from any query.
        dtype: Of products and weights.
    """

    logits: Logits
    sets: slice
    heads: list[slice]
    masked: bool
    dtype: torch.dtype
    _prepared: dict[int, PreparedLogits] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether the rows of logits sum to zero: products with centred keys, and nothing added."""
        return is_plain(self.logits)

    def fill(self, heads: slice, rows: Rows, memory: Tensor) -> tuple[Tensor, Seen]:
        """The logits (g, hh, r, m) of some heads and queries, in the memory given, and what the queries see."""
        g, hh, m = self.sets.stop - self.sets.start, heads.stop - heads.start, self.logits.shape[3]
        r = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        block = memory[: g * hh * r * m].view(g, hh, r, m)
        self.prepared(heads).fill(rows, block)
        return block, self._seen(heads, rows, block)

    def prepared(self, heads: slice) -> PreparedLogits:
        """The keys of some heads, centred; kept for the next block if those of all heads together are small."""
        if heads.start in self._prepared:
            return self._prepared[heads.start]
        prepared = self.logits.prepare(self.sets, heads, self.dtype, centred=True)
        size = 0 if prepared.key is None else prepared.key.numel() * prepared.key.element_size()
        if size * len(self.heads) <= KEY_BYTES:
            self._prepared[heads.start] = prepared
        return prepared

    def _seen(self, heads: slice, rows: Rows, block: Tensor) -> Seen:
        support = None
        if self.masked and self.logits.given is not None:
            support = block != -torch.inf
        elif self.masked:
            assert self.logits.mask is not None
            support = self.logits.mask.support(self.sets, heads, rows, block.shape[-1], block.device)
        if support is None:
            return all_seen(block)
        return Seen(support.to(block.dtype), wide(support.sum(-1)))


class HeadMean:
    """The sum over heads of a block's rows w_i/z_i, (g, r, m), added up in the memory given.

    It is the mean over the heads that see any key, but for a factor by row, which changes none of the statistics.
    With w_ij = 1 + e_ij it is Σ_h 1/z_i · (1 + e'_ij), e' the mean of e weighted with 1/z_i: again of that form.
    """

    def __init__(self, memory: Tensor, offset: bool = False) -> None:
        self._memory = memory
        self._offset = offset
        self._started = False
        self._support: Tensor | None = None
        self._factors: Tensor | None = None
        self._shape = (0, 0, 0)

    def add(self, weights: Tensor, mass: Tensor, seen: Seen) -> None:
        """Add the weights w_ij, or e_ij, of some heads (g, hh, r, m) with the sums z_i of the weights (g, hh, r)."""
        g, hh, r, m = weights.shape
        self._shape = (g, r, m)
        inverse = mass.reciprocal() if seen.support is None else torch.where(seen.present, 1 / mass, 0.0)
        if self._offset:
            factors = inverse.sum(1)
            self._factors = factors if self._factors is None else self._factors + factors
        rows = self._memory[: g * r * m].view(g, r, m)
        for image in range(g):
            if hh == 1:
                factor = inverse[image, 0].unsqueeze(-1)
                if self._started:
                    rows[image].addcmul_(weights[image, 0], factor)
                else:
                    torch.mul(weights[image, 0], factor, out=rows[image])
            else:
                by_query = inverse[image].mT.contiguous().unsqueeze(1)
                rows[image].unsqueeze(1).baddbmm_(
                    by_query, weights[image].transpose(0, 1), beta=1 if self._started else 0
                )
        self._started = True
        if seen.support is not None:
            union = seen.support.amax(1)
            self._support = union if self._support is None else self._support.maximum(union)

    def finish(self) -> tuple[Tensor, Seen]:
        """The rows, or e' where there is an offset, and the union of what the heads see."""
        g, r, m = self._shape
        rows = self._memory[: g * r * m].view(g, r, m)
        if self._factors is not None:
            rows.div_(self._factors.unsqueeze(-1))
        return rows, all_seen(rows) if self._support is None else Seen(self._support, wide(self._support).sum(-1))


def _longest(ranges: list[slice]) -> int:
    return max((part.stop - part.start for part in ranges), default=1)


def wanted_groups(
    logits: Logits, masked: bool, plan: Layout, wanted: Tensor, average: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[HeadGroups, bool]]:
    """The sets and heads that are wanted, in groups, each with whether the mean over the heads is.

    Args:
        logits: The logits.
        masked: Whether any key is hidden from any query.
        plan: The groups.
        wanted: Which maps, (s, h).
        average: Of which sets the mean over the heads, (s,); None for no means.
        dtype: Of products and weights.
    """
    for sets in plan.sets:
        with_mean = average is not None and bool(average[sets].any())
        heads = [span for span in plan.heads if with_mean or bool(wanted[sets, span].any())]
        if heads:
            yield HeadGroups(logits, sets, heads, masked, dtype), with_mean
