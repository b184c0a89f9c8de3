"""The scalar gate γ with which several blocks of semantic segmentation add their context."""

import torch
from torch import Tensor, nn


class Gamma(nn.Module):
    """γ · y, γ one learnt number; a module of its own so that a forward hook sees what is added.

    Other code has it as a bare parameter `gamma` of one element (DANet, CCNet, the DNL projects) or as `gamma.scale`
    without axes (mmsegmentation).

    Args:
        start: γ of a new block: 0, with which the block starts as the identity, or 1.
    """

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.start = start
        self.gamma = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ to what it starts at."""
        nn.init.constant_(self.gamma, self.start)

    def forward(self, y: Tensor) -> Tensor:
        """γ · y, of y's shape and precision."""
        return y * self.gamma.to(y.dtype)
