"""Weights that a network would notice: nothing at zero, norms with statistics of their own."""

import torch
from torch import nn


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every parameter and buffer drawn anew, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.dtype.is_floating_point:
                continue
            drawn = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            if tensor.dim() > 1:
                fan_in = tensor[0].numel()
                tensor.copy_((drawn * 2 - 1) * (3 / fan_in) ** 0.5)
            elif name.endswith(("running_var", "weight", "gamma", "scale")):
                tensor.copy_(drawn * 0.5 + 0.5)
            else:
                tensor.copy_(drawn * 0.4 - 0.2)
    return network.eval()
