"""The logits that enter a softmax, formed block by block: never the N×M matrix."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.stats.masks import Mask, Rows
from nlprobe.stats.streaming import widened

FEW_SETS = 16
"""Sets up to which products are formed set by set."""


@dataclass(frozen=True)
class Logits:
    """s_ij = scale · q_i·k_j + b_ij for sets of positions (images, windows) and heads.

    Either the product of `query` and `key`, or `given` where a model has written the matrix out itself.

    Attributes:
        query: Queries as they enter the product (rotary and other transforms done).
        key: Keys as they enter the product; with fewer heads than queries have, each serves several (grouped-query
            attention): head i of the queries takes head i // (h / k) of the keys.
        scale: Factor on the product.
        mask: Bias and hidden keys; None where there are none.
        given: The logits as they entered the model's softmax, scale, bias and mask applied (then `query` and `key`
            are not used here, and `mask` only tells which keys are hidden).
    """

    query: Float[Tensor, "s h n d"] | None = None
    key: Float[Tensor, "s k m d"] | None = None
    scale: float = 1.0
    mask: Mask | None = None
    given: Float[Tensor, "s h n m"] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Sets, heads, queries, keys."""
        if self.given is not None:
            s, h, n, m = self.given.shape
            return s, h, n, m
        assert self.query is not None
        assert self.key is not None
        return *self.query.shape[:3], self.key.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the blocks are formed: the device of the tensors, the CPU for MPS."""
        source = self.given if self.given is not None else self.query
        assert source is not None
        return widened(source[:0]).device

    @property
    def dtype(self) -> torch.dtype:
        """float64 where the model computes in it, else float32."""
        source = self.given if self.given is not None else self.query
        assert source is not None
        return torch.float64 if source.dtype == torch.float64 else torch.float32

    def restricted(self, queries: Rows, keys: slice) -> "Logits":
        """The logits of some of the queries and a range of the keys (both ends of a range given)."""
        return replace(
            self,
            query=None if self.query is None else self.query[:, :, queries],
            key=None if self.key is None else self.key[:, :, keys],
            mask=None if self.mask is None else self.mask.restricted(queries, keys),
            given=None if self.given is None else self.given[:, :, queries, keys],
        )

    def of_sets(self, sets: slice) -> "Logits":
        """The logits of a range of the sets."""
        return replace(
            self,
            query=None if self.query is None else self.query[sets],
            key=None if self.key is None else self.key[sets],
            mask=None if self.mask is None else self.mask.of_sets(sets),
            given=None if self.given is None else self.given[sets],
        )

    def prepare(self, sets: slice, heads: slice, dtype: torch.dtype, *, centred: bool = False) -> "PreparedLogits":
        """The keys of some sets and heads, laid out once for all blocks of their queries.

        Args:
            sets: Which sets; both ends given.
            heads: Which heads; both ends given.
            dtype: Precision of the products.
            centred: Take the keys' mean off. It adds a constant to each row, which no softmax sees, and keeps
                products small.
        """
        if self.given is not None:
            return PreparedLogits(self, sets, heads, None)
        assert self.query is not None
        assert self.key is not None
        keys = widened(self.key[sets])
        repeats = self.query.shape[1] // self.key.shape[1]
        if repeats == 1:
            keys = keys[:, heads]
        else:
            chosen = torch.arange(heads.start, heads.stop, device=keys.device) // repeats
            keys = keys.index_select(1, chosen)
        keys = keys.to(dtype)
        if not centred:
            return PreparedLogits(self, sets, heads, keys.flatten(0, 1).contiguous())
        # by way of the first key, so that equal keys cancel exactly
        keys = keys - keys[:, :, :1] if dtype == torch.float64 else keys
        rows = keys.new_empty(keys.shape)
        return PreparedLogits(self, sets, heads, torch.sub(keys, keys.mean(-2, keepdim=True), out=rows).flatten(0, 1))


@dataclass(frozen=True)
class PreparedLogits:
    """Blocks of logits for some sets and heads.

    Attributes:
        logits: All of them.
        sets: Which sets.
        heads: Which heads.
        key: (sets · heads, m, d), contiguous; None where the logits are given.
    """

    logits: Logits
    sets: slice
    heads: slice
    key: Float[Tensor, "gh m d"] | None

    def fill(self, rows: Rows, out: Float[Tensor, "g hh r m"], *, masked: bool = True) -> None:
        """Write the logits of some queries into `out`, which is contiguous; −∞ where a key is hidden.

        Args:
            rows: Which queries.
            out: The block to fill.
            masked: With bias and mask; without, the scaled products alone (not possible where the logits are given).
        """
        source = self.logits
        if source.given is not None:
            out.copy_(source.given[self.sets, self.heads, rows])
            if source.mask is not None:
                hidden = source.mask.support(self.sets, self.heads, rows, out.shape[-1], out.device)
                if hidden is not None:
                    out.masked_fill_(~hidden, -torch.inf)
            return
        assert source.query is not None
        assert self.key is not None
        block = widened(source.query[self.sets, self.heads, rows]).to(self.key.dtype)
        if block.shape[0] > FEW_SETS or block.stride(-1) != 1:
            out.flatten(0, 1).baddbmm_(block.flatten(0, 1), self.key.mT, beta=0, alpha=source.scale)
        else:
            # the heads of one set lie evenly in memory as models hold them, and need no copy
            keys = self.key.unflatten(0, block.shape[:2]).mT
            for one, queries, key in zip(out, block, keys, strict=True):
                one.baddbmm_(queries, key, beta=0, alpha=source.scale)
        if masked and source.mask is not None:
            source.mask.add_to(out, self.sets, self.heads, rows)
