"""Criss-cross maps: rows over the column and the row of a position, as vectors over all N positions with zeros outside.

They are held as their two arms, N (H + W) numbers, in float64 and one image at a time: never the N×N matrix.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from nlprobe.stats.results import MapStatistics, ProductStatistics
from nlprobe.stats.streaming import kernel, require_finite, wide, widened

_NO_VARIATION = 1e-26
"""mean_i |S_i|·‖c_i‖² in float64 that is nothing but rounding."""


@dataclass(frozen=True)
class CrossRows:
    """The rows of one image: numbers on the cross S_i of each position i, H + W − 1 keys of its column and its row.

    Attributes:
        column: column[u, y, v] is the entry of query (y, u) at key (v, u); 0 at v = y.
        row: row[y, x, u] is the entry of query (y, x) at key (y, u); the position itself is here.
    """

    column: Float64[Tensor, "w h h"]
    row: Float64[Tensor, "h w w"]

    @property
    def keys(self) -> int:
        """|S_i|."""
        return self.column.shape[1] + self.row.shape[1] - 1

    def sums(self) -> Float64[Tensor, "h w"]:
        """The sum of each row."""
        return self.row.sum(-1) + self.column.sum(-1).mT

    def squares(self) -> Float64[Tensor, "h w"]:
        """The squared norm of each row."""
        return self.row.square().sum(-1) + self.column.square().sum(-1).mT

    def weighted(self, factors: Float64[Tensor, "h w"]) -> Float64[Tensor, "h w"]:
        """Σ_i f_i·row_i, a vector over all positions: fᵀ A."""
        along_rows = factors.unsqueeze(1) @ self.row  # (h, 1, w) over the keys of each row
        along_columns = factors.mT.unsqueeze(1) @ self.column  # (w, 1, h)
        return along_rows.squeeze(1) + along_columns.squeeze(1).mT

    def applied(self, values: Float64[Tensor, "h w"]) -> Float64[Tensor, "h w"]:
        """Σ_j row_ij·v_j of each position i: A v."""
        level = (self.row @ values.unsqueeze(-1)).squeeze(-1)
        return level + (self.column @ values.mT.unsqueeze(-1)).squeeze(-1).mT

    def of_queries(self, y: Int64[Tensor, " r"], x: Int64[Tensor, " r"]) -> Float64[Tensor, "r h w"]:
        """Whole rows of chosen queries, zeros outside of their crosses."""
        at = torch.arange(len(y), device=y.device)
        rows = self.row.new_zeros(len(y), self.row.shape[0], self.row.shape[1])
        rows[at, :, x] = self.column[x, y]
        rows[at, y] += self.row[y, x]
        return rows


def cross_products(query: Float[Tensor, "h w d"], key: Float[Tensor, "h w d"]) -> CrossRows:
    """s_ij = q_i·k_j on the crosses of one image. O(N (H + W) d)."""
    query, key = wide(query), wide(key)
    column = query.transpose(0, 1) @ key.transpose(0, 1).mT
    column.diagonal(dim1=1, dim2=2).zero_()
    return CrossRows(column, query @ key.mT)


def cross_weights(query: Float[Tensor, "h w d"], key: Float[Tensor, "h w d"]) -> CrossRows:
    """ω_i = softmax_{j ∈ S_i}(q_i·k_j) of one image. O(N (H + W) d)."""
    logits = cross_products(query, key)
    column, row = logits.column, logits.row
    column.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    largest = torch.maximum(row.amax(-1), column.amax(-1).mT)
    row.sub_(largest.unsqueeze(-1)).exp_()
    column.sub_(largest.mT.unsqueeze(-1)).exp_()
    total = logits.sums()
    row.div_(total.unsqueeze(-1))
    column.div_(total.mT.unsqueeze(-1))
    return logits


@kernel
def cross_map_statistics(
    query: Float[Tensor, "b h w d"], key: Float[Tensor, "b h w d"], counted: Bool[Tensor, "b h w"] | None = None
) -> MapStatistics:
    """Statistics of the rows ω_i = softmax_{j ∈ S_i}(q_i·k_j), zeros outside of the cross S_i.

    avg_dist = ½ (1 − ‖mean_i ω_i/‖ω_i‖‖²), the mean over all positions; entropy over log(H + W − 1). In
    float64, in which this form keeps ten digits of a distance of 1e-5 and five of one of 1e-10. O(N (H + W) d), memory
    O(N (H + W)).

    Args:
        query: Queries on their grid.
        key: Keys on the same grid.
        counted: Which queries' rows are meant; all by default, and at least one of each image.

    Raises:
        NlprobeError: query or key holds NaN or infinity.
    """
    require_finite(query=query, key=key)
    found = [
        _map_statistics(cross_weights(*pair), which)
        for *pair, which in zip(query, key, _counted(counted, query), strict=True)
    ]
    return joined_statistics(found, query)


@kernel
def cross_product_statistics(
    query: Float[Tensor, "b h w d"], key: Float[Tensor, "b h w d"], counted: Bool[Tensor, "b h w"] | None = None
) -> ProductStatistics:
    """Statistics of the rows s_i = (q_i·k_j) for j ∈ S_i, zeros outside: products off the cross are never formed.

    `logit_std` is √(mean_i mean_{j ∈ S_i} (s_ij − s̄_i)²), s̄_i the mean over the cross; it is not split (NaN).
    O(N (H + W) d), memory O(N (H + W)).

    Args:
        query: Queries on their grid.
        key: Keys on the same grid.
        counted: As in `cross_map_statistics`.

    Raises:
        NlprobeError: query or key holds NaN or infinity.
    """
    require_finite(query=query, key=key)
    columns = []
    for *pair, which in zip(query, key, _counted(counted, query), strict=True):
        products = cross_products(*pair)
        distance, zero_rows = _distance(products, which)
        means = products.sums() / products.keys
        products.row.sub_(means.unsqueeze(-1))
        products.column.sub_(means.mT.unsqueeze(-1)).diagonal(dim1=1, dim2=2).zero_()
        columns.append((distance, zero_rows, (products.squares()[which].mean() / products.keys).sqrt()))
    distance, zero_rows, logit_std = (torch.stack(column) for column in zip(*columns, strict=True))
    unsplit = torch.full_like(logit_std, math.nan)
    return ProductStatistics(distance, zero_rows, logit_std, unsplit, unsplit)


@kernel
def cross_flat_distance(counted: Bool[Tensor, "b h w"]) -> Float64[Tensor, " b"]:
    """The avg_dist of uniform rows on the crosses of some queries: ½ (1 − Σ_j c_j²/(n² (H + W − 1))).

    c_j of the n queries have key j on their cross. With all queries every c_j is H + W − 1, and the distance
    (H − 1)(W − 1)/(2 H W). NaN where the cross is everything, because nothing is hidden there. O(N).

    Args:
        counted: Which queries' rows are meant.
    """
    which = wide(counted)
    height, width = counted.shape[1:]
    if min(height, width) == 1:
        return torch.full_like(which[:, 0, 0], math.nan)
    seen = which.sum(1, keepdim=True) + which.sum(2, keepdim=True) - which
    return 0.5 * (1 - seen.square().sum((1, 2)) / (which.sum((1, 2)).square() * (height + width - 1)))


@kernel
def cross_key_mass(
    query: Float[Tensor, "steps b h w d"], key: Float[Tensor, "steps b h w d"], keys: Shaped[Tensor, "b k n"]
) -> Float64[Tensor, "b n k"]:
    """Σ_{j chosen} A_ij of the rows of A = A_R ··· A_1, for each query and each set of keys. O(R N (H + W)(d + k)).

    Args:
        query: Queries of each step, in the order in which the steps are applied; one step or more.
        key: Keys of each step.
        keys: Sets of keys, or the part of each key that belongs to them.
    """
    found = []
    for queries, its_keys, sets in zip(query.unbind(1), key.unbind(1), keys, strict=True):
        masses = wide(sets).unflatten(1, query.shape[2:4])
        for pair in zip(queries, its_keys, strict=True):
            weights = cross_weights(*pair)
            masses = torch.stack([weights.applied(one) for one in masses])
        found.append(masses.flatten(1).mT)
    return torch.stack(found)


@kernel
def cross_rows(
    query: Float[Tensor, "b h w d"], key: Float[Tensor, "b h w d"], rows: Int64[Tensor, " r"]
) -> Float64[Tensor, "b r n"]:
    """The rows ω_i of chosen queries over all N positions, zeros outside of their crosses. O(N (H + W) d + r N).

    Args:
        query: Queries on their grid.
        key: Keys on the same grid.
        rows: Indices of queries, in row-major order.
    """
    y, x = rows.div(query.shape[2], rounding_mode="floor"), rows % query.shape[2]
    return torch.stack([cross_weights(*pair).of_queries(y, x).flatten(1) for pair in zip(query, key, strict=True)])


@kernel
def cross_apply(
    query: Float[Tensor, "b h w d"], key: Float[Tensor, "b h w d"], value: Float[Tensor, "b h w dv"]
) -> Float[Tensor, "b h w dv"]:
    """A·V by the written-out formula, one row of the image after another, for the audit.

    It shares nothing with the kernels above. O(N (H + W)(d + dv)), memory O(N dv).

    Args:
        query: Queries as they enter the product.
        key: Keys as they enter the product.
        value: Values as they enter the product.

    Returns:
        The products, in float64 for float64 input, else in float32.
    """
    query, key, value = widened(query), widened(key), widened(value)
    height = query.shape[1]
    result = torch.empty_like(value)
    for y in range(height):
        others = [v for v in range(height) if v != y]
        upright = torch.einsum("bxd,bvxd->bxv", query[:, y], key[:, others])
        level = torch.einsum("bxd,bud->bxu", query[:, y], key[:, y])
        weights = torch.softmax(torch.cat((upright, level), -1), -1)
        upright, level = weights[..., : height - 1], weights[..., height - 1 :]
        result[:, y] = torch.einsum("bxv,bvxc->bxc", upright, value[:, others])
        result[:, y] += torch.einsum("bxu,buc->bxc", level, value[:, y])
    return result


def joined_statistics(found: list[dict[str, Tensor]], like: Tensor) -> MapStatistics:
    """The statistics of several images as one; of none, on the device of `like`."""
    names = MapStatistics.__dataclass_fields__
    empty = wide(like.new_empty(0))
    return MapStatistics(
        **{
            name: torch.stack([one[name] for one in found]) if found else empty.long() if name == "zero_rows" else empty
            for name in names
        }
    )


def shared_part(mean_unevenness: Tensor, unevenness: Tensor, keys: int) -> Tensor:
    """‖mean_i c_i‖² / mean_i ‖c_i‖², NaN where every c_i is zero but for rounding."""
    return torch.where(keys * unevenness > _NO_VARIATION, mean_unevenness / unevenness, math.nan)


def _counted(counted: Tensor | None, query: Tensor) -> Tensor:
    return query.new_ones(query.shape[:3], dtype=torch.bool) if counted is None else counted


def _map_statistics(weights: CrossRows, counted: Tensor) -> dict[str, Tensor]:
    distance, zero_rows = _distance(weights, counted)
    keys, squares = weights.keys, weights.squares()
    surprise = torch.special.xlogy(weights.row, weights.row).sum(-1)
    surprise += torch.special.xlogy(weights.column, weights.column).sum(-1).mT
    entropy = -surprise[counted].mean() / math.log(keys) if keys > 1 else torch.full_like(distance, math.nan)
    weights.row.sub_(1 / keys)
    weights.column.sub_(1 / keys).diagonal(dim1=1, dim2=2).zero_()
    mean = weights.weighted(counted.to(squares.dtype) / counted.sum())
    return {
        "avg_dist": distance,
        "zero_rows": zero_rows,
        "entropy": entropy,
        "n_eff": squares[counted].reciprocal().mean(),
        "shared": shared_part(mean.square().sum(), weights.squares()[counted].mean(), keys),
    }


def _distance(rows: CrossRows, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Average distance of the counted rows that are not zero, and how many are."""
    norms = rows.squares().sqrt()
    present = (norms > 0) & counted
    count = present.sum()
    direction = rows.weighted(torch.where(present, norms.reciprocal(), 0.0)) / count
    return (0.5 * (1 - direction.square().sum())).clamp_min(0), counted.sum() - count
