"""Where positions lie: how many prefix tokens a model has, how many images a batch holds, and the grid of the rest."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


def prefix_tokens(model: nn.Module, path: str) -> int:
    """How many tokens come before those of the image, as the model's own classes say it.

    Looked for from the site upwards: `num_prefix_tokens` (timm), `num_tokens` beside a `cls_token` (timm's PiT),
    `cls_token_0` (timm's CrossViT), `class_token` (torchvision's VisionTransformer), class, distillation and register
    tokens of the `embeddings` (Hugging Face); 0 where nothing says so.

    Args:
        model: The model.
        path: Module path of the site.
    """
    parts = path.split(".") if path else []
    for length in range(len(parts), -1, -1):
        ancestor = model.get_submodule(".".join(parts[:length]))
        count = getattr(ancestor, "num_prefix_tokens", None)
        if isinstance(count, int):
            return count
        count = getattr(ancestor, "num_tokens", None)
        if isinstance(count, int) and isinstance(getattr(ancestor, "cls_token", None), Tensor):
            return count
        if isinstance(token := getattr(ancestor, "cls_token_0", None), Tensor):
            return token.shape[-2]
        if isinstance(getattr(ancestor, "class_token", None), Tensor):
            return 1
        embeddings = getattr(ancestor, "embeddings", None)
        if isinstance(embeddings, nn.Module):
            count = _tokens_of(embeddings)
            if count:
                return count
    return 0


def _tokens_of(embeddings: nn.Module) -> int:
    """How many tokens of their own embeddings put before those of the image."""
    count = 0
    for name in ("cls_token", "class_embedding", "distillation_token", "register_tokens"):
        token = getattr(embeddings, name, None)
        if isinstance(token, Tensor):
            count += token.shape[-2] if token.dim() > 1 else 1
    return count


@dataclass(frozen=True)
class ImageBatch:
    """What the arguments of a model's forward say about its batch.

    Attributes:
        count: How many images; None where the arguments do not tell.
        size: Spatial sizes of the images; () where they are no images.
    """

    count: int | None = None
    size: tuple[int, ...] = ()

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "ImageBatch":
        """From the first tensor among the arguments; images are (B, C, H, W) or (B, C, T, H, W)."""
        tensor = _first(args) if _first(args) is not None else _first(kwargs.values())
        if tensor is None or tensor.dim() == 0:
            return cls()
        size = tuple(tensor.shape[2:]) if tensor.dim() in (4, 5) and tensor.is_floating_point() else ()
        return cls(tensor.shape[0], size)

    def grid(self, count: int) -> tuple[int, ...]:
        """The grid of `count` positions that covers the image with equal cells; (count,) where there is none.

        Cells are square: of the factorisations of `count`, that whose sides are nearest to the image's in ratio is
        taken, if its cells differ from squares by less than half a cell over the whole side. How many frames of a clip
        a position stands for cannot be told from a count: 8·14·14 positions may as well be 2·28·28.
        """
        if len(self.size) != 2 or count < 1:
            return (count,)
        height, width = self.size
        side = math.sqrt(height * width / count)
        rows = round(height / side)
        for candidate in (rows, rows - 1, rows + 1):
            if candidate >= 1 and count % candidate == 0 and abs(count // candidate - width / side) < 1:
                return candidate, count // candidate
        return (count,)


def _first(values: Iterable[Any]) -> Tensor | None:
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Mapping):
            found = _first(value.values())
            if found is not None:
                return found
    return None
