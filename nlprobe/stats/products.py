"""Statistics of the logit rows q_i·k_j, without the N×M matrix that they make."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from nlprobe.stats.distance import REFINE_BELOW
from nlprobe.stats.results import ProductStatistics
from nlprobe.stats.short_products import ProductSums, is_short, short_products
from nlprobe.stats.streaming import UNDERFLOW, block_elements, kernel, require_finite, spans, wide, widened

LARGE = 1 << 24
"""Multiplications in one set from which float32 products, checked afterwards, are worth while."""

SPLIT_BELOW = 1e-6
"""Where the pairwise part is a smaller share of the mean squared logit, subtracting loses digits: centre and redo."""

NEARLY_NULL = 1e-9
"""n_i² relative to ‖q_i‖² tr G under which q_iᵀ G q_i cancels even in float64: sum the squared logits instead."""

ACCEPTED_ERROR = 5e-6
"""Largest relative error of a result for which float32 products are kept."""

SAMPLE_ROWS = 32
"""Rows recomputed in float64 to learn the error of the float32 products."""


@kernel
def product_statistics(
    query: Float[Tensor, "*batch n d"], key: Float[Tensor, "*batch m d"], scale: float = 1.0
) -> ProductStatistics:
    """Statistics of the rows s_i = (scale · q_i·k_j)_j: their distance, and the split of their row-centred variance.

    With G = KᵀK, n_i = √(q_iᵀ G q_i) and s = mean_i q_i/n_i: avg_dist = ½ (1 − sᵀ G s), and where that is small
    ½ mean_i (q_i/n_i − s)ᵀ G (q_i/n_i − s). The row-centred logits have the variance pairwise + unary,
    pairwise = tr(C_q C_k), unary = q̄ᵀ C_k q̄, with the biased covariances C; the centred products are formed where
    pairwise is small against the logits.

    O((N + M)·d²), or O(N·M·d) where that is less (few keys), memory O(d² + N) and a block. float64; large sets are
    first tried with float32 products, which are kept if the error of n_i² that a sample of rows shows leaves every
    result within `ACCEPTED_ERROR`, and short ones in few float32 passes (`short_products`), kept where these are good.

    Args:
        query: Queries as they enter the product; half precision is widened first.
        key: Keys as they enter the product.
        scale: Factor on the logits; it does not change the distance.

    Returns:
        The statistics; a row is zero where a query is orthogonal to all keys.

    Raises:
        NlprobeError: query or key holds NaN or infinity.
    """
    return _statistics(_found(query, key, 0)[0], scale, query, key)


@kernel
def product_statistics_beside_prefix(
    query: Float[Tensor, "*batch n d"], key: Float[Tensor, "*batch m d"], prefix: int, scale: float = 1.0
) -> list[ProductStatistics]:
    """`product_statistics` of all queries, and of those after the first `prefix`: of short sets in the same passes.

    Args:
        query: Queries as they enter the product.
        key: Keys as they enter the product.
        prefix: How many of the first queries are left out the second time; fewer than there are queries.
        scale: Factor on the logits.

    Raises:
        NlprobeError: query or key holds NaN or infinity.
    """
    return [_statistics(found, scale, query, key) for found in _found(query, key, prefix)]


def _statistics(sums: ProductSums, scale: float, query: Tensor, key: Tensor) -> ProductStatistics:
    found = {name: value.reshape(query.shape[:-2]) for name, value in vars(sums).items()}
    if not bool(torch.isfinite(found["pairwise"] + found["unary"]).all()):
        require_finite(query=query, key=key)
    pairwise, unary = found["pairwise"] * scale**2, found["unary"] * scale**2
    return ProductStatistics(
        avg_dist=found["distance"],
        zero_rows=found["zero_rows"].long(),
        logit_std=(pairwise + unary).sqrt(),
        pairwise=pairwise,
        unary=unary,
    )


def _found(query: Tensor, key: Tensor, prefix: int) -> list[ProductSums]:
    """The statistics of all sets, one after the other: of short float32 ones in few passes where these do."""
    (n, d), m = query.shape[-2:], key.shape[-2]
    if not (query.dtype == key.dtype == torch.float32 and query.numel() and is_short(n, m, d, query.device)):
        rows, keys = (widened(t).reshape(-1, *t.shape[-2:]) for t in (query, key))
        return _grouped(rows, keys, prefix)
    heads = query.shape[-3] if query.dim() > 2 else 1
    queries, keys = (widened(t).reshape(-1, heads, *t.shape[-2:]) for t in (query, key))
    result = []
    for start, (found, kept) in zip((0, prefix), short_products(queries, keys, prefix), strict=False):
        if not bool(kept.all()):
            (again,) = _grouped(queries[~kept][:, start:], keys[~kept], 0)
            for name, value in vars(found).items():
                value[~kept] = vars(again)[name].to(value.dtype)
        result.append(found)
    return result


def _grouped(query: Tensor, key: Tensor, prefix: int) -> list[ProductSums]:
    """The statistics of sets (s, n, d) and (s, m, d), several small ones at a time."""
    (n, d), m = query.shape[-2:], key.shape[-2]
    groups = [
        _sets(query[sets], key[sets], prefix)
        for sets in spans(query.shape[0], 8 * block_elements(query.device) // max(1, (n + m) * d))
    ]
    return [
        ProductSums(**{name: torch.cat([vars(one)[name] for one in parts]) for name in vars(parts[0])})
        for parts in zip(*groups, strict=True)
    ]


def _sets(query: Tensor, key: Tensor, prefix: int) -> list[ProductSums]:
    """The statistics of g sets at once, (g, n, d) and (g, m, d); of all queries, and with a prefix of the rest."""
    (n, d), m = query.shape[-2:], key.shape[-2]
    by_rows = n * m < (n + m) * d
    if query.dtype == key.dtype == torch.float32 and not by_rows and (n + m) * d * d >= LARGE:
        found = _single_precision(query, key, prefix)
        if found is not None:
            return found
    return [_double_precision(query[:, start:], key, by_rows) for start in ((0, prefix) if prefix else (0,))]


def _double_precision(query: Tensor, key: Tensor, by_rows: bool) -> ProductSums:
    n, m = query.shape[-2], key.shape[-2]
    size, key_size = magnitude(query, (-1,)), magnitude(key, (-2, -1)).expand(-1, m, -1)  # (g, n, 1), (g, m, 1)
    first = wide(key[:, :1]) / key_size[:, :1]
    offset = _mean(key, key_size, first)  # measured from the first key, so that equal keys have exactly no variance
    metric = _metric(key, key_size, torch.zeros_like(first), by_rows)
    squares, lengths, along = (wide(query.new_empty(query.shape[:2])) for _ in range(3))
    for span, rows in _blocks(query, size):
        squares[:, span], lengths[:, span] = _quadratic(rows, metric, by_rows), rows.square().sum(-1)
        along[:, span] = (rows @ (first + offset).mT).squeeze(-1)
    if not by_rows:
        trace = metric.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        if bool((squares < NEARLY_NULL * lengths * trace).any()):
            return _double_precision(query, key, by_rows=True)
    inverse = torch.where(squares > 0, squares.rsqrt(), 0.0).unsqueeze(-1)
    count = (squares > 0).sum(-1)
    centre = sum(
        ((rows * inverse[:, span]).sum(-2, keepdim=True) for span, rows in _blocks(query, size)), start=first * 0
    )
    centre = centre / count[:, None, None]
    distance = (0.5 * (1 - _quadratic(centre, metric, by_rows).squeeze(-1))).clamp_min(0)
    if bool((distance < REFINE_BELOW).any()):
        distance = 0.5 * _variance(query, size, inverse, centre, metric, by_rows)
    # the rows' own sizes, relative to the largest, come back here; the largest last
    query_size = size.amax(-2, keepdim=True)
    relative = (size / query_size).squeeze(-1)
    query_mean = _mean(query, query_size.expand(-1, n, -1), torch.zeros_like(first))
    unary = torch.cat([((rows - first) @ query_mean.mT).squeeze(-1) for _, rows in _blocks(key, key_size)], dim=-1).var(
        -1, correction=0
    )
    mean_square = (squares * relative.square()).mean(-1) / m
    pairwise = mean_square - (along * relative).square().mean(-1) - unary
    if bool((pairwise < SPLIT_BELOW * mean_square).any()):
        metric = _metric(key, key_size, first, by_rows, offset)
        whole = query_size.expand(-1, n, -1)
        first_query = wide(query[:, :1]) / query_size
        query_offset = _mean(query, whole, first_query)
        total = torch.zeros_like(unary)
        for _, rows in _blocks(query, whole):
            total += _quadratic(rows - first_query - query_offset, metric, by_rows).sum(-1)
        pairwise = total / (n * m)
    factor = (query_size * key_size[:, :1]).flatten().square()
    return ProductSums(
        distance=torch.where(count > 0, distance, torch.nan),
        zero_rows=n - count,
        pairwise=pairwise * factor,
        unary=unary * factor,
    )


def _blocks(rows: Tensor, size: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows in float64, divided by their size."""
    step = block_elements(rows.device) // (rows.shape[0] * rows.shape[-1])
    for span in spans(rows.shape[-2], max(64, step)):
        yield span, wide(rows[:, span]) / size[:, span]


