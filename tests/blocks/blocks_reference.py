"""The formulas of section 3.1 written out, with the whole map in memory."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Block = TypeVar("Block", bound=nn.Module)


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


def randomised(block: Block) -> Block:
    """All parameters and running statistics at random, none zero."""
    with torch.no_grad():
        for name, tensor in block.state_dict().items():
            if tensor.dtype.is_floating_point:
                signs = torch.randint(0, 2, tensor.shape, device=tensor.device) * 2 - 1
                tensor.uniform_(0.1, 1.0).mul_(1 if name.endswith("running_var") else signs)
    return block


def batch_norm(norm: nn.BatchNorm1d, channels_first: Tensor) -> Tensor:
    """The norm of a (B, C, ...) tensor, its running statistics left as they are."""
    mean, variance = (norm.running_mean, norm.running_var) if not norm.training else (None, None)
    return F.batch_norm(channels_first, mean, variance, norm.weight, norm.bias, norm.training, 0.0, norm.eps)


def convolved(linear: nn.Linear, x: Tensor) -> Tensor:
    """The 1x1 convolution that a linear layer on rows stands for, of a (B, C, ...) tensor."""
    rows = torch.einsum("oc,bcn->bon", linear.weight, x.flatten(2)).unflatten(2, x.shape[2:])
    return rows if linear.bias is None else rows + linear.bias.view(-1, *(1,) * (x.ndim - 2))


def assert_value_and_gradients(block: nn.Module, formula: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """The block computes what the formula says, and so are the gradients of all inputs and parameters."""
    wanted = [*(x.requires_grad_() for x in inputs), *block.parameters()]
    expected = formula(*inputs)
    actual = block(*inputs)
    upstream = torch.randn_like(expected)
    assert relative_error(actual, expected) < 1e-12
    references = torch.autograd.grad(expected, wanted, upstream, allow_unused=True)
    gradients = torch.autograd.grad(actual, wanted, upstream, allow_unused=True)
    largest = max(float(reference.norm()) for reference in references if reference is not None)
    for gradient, reference in zip(gradients, references, strict=True):
        if reference is None:
            assert gradient is None or gradient.norm() < 1e-10 * largest
            continue
        assert gradient is not None
        assert (gradient - reference).norm() < 1e-10 * largest
