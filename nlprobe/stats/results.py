"""What the kernels for logits and maps return."""

from dataclasses import dataclass

from jaxtyping import Float64, Int64
from torch import Tensor


@dataclass(frozen=True)
class ProductStatistics:
    """Statistics of the logit rows s_i = (s_ij)_j; C_q, C_k are the biased covariances of queries and keys.

    Attributes:
        avg_dist: Average cosine distance of the rows that are not zero; NaN where all are.
        zero_rows: How many rows are zero.
        logit_std: √(mean_ij (s_ij − mean_j s_ij)²) of the scaled logits, = √(pairwise + unary).
        pairwise: The part of its square that depends on the query: tr(C_q C_k), times scale².
        unary: The part that all queries share: q̄ᵀ C_k q̄, times scale².
    """

    avg_dist: Float64[Tensor, "*batch"]
    zero_rows: Int64[Tensor, "*batch"]
    logit_std: Float64[Tensor, "*batch"]
    pairwise: Float64[Tensor, "*batch"]
    unary: Float64[Tensor, "*batch"]


@dataclass(frozen=True)
class MapStatistics:
    """Statistics of the attention rows a_i = (a_ij)_j over M keys; c_i = a_i − mean_j a_ij.

    Attributes:
        avg_dist: Average cosine distance of the rows that are not zero; NaN where all are.
        zero_rows: How many rows are zero.
        entropy: mean_i −Σ_j a_ij log a_ij, divided by log M; NaN where rows are not distributions, or M = 1.
        n_eff: mean_i (Σ_j |a_ij|)² / Σ_j a_ij² over the rows that are not zero, between 1 and M.
        shared: ‖mean_i c_i‖² / mean_i ‖c_i‖², the part of the maps' unevenness that all queries have in common; NaN
            where every c_i is zero.
    """

    avg_dist: Float64[Tensor, "*batch"]
    zero_rows: Int64[Tensor, "*batch"]
    entropy: Float64[Tensor, "*batch"]
    n_eff: Float64[Tensor, "*batch"]
    shared: Float64[Tensor, "*batch"]
