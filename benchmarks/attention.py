"""What measuring a vision transformer costs, against its plain forward pass and against what else there is.

The peers that hand out attention maps need a model without fused attention, and hold every N×N map of every layer:

- eager: the maps of timm's own written-out attention, from hooks on its `attn_drop`, and brute force on each;
- timm's `AttentionExtract`: the same maps. With fused attention, timm's default, its hooks never fire and it returns
  nothing; fused attention has to be off before;
- torchlens: a trace that saves the softmax of every layer. With fused attention there is no softmax to save;
- `torchmetrics` and scikit-learn measure distances between rows and know no models: they are given the maps.

None of them can be run at 1 024², where the maps of one image alone take 12 · 12 · 4 097² · 4 bytes = 9 GiB.
"""

from collections.abc import Iterable
from functools import cache

import sklearn.metrics
import timm
import torch
import torchlens
import torchmetrics.functional
from timm.utils import AttentionExtract
from torch import Tensor, nn

import nlprobe
from benchmarks.pairs import Row, main
from nlprobe.stats.records import QUANTITIES

SIZES = {"224x224, batch 8": (8, 224), "1024x1024": (1, 1024)}


@cache
def image(size: str) -> Tensor:
    """Random images of a size."""
    count, side = SIZES[size]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@cache
def network(size: str) -> nn.Module:
    """ViT-B/16 with random weights and fused attention."""
    torch.manual_seed(0)
    return timm.create_model("vit_base_patch16_224", img_size=SIZES[size][1]).eval()


@cache
def probed(size: str, quantities: tuple[str, ...]) -> nn.Module:
    """The same network with a probe that stays open."""
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", img_size=SIZES[size][1]).eval()
    nlprobe.probe(model, quantities=quantities).__enter__()
    return model


@cache
def eager(size: str) -> nn.Module:
    """The same network with written-out attention."""
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", img_size=SIZES[size][1]).eval()
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


@cache
def extracting(size: str) -> nn.Module:
    """timm's own extractor around it."""
    return AttentionExtract(eager(size), method="hook")


def forward(model: nn.Module, size: str) -> None:
    """One forward pass."""
    with torch.no_grad():
        model(image(size))


def closed_form(maps: Tensor) -> Tensor:
    """The distance of the rows (b, h, n, m) of each map, from the whole map."""
    unit = torch.nn.functional.normalize(maps, dim=-1)
    return 0.5 * (1 - unit.mean(-2).square().sum(-1))


def brute_force(maps: Tensor) -> Tensor:
    """The same from all N² cosines."""
    unit = torch.nn.functional.normalize(maps, dim=-1)
    return 0.5 * (1 - (unit @ unit.mT).mean((-2, -1)))


def from_extractor() -> list[Tensor]:
    """Distances of the maps that timm's extractor hands out."""
    with torch.no_grad():
        return [brute_force(maps) for maps in extracting("224x224, batch 8")(image("224x224, batch 8")).values()]


def from_hooks() -> list[Tensor]:
    """Distances of the maps, each measured when its hook fires: the most frugal way by hand."""
    found: list[Tensor] = []
    model = eager("224x224, batch 8")
    handles = [
        block.attn.attn_drop.register_forward_hook(lambda _, args, maps: found.append(closed_form(maps)))
        for block in model.blocks
    ]
    forward(model, "224x224, batch 8")
    for handle in handles:
        handle.remove()
    return found


def from_torchlens() -> list[Tensor]:
    """Distances of the maps of a trace."""
    with torch.no_grad():
        trace = torchlens.trace(eager("224x224, batch 8"), image("224x224, batch 8"), save=torchlens.func("softmax"))
        return [brute_force(maps) for maps in saved(trace)]


def saved(trace: torchlens.Trace) -> Iterable[Tensor]:
    """What a trace has saved."""
    return (trace[label].out for label in trace.layer_labels if label.startswith("softmax"))


@cache
def maps_of_one_layer() -> Tensor:
    """(96, 197, 197): the maps of one layer for a batch, by head."""
    return torch.randn(96, 197, 197, generator=torch.Generator().manual_seed(0)).softmax(-1)


@cache
def queries_and_keys() -> tuple[Tensor, Tensor]:
    """Queries and keys of one layer, as timm lays them out."""
    generator = torch.Generator().manual_seed(0)
    query, key, _ = torch.randn(8, 197, 3, 12, 64, generator=generator).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key


def of_one_layer() -> None:
    """All that is measured of one layer's maps."""
    query, key = queries_and_keys()
    nlprobe.stats.softmax_statistics(nlprobe.stats.Logits(query, key, 0.125), average=True)


def against_forward(size: str, quantities: tuple[str, ...], name: str, target: float) -> Row:
    """A row of the ViT against its own forward pass."""
    return Row(
        f"{name}, ViT-B/16, all layers and heads, {size}",
        target,
        "at_most",
        lambda: forward(probed(size, quantities), size),
        lambda: forward(network(size), size),
    )


ROWS = [
    against_forward("224x224, batch 8", ("att",), "att", 1.10),
    against_forward("224x224, batch 8", QUANTITIES, "everything", 1.20),
    against_forward("1024x1024", QUANTITIES, "everything", 1.50),
    Row(
        "att, ViT-B/16 224x224, against hooks on eager attention",
        1.0,
        "faster",
        lambda: forward(probed("224x224, batch 8", ("att",)), "224x224, batch 8"),
        from_hooks,
    ),
    Row(
        "att, ViT-B/16 224x224, against timm's AttentionExtract",
        1.0,
        "faster",
        lambda: forward(probed("224x224, batch 8", ("att",)), "224x224, batch 8"),
        from_extractor,
    ),
    Row(
        "att, ViT-B/16 224x224, against torchlens",
        1.0,
        "faster",
        lambda: forward(probed("224x224, batch 8", ("att",)), "224x224, batch 8"),
        from_torchlens,
    ),
    Row(
        "att of one layer 8x12x197, against torchmetrics on given maps",
        1.0,
        "faster",
        of_one_layer,
        lambda: [
            torchmetrics.functional.pairwise_cosine_similarity(maps, maps, zero_diagonal=False, reduction="mean")
            for maps in maps_of_one_layer()
        ],
    ),
    Row(
        "att of one layer 8x12x197, against scikit-learn on given maps",
        1.0,
        "faster",
        of_one_layer,
        lambda: [sklearn.metrics.pairwise.cosine_distances(maps).mean() for maps in maps_of_one_layer().numpy()],
    ),
]

if __name__ == "__main__":
    raise SystemExit(main(ROWS))