def _mean(rows: Tensor, size: Tensor, origin: Tensor) -> Tensor:
    """Mean of the rows over their size, less `origin`: (g, 1, d)."""
    total = torch.zeros_like(origin)
    for _, block in _blocks(rows, size):
        total += (block - origin).sum(-2, keepdim=True)
    return total / rows.shape[-2]


def _metric(key: Tensor, size: Tensor, first: Tensor, by_rows: bool, offset: Tensor | float = 0.0) -> Tensor:
    """K less `first` less `offset`, in that order: as it is (`by_rows`), or as KᵀK."""
    if by_rows:
        return wide(key) / size - first - offset
    gram = wide(key.new_zeros(key.shape[0], key.shape[-1], key.shape[-1]))
    for _, rows in _blocks(key, size):
        rows = rows - first - offset
        gram.baddbmm_(rows.mT, rows)
    return gram


def _quadratic(rows: Tensor, metric: Tensor, by_rows: bool) -> Tensor:
    """‖K x‖² for each row x."""
    if by_rows:
        return (rows @ metric.mT).square_().sum(-1)
    return (rows @ metric).mul_(rows).sum(-1)


def _variance(query: Tensor, size: Tensor, inverse: Tensor, centre: Tensor, metric: Tensor, by_rows: bool) -> Tensor:
    """Variance of the unit rows around their mean K·centre, from the residuals; zero rows are left out."""
    squares, drift = wide(query.new_zeros(query.shape[0])), torch.zeros_like(centre)
    for span, rows in _blocks(query, size):
        residual = rows * inverse[:, span] - (inverse[:, span] > 0) * centre
        squares += _quadratic(residual, metric, by_rows).sum(-1)
        drift += residual.sum(-2, keepdim=True)
    count = (inverse > 0).sum((-2, -1))
    drift_square = _quadratic(drift / count[:, None, None], metric, by_rows).squeeze(-1)
    return (squares / count - drift_square).clamp_min(0)


