"""What is added to the logits before the softmax: biases, and masks that hide keys from queries."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Rows = slice | Int64[Tensor, " r"]
"""Some of the queries: a range with both ends, or their indices."""


@dataclass(frozen=True)
class Mask:
    """The bias b_ij of the logits scale · q_i·k_j + b_ij, and the support S_i: the keys that query i may see.

    A key is hidden from a query where `visible` is False, where it lies above the `diagonal`, or where `bias` is at
    most `hidden_below`. Bias and `visible` are held as the model has them: dimensions of size 1 are never expanded.

    Attributes:
        bias: Added to the scaled logits; a dimension of size 1 stands for all sets, heads, queries or keys.
        visible: False where a key is hidden; of the same form.
        diagonal: Causal attention: query i sees the keys j ≤ i + diagonal only; None where it sees all.
        hidden_below: The bias at and under which a key counts as hidden. The lowest numbers of every precision, which
            models write for −∞, always do; Swin writes −100.
    """

    bias: Float[Tensor, "_ _ _ _"] | None = None
    visible: Bool[Tensor, "_ _ _ _"] | None = None
    diagonal: int | None = None
    hidden_below: float = -60000.0

    def add_to(self, logits: Float[Tensor, "g h r m"], sets: slice, heads: slice, rows: Rows) -> None:
        """Add the bias to a block of logits in place, and set those of hidden keys to −∞.

        Args:
            logits: The block.
            sets: Which sets it holds.
            heads: Which heads.
            rows: Which queries.
        """
        if self.bias is not None:
            logits.add_(_part(self.bias, sets, heads, rows))
        hidden = self._hidden(sets, heads, rows, logits.shape[-1], logits.device)
        if hidden is not None:
            logits.masked_fill_(hidden, -torch.inf)

    def support(
        self, sets: slice, heads: slice, rows: Rows, n_keys: int, device: torch.device
    ) -> Bool[Tensor, "_ _ _ m"] | None:
        """The keys that the queries of a block may see; None where nothing is ever hidden. 1 stands for all."""
        hidden = self._hidden(sets, heads, rows, n_keys, device)
        return None if hidden is None else (~hidden).expand(-1, -1, -1, n_keys)

    def hides(self, n_queries: int, n_keys: int) -> bool:
        """Whether any key is hidden from any query; reads the bias once.

        Args:
            n_queries: How many queries there are.
            n_keys: How many keys.
        """
        if self.diagonal is not None and n_keys - 1 > self.diagonal:
            return True
        if self.visible is not None and not bool(self.visible.all()):
            return True
        return self.bias is not None and bool((self.bias <= self.hidden_below).any())

    def seen_keys(self) -> Bool[Tensor, "_ m"] | None:
        """By set (1 for all), the keys that are not hidden from every query; None where none can be."""
        seen: Tensor | None = None
        for visible in (None if self.bias is None else self.bias > self.hidden_below, self.visible):
            if visible is not None and visible.shape[3] > 1:
                by_key = visible.any(dim=(1, 2)) if visible.shape[1:3] != (1, 1) else visible[:, 0, 0]
                seen = by_key if seen is None else seen & by_key
        return seen

    def restricted(self, queries: Rows, keys: slice) -> "Mask":
        """The mask of some of the queries and a range of the keys."""
        bias, visible = (
            None if t is None else _slice(_part(t, _ALL, _ALL, queries), 3, keys) for t in (self.bias, self.visible)
        )
        diagonal = self.diagonal
        if diagonal is not None and isinstance(queries, slice):
            diagonal += queries.start - keys.start
        elif diagonal is not None:
            assert not isinstance(queries, slice)
            places = torch.arange(keys.start, keys.stop, device=queries.device)
            below = (places <= queries.unsqueeze(-1) + diagonal)[None, None]
            visible, diagonal = below if visible is None else visible & below, None
        return replace(self, bias=bias, visible=visible, diagonal=diagonal)

    def of_sets(self, sets: slice) -> "Mask":
        """The mask of a range of the sets."""
        bias, visible = (None if t is None else _slice(t, 0, sets) for t in (self.bias, self.visible))
        return replace(self, bias=bias, visible=visible)

    def _hidden(self, sets: slice, heads: slice, rows: Rows, n_keys: int, device: torch.device) -> Tensor | None:
        parts = []
        if self.bias is not None:
            parts.append(_part(self.bias, sets, heads, rows) <= self.hidden_below)
        if self.visible is not None:
            parts.append(~_part(self.visible, sets, heads, rows))
        if self.diagonal is not None:
            queries = torch.arange(rows.start, rows.stop, device=device) if isinstance(rows, slice) else rows
            later = torch.arange(n_keys, device=device) > queries.unsqueeze(-1) + self.diagonal
            parts.append(later[None, None])
        if not parts:
            return None
        hidden = parts[0]
        for more in parts[1:]:
            hidden = hidden | more
        return hidden


_ALL = slice(None)


def _part(tensor: Tensor, sets: slice, heads: slice, rows: Rows) -> Tensor:
    return _slice(_slice(_slice(tensor, 0, sets), 1, heads), 2, rows)


def _slice(tensor: Tensor, axis: int, chosen: Rows) -> Tensor:
    if tensor.shape[axis] == 1:
        return tensor
    return tensor[(_ALL,) * axis + (chosen,)] if isinstance(chosen, slice) else tensor.index_select(axis, chosen)
