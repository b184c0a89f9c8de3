"""A 1x1 convolution with batch norm and activation, on rows."""

from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["relu", "leaky_relu", "none"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

SLOPE = 0.01
"""Of the leaky ReLU, which is what InPlaceABN applies unless it is told otherwise."""


class RowTransform(nn.Module):
    """act(BN(W x_i)) for every position; W as torch draws a 1x1 convolution.

    Args:
        channels: Width of the rows.
        width: Width of the result.
        activation: "relu", "leaky_relu" (slope 0.01) or "none".
        bias: Bias on W, which the norm takes off again in training.
    """

    def __init__(self, channels: int, width: int, activation: Activation = "relu", bias: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, width, bias=bias)
        self.norm = nn.BatchNorm1d(width)
        self.activation = activation

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.linear.reset_parameters()
        self.norm.reset_parameters()

    def forward(self, rows: Float[Tensor, "b n c"]) -> Float[Tensor, "b n width"]:
        """The transformed rows."""
        projected = self.linear(rows)
        normed: Tensor = self.norm(projected.flatten(0, 1)).view(projected.shape)
        return activated(normed, self.activation)

    def extra_repr(self) -> str:
        """The activation, as `print` shows it."""
        return self.activation


def activated(rows: Tensor, activation: Activation) -> Tensor:
    """The activation of rows."""
    if activation == "relu":
        return F.relu(rows)
    return F.leaky_relu(rows, SLOPE) if activation == "leaky_relu" else rows
