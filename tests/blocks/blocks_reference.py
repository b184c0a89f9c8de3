"""The formulas of section 3.1 written out, with the whole map in memory."""

import torch
from torch import Tensor


def written_out(
    instantiation: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float = 1.0,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    keys = key.shape[1]
    if instantiation == "dot_product":
        return query @ key.mT / keys @ value
    if instantiation == "concat":
        assert weights is not None
        pairs = (query @ weights[0]).unsqueeze(2) + (key @ weights[1]).unsqueeze(1)
        return torch.relu(pairs) / keys @ value
    return torch.softmax(scale * query @ key.mT, -1) @ value


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error in float64; 0 for two zero tensors."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape
    norm = torch.linalg.vector_norm(expected)
    error = torch.linalg.vector_norm(actual - expected)
    return float(error / norm) if norm > 0 else float(error)
