"""Adapters for attention in torch and torchvision."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nlprobe.probe.adapters.attention_module import AttentionModule, Call
from nlprobe.probe.adapters.layout import as_rows
from nlprobe.probe.adapters.protocol import PairwiseCapture

SWIN_HIDDEN = -99.0
"""Swin hides keys of other regions with −100."""


@dataclass(frozen=True)
class MultiheadAttention(AttentionModule):
    """`torch.nn.MultiheadAttention`: x is its `query` argument, z − x what `out_proj` gives.

    With `batch_first=False` the axes of input and output are (n, b, c). `bias_k` and `add_zero_attn` add keys at the
    end, which are measured like any other.
    """

    block: str = "nn.MultiheadAttention"
    classes: tuple[type | str, ...] = (nn.MultiheadAttention,)
    source: int | str = "query"
    projection: str = "out_proj"

    def ends(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> tuple[Tensor | None, Tensor | None]:
        """Batches first, as the products have them."""
        assert isinstance(module, nn.MultiheadAttention)
        x, out = (args[0] if args else kwargs["query"]).detach(), result[0].detach()
        layout = "n c" if x.dim() == 2 else "b n c" if module.batch_first else "n b c"
        return as_rows(x, layout), as_rows(out, layout)

    def crosses(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether `key` is another tensor than `query`."""
        query = args[0] if args else kwargs["query"]
        return query is not (args[1] if len(args) > 1 else kwargs["key"])


@dataclass(frozen=True)
class TorchvisionSwin(AttentionModule):
    """torchvision's shifted-window attention: the sets are its windows, padded and shifted as it does.

    x is what enters the `qkv` map, window by window, and z − x what leaves `proj`. Where the image is padded to whole
    windows, the rows of padding are left out as queries (`positions` is then "valid"); the model attends to them as
    keys.
    """

    block: str = "torchvision.ShiftedWindowAttention"
    classes: tuple[type | str, ...] = ("torchvision.models.swin_transformer.ShiftedWindowAttention",)
    projection: str = "proj"
    windows: bool = True
    hidden_below: float = SWIN_HIDDEN

    def watched(self, module: nn.Module) -> dict[str, Tensor]:
        """The two linear maps, which its forward calls as functions."""
        return {name: module.get_submodule(name).weight for name in ("qkv", "proj")}  # type: ignore[misc]

    def ends(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> tuple[Tensor | None, Tensor | None]:
        """What enters `qkv` and what leaves `proj`, in windows."""
        return call.frame.linear["qkv"][0], call.frame.linear["proj"][1]

    def captures(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> list[PairwiseCapture]:
        """With the grid of a window, and which of its positions are not padding."""
        found = super().captures(module, args, kwargs, result, call)
        size = tuple(module.window_size)  # type: ignore[arg-type]
        valid = _not_padding(args[0], size, tuple(module.shift_size))  # type: ignore[arg-type]
        return [replace(capture, query_grid=size, key_grid=size, valid=valid) for capture in found]


def _not_padding(x: Tensor, window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor | None:
    """(windows, positions): False where the image was padded to whole windows; None where it was not."""
    batch, height, width, _ = x.shape
    padded = [-(-size // w) * w for size, w in zip((height, width), window, strict=True)]
    if padded == [height, width]:
        return None
    real = torch.zeros(padded, dtype=torch.bool, device=x.device)
    real[:height, :width] = True
    moved = [0 if w >= size else s for w, size, s in zip(window, padded, shift, strict=True)]
    real = real.roll((-moved[0], -moved[1]), (0, 1))
    rows = real.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0]))  # (rows, wh, columns, ww)
    return rows.transpose(1, 2).flatten(2).flatten(0, 1).repeat(batch, 1)


TORCH_ADAPTERS = (MultiheadAttention(), TorchvisionSwin())
