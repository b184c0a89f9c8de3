"""How the blocks of softmax maps are laid out, which keys their queries see, and what is found about the maps."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Rows
from nlprobe.stats.streaming import spans, wide


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
    """

    distance: Tensor
    zero_rows: Tensor
    entropy: Tensor
    n_eff: Tensor
    mean_unevenness: Tensor
    unevenness: Tensor
    variation: Tensor
    reach: Tensor

    @staticmethod
    def unknown(shape: tuple[int, ...], device: torch.device) -> "Found":
        """NaN throughout."""
        return Found(*torch.full((len(fields(Found)), *shape), math.nan, dtype=torch.float64, device=device))

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


def layout(shape: tuple[int, int, int, int], room: int, least_rows: int) -> Layout:
    """Blocks of at most `room` numbers, or of `least_rows` rows of one head where these do not fit.

    Whole sets share a block where they fit, then the heads of one set, then rows of some heads.
    """
    s, h, n, m = shape
    sets = list(spans(s, room // max(1, h * n * m)))
    rows = min(n, least_rows)
    heads = list(spans(h, room // max(1, rows * m)))
    taken = _longest(sets) * _longest(heads) * m
    return Layout(sets, list(spans(n, max(rows, room // max(1, taken)))), heads)


def hides(logits: Logits) -> bool:
    """Whether any key is hidden from any query; reads the mask, or logits that are given, once."""
    if logits.given is not None and logits.given.numel():
        return bool(logits.given.amin() == -math.inf) or (logits.mask is not None and logits.mask.hides())
    return logits.mask is not None and logits.mask.hides()


def seen(logits: Logits, sets: slice, heads: slice, rows: Rows, block: Tensor, hidden: bool) -> Seen:
    """The supports of a block of logits; `hidden` is what `hides` says."""
    m = block.shape[-1]
    support = None
    if hidden and logits.given is not None:
        support = block != -torch.inf
    elif hidden:
        assert logits.mask is not None
        support = logits.mask.support(sets, heads, rows, m, block.device)
    if support is None:
        return Seen(None, wide(block.new_full((1,), m)))
    return Seen(support.to(block.dtype), wide(support.sum(-1)))


def _longest(ranges: list[slice]) -> int:
    return max((part.stop - part.start for part in ranges), default=1)
