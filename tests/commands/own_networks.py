"""Somebody's own code, as `python:own_networks:…` finds it."""

import itertools
from collections.abc import Iterator

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

import nlprobe
from nlprobe.blocks import CrissCross, CrissCrossConfig, NonLocal, NonLocalConfig


def tiny_vit() -> nn.Module:
    """A vision transformer of timm's: two layers of three heads, 16 patches and a class token."""
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=3)
    return model


def tiny_vit_with_transform() -> tuple[nn.Module, object]:
    return tiny_vit(), v2.Compose([v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def own_shape() -> tuple[nn.Module, object]:
    """A non-local network that takes images of any shape."""
    return non_local(), _halved


def non_local() -> nn.Module:
    """One of nlprobe's own blocks."""
    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), NonLocal(8, config=NonLocalConfig(zero_init=False)))


def criss_cross_with_transform() -> tuple[nn.Module, object]:
    """Criss-cross attention on a grid of 4 x 6, in two steps."""
    network = nn.Sequential(nn.Conv2d(3, 8, 8, 8), CrissCross(8, config=CrissCrossConfig(zero_init=False)))
    return network, v2.Compose([v2.Resize((32, 48)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


class Pooled(nn.Module):
    """One learnt query for all patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.query = nn.Parameter(torch.ones(2, 1, 4))

    def forward(self, images: Tensor) -> Tensor:
        keys = self.patches(images).flatten(2).unflatten(1, (2, 4)).mT.contiguous()  # (B, heads, patches, 4)
        query = self.query.expand(len(images), -1, -1, -1)
        pooled: Tensor = nn.functional.scaled_dot_product_attention(query, keys, keys)
        return pooled


def pooled() -> nn.Module:
    return nn.Sequential(Pooled(), nn.Flatten())


def _halved(picture: Image.Image) -> Tensor:
    steps = [v2.Resize(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    image: Tensor = v2.Compose(steps)(picture)
    return image[..., : image.shape[-2] // 8 * 8, : image.shape[-1] // 8 * 8][..., :128, :128]


def noise() -> Iterator[Tensor]:
    """Two batches of images."""
    generator = torch.Generator().manual_seed(0)
    for count in (2, 3):
        yield torch.rand(count, 3, 32, 32, generator=generator)


def noise_in_tuples() -> Iterator[tuple[Tensor]]:
    for images in noise():
        yield (images,)


def noise_by_name() -> Iterator[dict[str, Tensor]]:
    for images in noise():
        yield {"x": images}


def by_a_wrong_name() -> Iterator[dict[str, Tensor]]:
    for images in noise():
        yield {"pictures": images}


calls = itertools.count()


def never_the_same() -> Iterator[Tensor]:
    yield torch.full((1, 3, 32, 32), 1.0 + next(calls)) * torch.rand(1, 3, 32, 32)


def plain() -> nn.Module:
    """No attention at all."""
    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU())


ADAPTERS = (nlprobe.AttentionModule("own", (timm.layers.Attention,)),)
