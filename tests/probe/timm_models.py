"""timm's models with random weights in float64, small pictures, and a run of the probe."""

import torch
from torch import Tensor, nn

import nlprobe
from nlprobe.probe import Probe

B = 2


def seeded(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with every parameter drawn anew, so that no zero initialisation hides anything."""
    torch.manual_seed(0)
    model = model.double().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def run(model: nn.Module, *args: object, **kwargs: object) -> Probe:
    """One forward call inside a probe."""
    with torch.no_grad(), nlprobe.probe(model) as probe:
        model(*args, **kwargs)
    return probe


def pictures(side: int = 32, channels: int = 3, width: int = 0) -> Tensor:
    """A batch of noise."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, channels, side, width or side, dtype=torch.float64, generator=generator)
