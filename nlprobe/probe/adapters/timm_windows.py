"""timm's attention within windows that it cuts itself, or that lie in axes of their own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nlprobe.probe.adapters.attention_module import AttentionModule, Call
from nlprobe.probe.adapters.protocol import PairwiseCapture
from nlprobe.probe.watch import Product

Move = Callable[[Tensor], Tensor]


def rearranged(product: Product, move: Move) -> Product:
    """The product with `move` applied to everything that has its leading dimensions."""
    query, key, given = (None if t is None else move(t) for t in (product.query, product.key, product.given))
    return replace(
        product,
        query=query,
        key=key,
        given=given,
        value=move(product.value),
        context=move(product.context),
        biases=tuple(map(move, product.biases)),
        visible=tuple(map(move, product.visible)),
    )


@dataclass(frozen=True)
class MaskUnitAttention(AttentionModule):
    """Hiera's: tensors are (b, heads, windows, n, d), and a window's tokens lie `windows` apart in the sequence.

    Where the queries are pooled (`q_stride`), x has other rows than they have, and `input` is absent.
    """

    block: str = "timm.MaskUnitAttention"
    classes: tuple[type | str, ...] = ("timm.models.hiera.MaskUnitAttention",)
    heads: str = "heads"
    projection: str = "proj"
    windows: bool = True
    settings: tuple[str, ...] = ("heads", "q_stride", "window_size", "use_mask_unit_attn")

    def ends(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> tuple[Tensor | None, Tensor | None]:
        """The rows of each window."""
        x, out = super().ends(module, args, kwargs, result, call)
        context = call.frame.products[0].context
        if context.dim() != 5:
            return x, out
        windows = context.shape[2]
        return tuple(
            None if rows is None else rows.unflatten(1, (-1, windows)).transpose(1, 2).flatten(0, 1)
            for rows in (x, out)
        )  # type: ignore[return-value]

    def placed(self, module: nn.Module, source: Tensor | None, capture: PairwiseCapture) -> PairwiseCapture:
        """Without a grid: tokens lie in the order in which later stages pool them."""
        return replace(capture, query_grid=(capture.n_queries,), key_grid=(capture.n_keys,))

    def capture(
        self, module: nn.Module, product: Product, x: Tensor | None, out: Tensor | None, *, several: bool = False
    ) -> PairwiseCapture:
        """With windows before heads."""
        if product.context.dim() == 5:
            product = rearranged(product, lambda tensor: tensor.transpose(1, 2))
        return super().capture(module, product, x, out, several=several)


@dataclass(frozen=True)
class NestAttention(AttentionModule):
    """Nested transformers' blocks of an image: x is (b, blocks, n, c), tensors (b, heads, blocks, n, d)."""

    block: str = "timm.nest.Attention"
    classes: tuple[type | str, ...] = ("timm.models.nest.Attention",)
    projection: str = "proj"
    windows: bool = True

    def ends(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> tuple[Tensor | None, Tensor | None]:
        """The rows of each block."""
        x = self.given_source(args, kwargs)
        return (None if x is None else x.detach().flatten(0, 1)), result.detach().flatten(0, 1)

    def capture(
        self, module: nn.Module, product: Product, x: Tensor | None, out: Tensor | None, *, several: bool = False
    ) -> PairwiseCapture:
        """With blocks before heads."""
        product = rearranged(product, lambda tensor: tensor.transpose(1, 2))
        return super().capture(module, product, x, out, several=several)

    def merged(self, context: Tensor) -> Tensor:
        """The heads of each channel side by side: (s, n, dv·h)."""
        return context.permute(0, 2, 3, 1).flatten(2)


@dataclass(frozen=True)
class HaloAttention(AttentionModule):
    """Each block of positions attends to itself and a halo around it; tensors are (b·heads, blocks, n, d).

    Keys outside of the image are zero vectors, which the model attends to. `input` and `output` are those of the whole
    image and absent.
    """

    block: str = "timm.HaloAttn"
    classes: tuple[type | str, ...] = ("timm.layers.halo_attn.HaloAttn",)
    layout: str = "b c h w"
    windows: bool = True
    cross: bool = True
    settings: tuple[str, ...] = ("num_heads", "block_size", "halo_size", "scale")

    def capture(
        self, module: nn.Module, product: Product, x: Tensor | None, out: Tensor | None, *, several: bool = False
    ) -> PairwiseCapture:
        """With blocks before heads."""
        heads = module.num_heads
        product = rearranged(product, lambda tensor: tensor.unflatten(0, (-1, heads)).transpose(1, 2))
        return super().capture(module, product, None, None, several=several)


@dataclass(frozen=True)
class LocallyGroupedAttention(AttentionModule):
    """Twins': windows of an image, cut and filled up with zeros inside the module; tensors (b, windows, heads, n, d).

    x is what enters `qkv`, window by window, and z − x what leaves `proj`, cut into the same windows. Rows that fill a
    window up are left out as queries; the model attends to them as keys.
    """

    block: str = "timm.LocallyGroupedAttn"
    classes: tuple[type | str, ...] = ("timm.models.twins.LocallyGroupedAttn",)
    projection: str = "proj"
    windows: bool = True
    settings: tuple[str, ...] = ("num_heads", "ws", "scale")

    def watched(self, module: nn.Module) -> dict[str, Tensor]:
        """The map whose input is cut into windows."""
        return {"qkv": module.get_submodule("qkv").weight}  # type: ignore[dict-item]

    def ends(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> tuple[Tensor | None, Tensor | None]:
        """What enters `qkv` and what leaves the module, in windows."""
        x = call.frame.linear["qkv"][0]  # (b, rows, columns, ws, ws, c)
        (rows, columns), side = x.shape[1:3], x.shape[3]
        height, width = args[1] if len(args) > 1 else kwargs["size"]
        out = result.detach().unflatten(1, (height, width))
        out = F.pad(out, (0, 0, 0, columns * side - width, 0, rows * side - height))
        out = out.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
        return x.flatten(0, 2).flatten(1, 2), out.flatten(0, 2).flatten(1, 2)

    def placed(self, module: nn.Module, source: Tensor | None, capture: PairwiseCapture) -> PairwiseCapture:
        """With the grid of a window."""
        assert isinstance(module.ws, int)
        grid = (module.ws, module.ws)
        return replace(capture, query_grid=grid, key_grid=grid)
