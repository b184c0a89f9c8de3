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
    """Statistics of the attention rows a_i = (a_ij)_j; c_i = a_i − (Σ_j a_ij/|S_i|)·1_{S_i}.

    S_i is the support of row i: the keys that query i may see, all M where nothing is masked; of a head-averaged map it
    is the union of the heads' supports. Rows are taken in full, zeros outside S_i. A row that is zero, because its
    query sees no key or by itself, has no direction and is left out of every column.

    Attributes:
        avg_dist: Average cosine distance of the rows that are not zero; NaN where all are.
        zero_rows: How many rows are zero.
        entropy: Mean of (−Σ_j a_ij log a_ij)/log |S_i| over the rows that see more than one key; NaN where rows are not
            distributions, or none sees more than one key.
        n_eff: mean_i (Σ_j |a_ij|)² / Σ_j a_ij² over the rows that are not zero, between 1 and M.
        shared: ‖mean_i c_i‖² / mean_i ‖c_i‖², the part of the maps' unevenness that all queries have in common; NaN
            where every c_i is zero.
    """

    avg_dist: Float64[Tensor, "*batch"]
    zero_rows: Int64[Tensor, "*batch"]
    entropy: Float64[Tensor, "*batch"]
    n_eff: Float64[Tensor, "*batch"]
    shared: Float64[Tensor, "*batch"]
