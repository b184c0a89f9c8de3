"""What a probe costs: all six quantities with their columns against the model's plain forward pass.

The peer is the same network without a probe. The first call under the probe, which the audit recomputes, is not timed.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

import nlprobe
from benchmarks.pairs import Row, main
from nlprobe.models import build, entry

SIZES = {"224x224, batch 8": (8, 224, 224), "800x1333": (1, 800, 1333)}


@cache
def image(size: str) -> Tensor:
    """Random images of a size."""
    count, height, width = SIZES[size]
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@cache
def network(pooled: bool) -> nn.Module:
    """ResNet-50 with an embedded Gaussian block at c4, whose output is not zero."""
    config = entry("imagenet/resnet50-nl").config
    insertion = config.insertions[0]
    sub_sample = "pool_then_project" if pooled else "none"
    block = replace(insertion.block, sub_sample=sub_sample, zero_init=False)
    return build(replace(config, insertions=(replace(insertion, block=block),)), seed=0).eval()


@cache
def probed(pooled: bool) -> nn.Module:
    """The same network with a probe that stays open."""
    model = build(network(pooled).config, seed=0).eval()
    nlprobe.probe(model).__enter__()
    return model


def forward(model: nn.Module, size: str) -> None:
    """One forward pass."""
    with torch.no_grad():
        model(image(size))


def row(size: str, pooled: bool, target: float) -> Row:
    """The row of one image size and key sub-sampling."""
    keys = "pooled keys" if pooled else "unpooled keys"
    return Row(
        f"all quantities, ResNet-50 + NL, {keys}, {size}",
        target,
        "at_most",
        lambda: forward(probed(pooled), size),
        lambda: forward(network(pooled), size),
    )


ROWS = [
    row("224x224, batch 8", pooled=True, target=1.10),
    row("800x1333", pooled=True, target=1.10),
    row("800x1333", pooled=False, target=1.20),
]

if __name__ == "__main__":
    raise SystemExit(main(ROWS))
