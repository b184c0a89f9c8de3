"""Further numbers of softmax maps, by name: how far and where attention goes, how much the rows differ, their rank."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.stats.grids import PlacedGrids
from nlprobe.stats.logit_blocks import logit_blocks, logits_kernel, require_usable
from nlprobe.stats.logits import Logits
from nlprobe.stats.map_rank import effective_rank

METRICS = {
    "attention_distance": "mean distance between a query and what it attends to, in grid cells of the queries",
    "prefix_mass": "part of the attention of the other queries that goes to the prefix tokens",
    "sink_mass": "mean attention on the most attended key",
    "jsd": "Jensen-Shannon divergence of the rows, in bits",
    "effective_rank": "effective rank of the map without its mean row",
}
"""Names and one-line meanings of all metrics."""

JSD_ACCEPTED = 0.05
"""Bits; below this the difference of two entropies is taken from float64 maps."""

LEAST_WEIGHT = 1e-30
"""Weights under this part of the row's largest are zero in float32: the denormal numbers that they or their products
would be are computed with many times slower."""


@logits_kernel
def map_metrics(
    logits: Logits,
    metrics: Sequence[str],
    *,
    query_grid: tuple[int, ...] | None = None,
    key_grid: tuple[int, ...] | None = None,
    prefix: int = 0,
) -> dict[str, Float[Tensor, "s h"]]:
    """Chosen metrics of the maps ω_ij = softmax_j(s_ij), from one look at each block of rows.

    - `attention_distance`: mean_i Σ_j ω_ij ‖p_i − p_j‖ (Dosovitskiy et al. 2021, appendix D.7, there in pixels), p in
      grid cells. Prefix tokens have no place: they are no queries here, and a row is renormalised over the keys that
      have one; it is left out where it sees none of those. Keys on another grid than the queries
      (pooled ones) lie at the centres of their cells, in units of the queries' grid. NaN without grids.
    - `prefix_mass`: mean_i Σ_{j < prefix} ω_ij over the queries i ≥ prefix: what class and register tokens (Darcet et
      al. 2024) take. NaN without prefix.
    - `sink_mass`: max_j mean_i ω_ij, the attention sink (Xiao et al. 2024).
    - `jsd`: H₂(mean_i ω_i) − mean_i H₂(ω_i), the generalised Jensen-Shannon divergence of the rows with equal weights
      (Lin 1991): from 0, all rows equal, to log₂ min(N, M). Once more in float64 where small.
    - `effective_rank`: see `nlprobe.stats.map_rank.effective_rank`; NaN for maps too large for it.

    Queries that see no key are left out everywhere; a value is NaN where none is left. Products in float32, float64
    where the model computes in it: results to 1e-5 while logits stay under a hundred (a weight is off by about 1e-7 of
    its logit). O(N·M·d), memory O(M·d) and one block, for each set and head;
    `effective_rank` O(N·M·min(N, M)) in float64.

    Args:
        logits: The maps' logits.
        metrics: Names out of `METRICS`.
        query_grid: Sizes of the grid of the queries, last index fastest; their product is N − prefix.
        key_grid: Sizes of the grid of the keys, of as many dimensions; their product is M − prefix.
        prefix: How many tokens without a place come before the others, among queries and keys alike.

    Returns:
        A value for each set and head, in float64, for each metric in the order asked for.

    Raises:
        ConfigError: If a metric is unknown, or grids or prefix do not fit the logits.
        NlprobeError: If the logits hold NaN, or infinity that hides nothing.
    """
    _check(logits, metrics, query_grid, key_grid, prefix)
    require_usable(logits)
    placed = PlacedGrids(query_grid, key_grid) if query_grid is not None and key_grid is not None else None
    undefined = {"attention_distance"} if placed is None else set()
    if not prefix:
        undefined.add("prefix_mass")
    chosen = set(metrics) - undefined
    found = {
        name: torch.full(logits.shape[:2], torch.nan, dtype=torch.float64, device=logits.device) for name in undefined
    }
    if chosen - {"effective_rank"}:
        sums = _stream(logits, chosen, placed, prefix, logits.dtype)
        found |= sums.results()
    if "jsd" in chosen and logits.dtype != torch.float64 and bool((found["jsd"] < JSD_ACCEPTED).any()):
        found |= _stream(logits, {"jsd"}, None, 0, torch.float64).results()
    if "effective_rank" in chosen:
        found["effective_rank"] = effective_rank(logits)
    return {name: found[name] for name in metrics}


class _Sums:
    """What the blocks add up to, in float64, and the metrics made of it."""

    def __init__(self, logits: Logits, chosen: set[str], placed: PlacedGrids | None, prefix: int) -> None:
        s, h, _, m = logits.shape
        self._chosen = chosen
        self._placed = placed
        self._prefix = prefix
        zeros = torch.zeros(6, s, h, dtype=torch.float64, device=logits.device)
        self._seeing, self._entropy, self._others, self._prefix_mass, self._reaching, self._distance = zeros
        self._columns = torch.zeros(s, h, m, dtype=torch.float64, device=logits.device)

    def add(self, at: tuple[slice, slice], rows: slice, block: Tensor) -> None:
        """Add the rows of a block of logits (g, hh, r, m), which is overwritten, of the sets and heads `at`."""
        others = slice(max(rows.start, self._prefix) - rows.start, rows.stop - rows.start)
        if "attention_distance" in self._chosen and self._prefix:
            # by a softmax of their own: a row that is all on the prefix leaves nothing but underflow elsewhere
            self._add_distance(at, rows, *_softmax(block[..., others, self._prefix :].clone()))
        weights, seen = _softmax(block)
        if "attention_distance" in self._chosen and not self._prefix:
            self._add_distance(at, rows, weights, seen)
        self._seeing[at] += seen.sum(-1)
        if self._chosen & {"sink_mass", "jsd"}:
            self._columns[at] += weights.sum(-2)
        if "jsd" in self._chosen:
            # five times as fast as torch.special.entr, and the same: 0 · log(tiny) = 0
            logarithms = weights.clamp_min(torch.finfo(weights.dtype).tiny).log_()
            self._entropy[at] -= torch.linalg.vecdot(weights, logarithms).sum(-1, dtype=torch.float64)
        if "prefix_mass" in self._chosen:
            self._others[at] += seen[..., others].sum(-1)
            self._prefix_mass[at] += weights[..., others, : self._prefix].sum((-2, -1), dtype=torch.float64)

    def results(self) -> dict[str, Tensor]:
        """The metrics that were asked for."""
        mean_row = self._columns / self._seeing.unsqueeze(-1)
        divergence = (torch.special.entr(mean_row).sum(-1) - self._entropy / self._seeing) / math.log(2)
        found = {
            "attention_distance": self._distance / self._reaching,
            "prefix_mass": self._prefix_mass / self._others,
            "sink_mass": mean_row.amax(-1),
            "jsd": divergence.clamp_min(0),
        }
        return {name: value for name, value in found.items() if name in self._chosen}

    def _add_distance(self, at: tuple[slice, slice], rows: slice, weights: Tensor, seen: Tensor) -> None:
        """Add the last of the queries `rows`, those that have a place, by their weights on keys that have one."""
        assert self._placed is not None
        stop = rows.stop - self._prefix
        apart = self._placed.distances(slice(stop - weights.shape[-2], stop), weights.dtype, weights.device)
        self._reaching[at] += seen.sum(-1)
        self._distance[at] += torch.linalg.vecdot(weights, apart).sum(-1, dtype=torch.float64)


def _stream(logits: Logits, chosen: set[str], placed: PlacedGrids | None, prefix: int, dtype: torch.dtype) -> _Sums:
    sums = _Sums(logits, chosen, placed, prefix)
    for sets, heads, rows, block in logit_blocks(logits, dtype, centred=True):
        sums.add((sets, heads), rows, block)
    return sums


def _softmax(block: Tensor) -> tuple[Tensor, Tensor]:
    """The weights, in place, and which rows see a key; the others are zero."""
    if not block.numel():
        return block, block.new_zeros(block.shape[:-1], dtype=torch.bool)
    top = block.amax(-1, keepdim=True)
    block.sub_(top.clamp_min(torch.finfo(block.dtype).min))
    if block.dtype == torch.float32:
        torch.threshold_(block, math.log(LEAST_WEIGHT), -torch.inf)
    weights = block.exp_()
    # 1 or more where a key is seen: that of the largest logit
    return weights.div_(weights.sum(-1, keepdim=True).clamp_min_(1)), top.squeeze(-1) > -torch.inf


def _check(
    logits: Logits,
    metrics: Sequence[str],
    query_grid: tuple[int, ...] | None,
    key_grid: tuple[int, ...] | None,
    prefix: int,
) -> None:
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"unknown metric `{name}`", "choose from " + ", ".join(f"`{known}`" for known in METRICS))
    _, _, n, m = logits.shape
    if not 0 <= prefix <= min(n, m):
        raise ConfigError(f"`prefix` {prefix} does not fit {n} queries and {m} keys", f"give 0 to {min(n, m)}")
    for what, grid, positions in (("query_grid", query_grid, n), ("key_grid", key_grid, m)):
        if grid is not None and math.prod(grid) != positions - prefix:
            raise ConfigError(
                f"`{what}` {grid} has {math.prod(grid)} cells for {positions} positions, {prefix} of them prefix",
                f"give sizes whose product is {positions - prefix}",
            )
    if query_grid is not None and key_grid is not None and len(query_grid) != len(key_grid):
        raise ConfigError(
            f"`query_grid` {query_grid} and `key_grid` {key_grid} have different numbers of dimensions",
            "give both grids the same dimensions, with size 1 where one has a single cell",
        )
