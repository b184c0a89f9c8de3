"""A network for clips written out in float64: every convolution as sums over frames of convolutions of one frame."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def convolved(x: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """Frame t sees frames t − k // 2 to t + k // 2, as far as they are there."""
    frames, side = weight.shape[2], weight.shape[3]
    out = []
    for t in range(x.shape[2]):
        total: Tensor | float = 0.0
        for tap in range(frames):
            seen = t + tap - frames // 2
            if 0 <= seen < x.shape[2]:
                total = total + F.conv2d(
                    x[:, :, seen], weight[:, :, tap], stride=stride, padding=side // 2, groups=groups
                )
        out.append(total)
    return torch.stack(out, 2)


def normed(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Batch norm with the running statistics."""
    shape = (1, -1, 1, 1, 1)
    mean, variance = (weights[f"{name}.running_{each}"].view(shape) for each in ("mean", "var"))
    scale, shift = (weights[f"{name}.{each}"].view(shape) for each in ("weight", "bias"))
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def reference_logits(weights: Weights, clips: Tensor, layers: tuple[int, ...], groups: int = 1) -> Tensor:
    """Logits of the network in evaluation mode, without inserted blocks."""
    x = normed(convolved(clips, weights["conv1.weight"], stride=2), weights, "bn1").relu()
    x = torch.stack([F.max_pool2d(frame, 3, 2, 1) for frame in x.unbind(2)], 2)
    for stage, count in enumerate(layers, 1):
        for block in range(count):
            x = _residual(
                weights, f"layer{stage}.{block}.", x, stride=2 if stage > 1 and block == 0 else 1, groups=groups
            )
    return x.mean((2, 3, 4)) @ weights["fc.weight"].T + weights["fc.bias"]


def _residual(weights: Weights, at: str, x: Tensor, stride: int, groups: int) -> Tensor:
    bottleneck = f"{at}conv3.weight" in weights
    out = convolved(x, weights[f"{at}conv1.weight"], stride=1 if bottleneck else stride)
    out = normed(out, weights, f"{at}bn1").relu()
    out = convolved(out, weights[f"{at}conv2.weight"], stride=stride if bottleneck else 1, groups=groups)
    out = normed(out, weights, f"{at}bn2")
    if bottleneck:
        out = normed(convolved(out.relu(), weights[f"{at}conv3.weight"]), weights, f"{at}bn3")
    if f"{at}downsample.0.weight" in weights:
        x = normed(convolved(x, weights[f"{at}downsample.0.weight"], stride), weights, f"{at}downsample.1")
    return (out + x).relu()
