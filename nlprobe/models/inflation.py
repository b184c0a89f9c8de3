"""Weights of networks for pictures as the beginning of networks for clips.

A kernel of s x s becomes one of k x s x s. On a video that stands still every frame then gives what the network for
pictures gives of it, if the kernel's frames sum up to the old kernel:

| way | the k frames | used by |
| --- | --- | --- |
| `mean` | each the old kernel divided by k | "Non-local Neural Networks" and its code, mmaction2, SlowFast |
| `centre` | the old kernel in the middle, zeros before and behind it | the start that changes nothing |

Zeros are padded in time. They meet nothing but zeros with `centre`, so that a video that stands still gives the logits
of the network for pictures. With `mean` a kernel that reaches over the first or the last frame loses the share that
lies outside, 1/3 of a kernel of three frames: frames nearer to an end than the number of temporal convolutions passed
(times k // 2) differ, and all others agree. A Slow-only network has nine, six in c4 of ResNet-50 and three in c5, so of
its 8 frames none is untouched in c5, the features that the classifier sees differ, and training has to make up for it.
"""

from collections.abc import Mapping

from torch import Tensor

from nlprobe.blocks.settings import unknown

INFLATIONS = ("mean", "centre")


def inflate(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], way: str = "mean") -> dict[str, Tensor]:
    """The weights with every kernel of pictures as long in time as the network for clips wants it.

    Args:
        weights: By name; what is no kernel of two dimensions, and what the network has not, stays as it is.
        wanted: State dict of the network for clips, for its shapes.
        way: How; see above.

    Raises:
        ConfigError: another way.
    """
    if way not in INFLATIONS:
        raise unknown("way to inflate weights", way, INFLATIONS)
    return {
        name: _inflated(tensor, wanted[name].shape[2], way)
        if tensor.dim() == 4 and name in wanted and wanted[name].dim() == 5
        else tensor
        for name, tensor in weights.items()
    }


def _inflated(kernel: Tensor, frames: int, way: str) -> Tensor:
    """(out, in, h, w) -> (out, in, frames, h, w)."""
    if way == "mean":
        return (kernel / frames).unsqueeze(2).repeat(1, 1, frames, 1, 1)
    long = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    long[:, :, frames // 2] = kernel
    return long
