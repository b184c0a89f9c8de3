"""A 1x1 convolution with batch norm and activation, on rows; and dropout of whole channels, on maps."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["relu", "leaky_relu", "none"]

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
        self.activation = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(SLOPE), "none": nn.Identity()}[activation]

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.linear.reset_parameters()
        self.norm.reset_parameters()

    def forward(self, rows: Float[Tensor, "b n c"]) -> Float[Tensor, "b n width"]:
        """The transformed rows."""
        projected = self.linear(rows)
        transformed: Tensor = self.activation(self.norm(projected.flatten(0, 1)))
        return transformed.view(projected.shape)


def drop_channels(x: Float[Tensor, "b c *spatial"], share: float, training: bool) -> Float[Tensor, "b c *spatial"]:
    """Set a share of an image's channels to zero while training, as `Dropout2d` does, on maps of any dimensions."""
    return torch.feature_dropout(x, share, training)
