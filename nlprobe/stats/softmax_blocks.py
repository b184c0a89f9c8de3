"""How the blocks of softmax maps are laid out, which keys their queries see, and what is found about the maps."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property

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

    def __getitem__(self, where: int | slice | tuple[int | slice, ...]) -> "Found":
        """What is known of some of the maps."""
        return Found(*(value[where] for value in vars(self).values()))

    def put(self, where: tuple[slice | int, ...], part: "Found") -> None:
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
        if self.support is None:
            return self
        return Seen(self.support.unsqueeze(1), self.count.unsqueeze(1))


@dataclass(frozen=True)
class Layout:
    """A way to walk over the maps: groups of sets, in each of them blocks of queries, of these sets, then heads.

    Attributes:
        groups: Ranges of sets whose mean maps fit a block together, and whose keys are small.
        rows: Ranges of queries.
        sets: The most sets in a block.
        heads: Ranges of heads.
    """

    groups: list[slice]
    rows: list[slice]
    sets: int
    heads: list[slice]

    @property
    def largest(self) -> int:
        """Rows in the largest block, of logits or of mean maps."""
        return max(self.sets * _longest(self.heads), _longest(self.groups)) * _longest(self.rows)

    def blocks(self, group: slice) -> list[slice]:
        """Ranges of the sets of a group that share a block."""
        return [
            slice(group.start + part.start, group.start + part.stop)
            for part in spans(group.stop - group.start, self.sets)
        ]


def layout(logits: Logits, room: int) -> Layout:
    """Blocks of at most `room` numbers, or of `LEAST_ROWS` rows of one head where these do not fit.

    Whole sets share a block where they fit, then the heads of one set, then rows of some heads.
    """
    s, h, n, m = logits.shape
    rows = min(n, LEAST_ROWS)
    sets = max(1, min(s, room // max(1, h * n * m)))
    heads = list(spans(h, room // max(1, rows * m)))
    step = max(rows, room // max(1, sets * _longest(heads) * m))
    keys = 0 if logits.key is None else h * m * logits.key.shape[3] * torch.float32.itemsize
    together = min(room // max(1, min(step, n) * m), KEY_BYTES // max(1, keys))
    return Layout(list(spans(s, max(sets, together))), list(spans(n, step)), sets, heads)


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


def all_seen(m: int, device: torch.device) -> Seen:
    """Supports that hold all m keys."""
    return Seen(None, torch.full((1,), m, dtype=torch.float64, device=device))


@dataclass
class HeadGroups:
    """Some sets with some of their heads, whose logits are formed block by block.

    Attributes:
        logits: All logits.
        sets: Which sets; a block may hold some of them.
        heads: Ranges of heads.
        masked: Whether any key is hidden from any query.
        dtype: Of products and weights.
    """

    logits: Logits
    sets: slice
    heads: list[slice]
    masked: bool
    dtype: torch.dtype
    _prepared: dict[tuple[int, int], PreparedLogits] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether the rows of logits sum to zero: products with centred keys, and nothing added."""
        return is_plain(self.logits)

    def fill(self, sets: slice, heads: slice, rows: Rows, memory: Tensor) -> tuple[Tensor, Seen]:
        """The logits (g, hh, r, m) of some sets, heads and queries, in the memory given, and what the queries see."""
        g, hh, m = sets.stop - sets.start, heads.stop - heads.start, self.logits.shape[3]
        r = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        block = memory[: g * hh * r * m].view(g, hh, r, m)
        self.prepared(sets, heads).fill(rows, block)
        return block, self._seen(sets, heads, rows, block)

    def prepared(self, sets: slice, heads: slice) -> PreparedLogits:
        """The keys of some sets and heads, centred; kept for the next block if those of all heads are small."""
        at = (sets.start, heads.start)
        if at in self._prepared:
            return self._prepared[at]
        prepared = self.logits.prepare(sets, heads, self.dtype, centred=True)
        size = 0 if prepared.key is None else prepared.key.numel() * prepared.key.element_size()
        if size * len(self.heads) <= KEY_BYTES:
            self._prepared[at] = prepared
        return prepared

    def _seen(self, sets: slice, heads: slice, rows: Rows, block: Tensor) -> Seen:
        if not self.masked:
            return self._all
        if self.logits.given is not None:
            support = block != -torch.inf
        else:
            assert self.logits.mask is not None
            seen = self.logits.mask.support(sets, heads, rows, block.shape[-1], block.device)
            if seen is None:
                return self._all
            support = seen
        return Seen(support.to(block.dtype), wide(support.sum(-1)))

    @cached_property
    def _all(self) -> Seen:
        return all_seen(self.logits.shape[3], self.logits.device)


