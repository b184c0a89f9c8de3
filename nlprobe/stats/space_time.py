"""The average cosine distance of positions in space and time, split by what two positions have in common."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nlprobe.stats.logit_blocks import logits_kernel, require_usable
from nlprobe.stats.logits import Logits
from nlprobe.stats.streaming import block_elements, kernel, require_finite, spans, wide, widened

NULL = 1e-13
"""Logit rows under this part of ‖q_i‖·‖K‖ are zero: the rounding of a query that is orthogonal to all keys."""


@dataclass(frozen=True)
class SpaceTimeDistances:
    """Averages of (1 − cos(v_i, v_j))/2 over ordered pairs (i, j) of rows that are not zero; NaN where there is none.

    With rows on a grid of T frames and P places, and as in `avg_dist` with i = j wherever the condition allows it:

    - same_frame: pairs with t_i = t_j.
    - other_frames: pairs with t_i ≠ t_j.
    - same_place: pairs with p_i = p_j, of which 1/T are i = j; over different times alone it is T/(T − 1) of that.

    Without zero rows avg_dist = same_frame/T + other_frames·(T − 1)/T. With zero rows, n_t rows of frame t being left,
    the weights are Σ_t n_t²/n² and the rest.
    """

    same_frame: Float64[Tensor, "*batch"]
    other_frames: Float64[Tensor, "*batch"]
    same_place: Float64[Tensor, "*batch"]


@kernel
def space_time_distances(v: Float[Tensor, "*batch n c"], frames: int) -> SpaceTimeDistances:
    """The distances of rows of vectors, frame after frame: see `SpaceTimeDistances`.

    With unit rows v̂, the mean c_t and the scatter W_t = Σ_{i in t} ‖v̂_i − c_t‖² of the n_t rows of frame t, n = Σ n_t:

        same_frame   = ½ Σ_t n_t W_t / Σ_t n_t²
        other_frames = ½ (Σ_t (n − n_t) W_t + n Σ_t n_t ‖c_t − c̄‖²) / (n² − Σ_t n_t²)

    and same_place is same_frame with places for frames. No term is negative, so nothing cancels: W_t is taken about
    the first row of the frame, that of a place about its mean. O(N·C) time in float64, memory O(T·C) and a block.

    Args:
        v: Sets of N rows in the order of a grid whose first axis is time; half precision is widened first.
        frames: T, which divides N.

    Raises:
        NlprobeError: v holds NaN or infinity.
    """
    require_finite(v=v)
    sets = v.reshape(-1, frames, v.shape[-2] // frames, v.shape[-1])
    found = []
    for one in sets:
        sums = _Sums(1, frames, v.shape[-1], one.device)
        for places in spans(one.shape[1], block_elements(one.device) // max(1, frames * v.shape[-1])):
            sums.add(_scaled(wide(one[:, places])).unsqueeze(0))
        found.append(sums.found())
    return _gathered(found, v.shape[:-2])


@kernel
def product_space_time(
    query: Float[Tensor, "*batch n d"], key: Float[Tensor, "*batch m d"], frames: int
) -> SpaceTimeDistances:
    """The distances of the logit rows (q_i·k_j)_j, without these rows.

    With K = QR, QᵀQ = 1, the row K q_i has the inner products of R q_i, which has min(M, d) numbers. In float64:
    O((N + M)·d²), memory O(N·d).

    Args:
        query: Queries, frame after frame.
        key: Keys.
        frames: T, which divides N.

    Raises:
        NlprobeError: query or key holds NaN or infinity.
    """
    require_finite(query=query, key=key)
    queries, keys = (t.reshape(-1, *t.shape[-2:]) for t in (query, key))
    found = []
    for q, k in zip(queries, keys, strict=True):
        factor = torch.linalg.qr(_scaled(wide(k), whole=True), mode="r").R
        rows = _scaled(wide(q))
        product = rows @ factor.mT
        least = NULL * torch.linalg.vector_norm(rows, dim=-1) * torch.linalg.matrix_norm(factor)
        product[torch.linalg.vector_norm(product, dim=-1) <= least] = 0
        found.append(space_time_distances(product, frames))
    return _gathered(found, query.shape[:-2])


@kernel
def concat_product_space_time(
    a: Float[Tensor, "*batch n"], b: Float[Tensor, "*batch m"], frames: int
) -> SpaceTimeDistances:
    """The distances of the rows (a_i + b_j)_j, which have the inner products of (√M (a_i + b̄), ‖b − b̄‖). O(N + M).

    Args:
        a: The queries' part, frame after frame.
        b: The keys' part.
        frames: T, which divides N.

    Raises:
        NlprobeError: a or b holds NaN or infinity.
    """
    require_finite(a=a, b=b)
    a, b = wide(a), wide(b)
    mean = b.mean(-1, keepdim=True)
    across = torch.linalg.vector_norm(b - mean, dim=-1, keepdim=True)
    return space_time_distances(torch.stack(((a + mean) * math.sqrt(b.shape[-1]), across.expand_as(a)), dim=-1), frames)


@logits_kernel
def softmax_space_time(
    logits: Logits,
    frames: int,
    *,
    unary: Float[Tensor, "s m"] | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    double: bool = False,
) -> SpaceTimeDistances:
    """The distances of the rows ω_i = softmax_j(s_ij) of each head, or of w_p ω_i + w_u u.

    The T rows of a place are formed together, place by place, so that no more than one block of rows is ever there.
    O(N·M·d), memory O(T·M + M·d) and the block. Products and weights in float32, as accurate as `avg_dist` of the maps
    is; the sums over rows in float64.

    Args:
        logits: The maps' logits, queries frame after frame.
        frames: T, which divides N.
        unary: u, which sums to 1; None for softmax maps alone.
        weights: w_p and w_u.
        double: Products in float64.

    Returns:
        Values (s, h).

    Raises:
        NlprobeError: the logits hold NaN, or infinity that hides nothing.
    """
    require_usable(logits)
    s, h, n, m = logits.shape
    dtype = torch.float64 if double else logits.dtype
    found = []
    for at in range(s):
        sets = slice(at, at + 1)
        prepared = logits.prepare(sets, slice(0, h), dtype, centred=True)
        sums = _Sums(h, frames, m, logits.device)
        fixed = None if unary is None else widened(unary[at]).to(dtype) * weights[1]
        for rows in _places(n, frames, block_elements(logits.device) // max(1, h * m), logits.device):
            block = torch.empty(1, h, rows.numel(), m, dtype=dtype, device=logits.device)
            prepared.fill(rows.flatten(), block)
            block.sub_(block.amax(-1, keepdim=True).clamp_min(torch.finfo(dtype).min)).exp_()
            if fixed is not None:
                block.mul_(weights[0] / block.sum(-1, keepdim=True)).add_(fixed)
            sums.add(block[0].unflatten(1, rows.shape))
        found.append(sums.found())
    return _gathered(found, (s, h))


@kernel
def concat_map_space_time(
    a: Float[Tensor, "*batch n"], b: Float[Tensor, "*batch m"], frames: int
) -> SpaceTimeDistances:
    """The distances of the rows ReLU(a_i + b_j) of the concatenation mode. O(N·M) in float64, memory O(T·M), a block.

    Args:
        a: The queries' part, frame after frame.
        b: The keys' part.
        frames: T, which divides N.

    Raises:
        NlprobeError: a or b holds NaN or infinity.
    """
    require_finite(a=a, b=b)
    parts, keys = wide(a).reshape(-1, a.shape[-1]), wide(b).reshape(-1, b.shape[-1])
    found = []
    for one, key in zip(parts, keys, strict=True):
        sums = _Sums(1, frames, len(key), key.device)
        for rows in _places(len(one), frames, block_elements(key.device) // max(1, len(key)), key.device):
            sums.add((one[rows].unsqueeze(-1) + key).clamp_min_(0).unsqueeze(0))
        found.append(sums.found())
    return _gathered(found, a.shape[:-1])


class _Sums:
    """What is added up over blocks of places, in float64, for each of h sets of rows on T frames."""

    def __init__(self, heads: int, frames: int, columns: int, device: torch.device) -> None:
        self._shift: Tensor | None = None  # (h, t, 1, c): the first row of each frame
        self._count, self._squares = wide(torch.zeros(2, heads, frames, device=device))
        self._sum = wide(torch.zeros(heads, frames, columns, device=device))
        self._pairs, self._weight = wide(torch.zeros(2, heads, device=device))

    def add(self, rows: Float[Tensor, "h t p c"]) -> None:
        """Add the rows of some places at all times; they are overwritten."""
        norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        seen = norm > 0
        present = seen.to(rows.dtype)
        unit = rows.div_(torch.where(seen, norm, 1.0))
        if self._shift is None:
            self._shift = unit[:, :, :1].clone()
        # about the mean over time, which is another for each place
        times = present.sum(1, keepdim=True)
        mean = unit.sum(1, keepdim=True) / times.clamp_min(1)
        scatter = (wide(torch.linalg.vector_norm((unit - mean).mul_(present), dim=-1)).square()).sum(1)
        times = wide(times).squeeze(-1).squeeze(1)
        self._pairs += 0.5 * (times * scatter).sum(-1)
        self._weight += times.square().sum(-1)
        residual = unit.sub_(self._shift).mul_(present)
        self._count += wide(present).sum((-2, -1))
        self._squares += wide(torch.linalg.vector_norm(residual, dim=-1)).square().sum(-1)
        self._sum += wide(residual.sum(-2))

    def found(self) -> SpaceTimeDistances:
        """The distances (h,)."""
        assert self._shift is not None
        count, total = self._count, self._count.sum(-1, keepdim=True)
        offset = self._sum / count.clamp_min(1).unsqueeze(-1)
        scatter = (self._squares - count * offset.square().sum(-1)).clamp_min(0)
        centre = wide(self._shift).squeeze(2) + offset
        mean = (count.unsqueeze(-1) * centre).sum(1, keepdim=True) / total.clamp_min(1).unsqueeze(-1)
        between = (count * (centre - mean).square().sum(-1)).sum(-1)
        within = count.square().sum(-1)
        pairs = total.squeeze(-1).square() - within
        return SpaceTimeDistances(
            same_frame=0.5 * (count * scatter).sum(-1) / within,
            other_frames=0.5 * (((total - count) * scatter).sum(-1) + total.squeeze(-1) * between) / pairs,
            same_place=self._pairs / self._weight,
        )


def _places(n: int, frames: int, room: int, device: torch.device) -> Iterator[Tensor]:
    """The indices (T, p) of the rows of some places after others, about `room` rows at a time."""
    grid = torch.arange(n, device=device).view(frames, -1)
    for places in spans(grid.shape[1], room // frames):
        yield grid[:, places]


def _scaled(rows: Tensor, *, whole: bool = False) -> Tensor:
    """Rows over their largest entry, or all of them over that of the whole, lest squares over- or underflow."""
    largest = rows.abs().amax() if whole else rows.abs().amax(-1, keepdim=True)
    return rows / torch.where(largest > 0, largest, 1.0)


def _gathered(found: list[SpaceTimeDistances], shape: tuple[int, ...]) -> SpaceTimeDistances:
    columns = zip(*(vars(one).values() for one in found), strict=True)
    return SpaceTimeDistances(*(torch.stack([value.flatten() for value in column]).view(shape) for column in columns))