def magnitude(rows: Tensor, dims: tuple[int, ...]) -> Tensor:
    """What float64 input is divided by, lest squares over- or underflow: the largest magnitude over `dims`, never 0."""
    if rows.dtype != torch.float64:
        shape = [1 if axis - rows.dim() in dims else length for axis, length in enumerate(rows.shape)]
        return wide(rows.new_ones(shape))
    largest = torch.maximum(rows.amax(dims, keepdim=True), -rows.amin(dims, keepdim=True))
    return torch.where(largest > 0, largest, 1.0)


def _single_precision(query: Tensor, key: Tensor, prefix: int = 0) -> list[ProductSums] | None:
    """The same from float32 products, or None where the error that a sample shows is too large for a result."""
    (n, d), m = query.shape[-2:], key.shape[-2]
    gram, key_sum = wide(key.new_zeros(key.shape[0], d, d)), wide(key.new_zeros(key.shape[0], 1, d))
    for span in spans(m, 1024):
        block = key[:, span]
        gram += block.mT @ block
        key_sum += block.sum(-2, keepdim=True)
    metric, key_mean = gram.to(key.dtype), key_sum / m
    squares, lengths, along = (wide(query.new_empty(query.shape[:2])) for _ in range(3))
    # of the rows after the prefix, and over the prefix
    bounds = [(prefix, n), (0, prefix)] if prefix else [(0, n)]
    centre, query_sum = wide(query.new_zeros(2, query.shape[0], len(bounds), d))
    for part, (start, stop) in enumerate(bounds):
        for within in spans(stop - start, 1024):
            span = slice(start + within.start, start + within.stop)
            block = query[:, span]
            squares[:, span] = (block @ metric).mul_(block).sum(-1)
            lengths[:, span] = wide(torch.linalg.vector_norm(block, dim=-1)).square()
            along[:, span] = (block @ key_mean.mT.to(block.dtype)).squeeze(-1)
            inverse = torch.where(squares[:, span] > 0, squares[:, span].rsqrt(), 0.0)
            centre[:, part] += (inverse.to(block.dtype).unsqueeze(-2) @ block).squeeze(-2)
            query_sum[:, part] += block.sum(-2)
    if bool(query[lengths < UNDERFLOW].any()):
        return None
    if prefix:
        centre, query_sum = (torch.stack((one.sum(1), one[:, 0]), 1) for one in (centre, query_sum))
    starts = (0, prefix) if prefix else (0,)
    counts = [(lengths[:, start:] > 0).sum(-1) for start in starts]
    centre = centre / torch.stack(counts, -1).unsqueeze(-1)
    query_mean = query_sum / torch.tensor([n - start for start in starts], device=query.device).unsqueeze(-1)
    sample = torch.linspace(0, n - 1, SAMPLE_ROWS, device=query.device).long()
    exact = wide(query.new_zeros(query.shape[0], SAMPLE_ROWS + len(starts)))
    probes = torch.cat((wide(query[:, sample]), centre), dim=-2)
    along_mean = wide(key.new_empty(key.shape[0], len(starts), m))
    for span in spans(m, 1024):
        block = wide(key[:, span])
        exact += (probes @ block.mT).square_().sum(-1)
        along_mean[..., span] = query_mean @ block.mT
    # |error of n_i²| ≤ `error`·‖q_i‖², as the sample shows; the rounding of sums over a block is about 1e-7
    error = ((squares[:, sample] - exact[:, :SAMPLE_ROWS]).abs() / lengths[:, sample]).nan_to_num(0.0).amax(-1)
    found = []
    for at, (start, count) in enumerate(zip(starts, counts, strict=True)):
        distance = 0.5 * (1 - exact[:, SAMPLE_ROWS + at])
        unary = along_mean[:, at].var(-1, correction=0)
        square, length = squares[:, start:], lengths[:, start:]
        mean_square, shared_square = square.mean(-1) / m, along[:, start:].square().mean(-1)
        pairwise = mean_square - shared_square - unary
        relative = torch.where(length > 0, error.unsqueeze(-1) * length / square.clamp_min(0), 0.0)
        distance_error = 0.5 * relative.mean(-1) + 1e-7
        pairwise_error = error * length.mean(-1) / m + 2e-7 * shared_square
        accepted = (distance_error <= ACCEPTED_ERROR * distance) & (pairwise_error <= ACCEPTED_ERROR * pairwise)
        if not bool((accepted & torch.isfinite(pairwise)).all()):
            return None
        found.append(ProductSums(distance, n - start - count, pairwise, unary))
    return found