class HeadMean:
    """The sum over heads of some sets' rows w_i/z_i, (g, r, m), added up in the memory given.

    It is the mean over the heads that see any key, but for a factor by row, which changes none of the statistics.
    With w_ij = 1 + e_ij it is Σ_h 1/z_i · (1 + e'_ij), e' the mean of e weighted with 1/z_i: again of that form.
    """

    def __init__(self, sets: slice, memory: Tensor, offset: bool = False) -> None:
        self._sets = sets
        self._memory = memory
        self._offset = offset
        self._supports: dict[int, Tensor] = {}
        self._factors: dict[int, Tensor] = {}
        self._shape = (0, 0)

    def add(self, sets: slice, weights: Tensor, inverse: Tensor, seen: Seen) -> None:
        """Add the weights w_ij, or e_ij, of some sets and heads (g, hh, r, m), times the 1/z_i given, (g, hh, r)."""
        *_, r, m = weights.shape
        self._shape = (r, m)
        first = sets.start - self._sets.start
        started = first in self._factors
        rows = self._rows()[first : first + len(weights)]
        for mean, one, factor in zip(rows, weights, inverse, strict=True):
            if len(one) > 1:
                by_query = factor.mT.contiguous().unsqueeze(1)
                mean.unsqueeze(1).baddbmm_(by_query, one.transpose(0, 1), beta=int(started))
            elif started:
                mean.addcmul_(one[0], factor[0].unsqueeze(-1))
            else:
                torch.mul(one[0], factor[0].unsqueeze(-1), out=mean)
        factors = inverse.sum(1)
        self._factors[first] = self._factors[first] + factors if started else factors
        if seen.support is not None:
            union = seen.support.amax(1)
            self._supports[first] = self._supports[first].maximum(union) if started else union

    def finish(self) -> tuple[Tensor, Seen]:
        """The rows, or e' where there is an offset, and the union of what the heads see."""
        rows = self._rows()
        if self._offset:
            rows.div_(torch.cat(list(self._factors.values())).unsqueeze(-1))
        if not self._supports:
            return rows, all_seen(rows.shape[-1], rows.device)
        support = torch.cat([part.expand(-1, *self._shape) for part in self._supports.values()])
        return rows, Seen(support, wide(support).sum(-1))

    def _rows(self) -> Tensor:
        g, (r, m) = self._sets.stop - self._sets.start, self._shape
        return self._memory[: g * r * m].view(g, r, m)


def _longest(ranges: list[slice]) -> int:
    return max((part.stop - part.start for part in ranges), default=1)


def wanted_groups(
    logits: Logits, masked: bool, sets: list[slice], heads: list[slice], wanted: Tensor, dtype: torch.dtype
) -> Iterator[tuple[HeadGroups, bool]]:
    """The sets and heads that are wanted, in groups, each with whether the mean over the heads is.

    Args:
        logits: The logits.
        masked: Whether any key is hidden from any query.
        sets: Ranges of sets, one for each group.
        heads: Ranges of heads.
        wanted: Which maps, (s, h), or (s, h + 1) with the mean over the heads.
        dtype: Of products and weights.
    """
    h = logits.shape[1]
    for group in sets:
        asked = wanted[group].any(0).tolist()
        with_mean = any(asked[h:])
        chosen = [span for span in heads if with_mean or any(asked[span])]
        if chosen:
            yield HeadGroups(logits, group, chosen, masked, dtype), with_mean
