"""The one softmax map of SNL and GC, which all positions share."""

from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from nlprobe.stats.streaming import kernel, require_finite, wide


@kernel
def single_map_statistics(
    logits: Float[Tensor, "*batch n"],
) -> tuple[Float64[Tensor, "*batch"], Float64[Tensor, "*batch"]]:
    """Entropy and effective number of positions of the map softmax(logits) (eq. 3 and eq. 5).

    entropy = −Σ_j p_j log p_j / log N, n_eff = 1 / Σ_j p_j². O(N) in float64. With one position the entropy is NaN.

    Args:
        logits: W_k x_j for each position.

    Returns:
        The entropy, relative to that of a uniform map, and n_eff, between 1 and N.

    Raises:
        NlprobeError: logits holds NaN or infinity.
    """
    require_finite(logits=logits)
    logits = wide(logits)
    shifted = logits - logits.amax(-1, keepdim=True)
    weights = shifted.exp()
    total = weights.sum(-1)
    # log Σ w − Σ w s / Σ w with s ≤ 0 = max s: two terms that are ≥ 0
    entropy = total.log() - (weights * shifted).sum(-1) / total
    uniform = logits.new_tensor(logits.shape[-1]).log()
    return entropy / uniform, total.square() / weights.square().sum(-1)


@kernel
def single_map_mass(logits: Float[Tensor, "*batch n"], keys: Shaped[Tensor, "*batch n"]) -> Float64[Tensor, "*batch"]:
    """What chosen positions get of the map softmax(logits): Σ_{j chosen} p_j. O(N) in float64.

    Args:
        logits: W_k x_j for each position.
        keys: Which positions are meant, or the part of each that is.

    Raises:
        NlprobeError: logits holds NaN or infinity.
    """
    require_finite(logits=logits)
    return (wide(logits).softmax(-1) * keys.to(logits.device)).sum(-1)
