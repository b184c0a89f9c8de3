"""timm's attention that gathers all positions into few: class tokens, learnt latents, pools over a feature map."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from nlprobe.probe.adapters.attention_module import AttentionModule, Call
from nlprobe.probe.adapters.protocol import PairwiseCapture


@dataclass(frozen=True)
class ClassAttention(AttentionModule):
    """The class token, which is the first row of x, attends to all rows; x is that token's row."""

    block: str = "timm.ClassAttn"
    classes: tuple[type | str, ...] = (
        "timm.models.cait.ClassAttn",
        "timm.models.volo.ClassAttention",
        "timm.models.crossvit.CrossAttention",
    )
    projection: str = "proj"
    cross: bool = True

    def ends(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> tuple[Tensor | None, Tensor | None]:
        """The token's row before and after."""
        x, out = super().ends(module, args, kwargs, result, call)
        return None if x is None else x[:, :1], out


@dataclass(frozen=True)
class LatentPool(AttentionModule):
    """Learnt latents attend to all positions; x are the latents, z − x what `proj` gives, before the pool's MLP."""

    block: str = "timm.AttentionPoolLatent"
    classes: tuple[type | str, ...] = ("timm.layers.attention_pool.AttentionPoolLatent",)
    output: str = "proj"
    projection: str = "proj"
    cross: bool = True
    settings: tuple[str, ...] = ("num_heads", "scale", "latent_len", "pool")

    def ends(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> tuple[Tensor | None, Tensor | None]:
        """The latents, which are the same for every image, and what they turn into."""
        assert isinstance(module.latent, Tensor)
        _, out = super().ends(module, args, kwargs, result, call)
        return None if out is None else module.latent.detach().expand(out.shape[0], -1, -1), out


@dataclass(frozen=True)
class AttentionPool2d(AttentionModule):
    """timm's attention pools over a feature map: the map's mean, or a class token, comes before its positions.

    x is what enters the query map and z − x what leaves `proj`. All queries are computed and measured; with
    `pool_type="token"` the network goes on with the first one alone.
    """

    block: str = "timm.AttentionPool2d"
    classes: tuple[type | str, ...] = (
        "timm.layers.attention_pool2d.AttentionPool2d",
        "timm.layers.attention_pool2d.RotAttentionPool2d",
    )
    projection: str = "proj"
    prefix: int | None = 1
    settings: tuple[str, ...] = ("num_heads", "scale", "pool_type")

    def watched(self, module: nn.Module) -> dict[str, Tensor]:
        """The query map, and `proj` where there is one."""
        layers = {"query": module.q if module.qkv is None else module.qkv, "proj": module.proj}
        return {name: layer.weight for name, layer in layers.items() if isinstance(layer, nn.Linear)}

    def ends(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> tuple[Tensor | None, Tensor | None]:
        """What enters the query map and what leaves `proj`."""
        out = call.frame.linear.get("proj")
        return call.frame.linear["query"][0], None if out is None else out[1]

    def placed(self, module: nn.Module, source: Tensor | None, capture: PairwiseCapture) -> PairwiseCapture:
        """The grid of the positions after the first."""
        assert source is not None
        grid = tuple(source.shape[2:])
        return replace(capture, query_grid=grid, key_grid=grid)
