"""timm's attention within windows and other layouts, against the weights of its own written-out path, in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import timm
import torch
from attention_reference import WrittenOutPath, assert_windows
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from timm.models.davit import SpatialBlock
from timm.models.gcvit import GlobalContextVit
from timm.models.hiera import MaskUnitAttention
from timm.models.maxxvit import Attention2d, RelPosBias
from timm.models.nest import Attention as NestAttention
from timm.models.pvt_v2 import Attention as ReducedAttention
from timm.models.tiny_vit import TinyVit
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from timm_models import B, pictures, run, seeded
from torch import Tensor, nn

Move = Callable[[Tensor], Tensor]
HIDDEN = 1e-30
"""exp(−100) and less: the weights of keys that shifted windows hide."""


def windows_first(tensor: Tensor) -> Tensor:
    """(b·windows, …) → (b, windows, …)."""
    return tensor.unflatten(0, (B, -1))


def rows_of_windows(tensor: Tensor) -> Tensor:
    """(b·windows, h, w, c) → (b, windows, n, c)."""
    return windows_first(tensor.flatten(1, 2))


def whole(tensor: Tensor) -> Tensor:
    """(b, …) → (b, 1, …)."""
    return tensor.unsqueeze(1)


def feature_map(tensor: Tensor) -> Tensor:
    """(b, c, h, w) → (b, 1, n, c)."""
    return tensor.flatten(2).mT.unsqueeze(1)


def heads_in_front(heads: int) -> Move:
    """(b·windows·heads, n, d) → (b, windows, heads, n, d)."""
    return lambda tensor: tensor.unflatten(0, (B, -1, heads))


def absent(tensor: Tensor) -> None:
    """For rows that are not those of the queries."""


@dataclass(frozen=True)
class Case:
    """A module in a model, what goes in, and how its tensors become (b, windows, …)."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[object, ...]]
    path: str = ""
    x: Callable[[Tensor], Tensor | None] = windows_first
    output: Callable[[Tensor], Tensor | None] | None = None
    product: Move = windows_first
    errors: tuple[str, ...] = ("A·V", "W_o")


def tokens(count: int, channels: int = 16) -> Tensor:
    return torch.randn(B, count, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def gcvit() -> nn.Module:
    return GlobalContextVit(img_size=32, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, num_classes=0)


def swin_cr() -> nn.Module:
    return timm.create_model(
        "swinv2_cr_tiny_224", img_size=32, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, num_classes=0
    )


def tiny_vit() -> nn.Module:
    return TinyVit(embed_dims=(8, 16), depths=(1, 2), num_heads=(1, 2), window_sizes=(4, 4), num_classes=0)


def tnt() -> nn.Module:
    return timm.create_model(
        "tnt_s_patch16_224",
        img_size=32,
        embed_dim=24,
        inner_dim=12,
        depth=1,
        num_heads_inner=3,
        num_heads_outer=4,
        num_classes=0,
    )


def sam() -> nn.Module:
    return timm.create_model(
        "samvit_base_patch16",
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        window_size=2,
        global_attn_indexes=(1,),
        num_classes=0,
    )


def maxvit() -> nn.Module:
    return timm.create_model(
        "maxvit_nano_rw_256", img_size=64, embed_dim=(32,), depths=(1,), stem_width=8, num_classes=0
    )


CASES = {
    "gcvit local": Case(gcvit, lambda: (pictures(),), "stages.0.blocks.0.attn"),
    "gcvit global queries": Case(gcvit, lambda: (pictures(),), "stages.0.blocks.1.attn"),
    "swin cr": Case(swin_cr, lambda: (pictures(),), "stages.0.blocks.0.attn"),
    "swin cr shifted": Case(swin_cr, lambda: (pictures(),), "stages.0.blocks.1.attn"),
    "tiny vit": Case(tiny_vit, lambda: (pictures(64),), "stages.1.blocks.0.attn"),
    "tnt inner": Case(tnt, lambda: (pictures(),), "blocks.0.attn_in"),
    "tnt outer": Case(tnt, lambda: (pictures(),), "blocks.0.attn_out"),
    "davit": Case(lambda: SpatialBlock(16, num_heads=2, window_size=4), lambda: (pictures(8, 16),), "attn"),
    "sam windows": Case(sam, lambda: (pictures(),), "blocks.0.attn", rows_of_windows, None, heads_in_front(2)),
    "sam whole": Case(sam, lambda: (pictures(),), "blocks.1.attn", rows_of_windows, None, heads_in_front(2)),
    "maxvit block": Case(maxvit, lambda: (pictures(64),), "stages.0.blocks.0.attn_block.attn", rows_of_windows),
    "maxvit grid": Case(maxvit, lambda: (pictures(64),), "stages.0.blocks.0.attn_grid.attn", rows_of_windows),
    "coatnet": Case(
        lambda: Attention2d(16, dim_head=8, rel_pos_cls=lambda **given: RelPosBias((5, 6), **given)),
        lambda: (pictures(5, 16, 6),),
        x=feature_map,
        product=whole,
    ),
    "botnet": Case(
        lambda: BottleneckAttn(16, feat_size=(5, 6), num_heads=2),
        lambda: (pictures(5, 16, 6),),
        x=feature_map,
        product=heads_in_front(2),
    ),
    "botnet strided": Case(
        lambda: BottleneckAttn(16, feat_size=(6, 6), num_heads=2, stride=2),
        lambda: (pictures(6, 16),),
        x=feature_map,
        output=absent,
        product=heads_in_front(2),
        errors=("A·V",),
    ),
    "pvt v2": Case(
        lambda: ReducedAttention(16, num_heads=2, sr_ratio=2, linear_attn=False),
        lambda: (tokens(24), (4, 6)),
        x=whole,
        product=whole,
    ),
    "pvt v2 linear": Case(
        lambda: ReducedAttention(16, num_heads=2, linear_attn=True),
        lambda: (tokens(64), (8, 8)),
        x=whole,
        product=whole,
    ),
    "twins sub-sampled": Case(
        lambda: GlobalSubSampleAttn(16, num_heads=2, sr_ratio=2), lambda: (tokens(24), (4, 6)), x=whole, product=whole
    ),
    "hiera": Case(
        lambda: MaskUnitAttention(16, 16, heads=2, window_size=4, use_mask_unit_attn=True),
        lambda: (tokens(12),),
        x=lambda x: x.view(B, 4, 3, 16).transpose(1, 2),
        product=lambda tensor: tensor.transpose(1, 2),
    ),
    "hiera pooled": Case(
        lambda: MaskUnitAttention(16, 8, heads=2, q_stride=2, window_size=4, use_mask_unit_attn=True),
        lambda: (tokens(24),),
        x=absent,
        output=lambda y: y.view(B, 4, 3, 8).transpose(1, 2),
        product=lambda tensor: tensor.transpose(1, 2),
    ),
    "hiera whole": Case(
        lambda: MaskUnitAttention(16, 16, heads=2, window_size=4), lambda: (tokens(12),), x=whole, product=whole
    ),
    "nest": Case(
        lambda: NestAttention(16, num_heads=2),
        lambda: (torch.stack([tokens(6), tokens(6).flip(1), tokens(6).flip(2)], 1),),
        x=lambda x: x,
        product=lambda tensor: tensor.transpose(1, 2),
    ),
    "halo": Case(
        lambda: HaloAttn(16, num_heads=2, block_size=4, halo_size=1),
        lambda: (pictures(8, 16),),
        x=absent,
        product=lambda tensor: tensor.unflatten(0, (B, 2)).transpose(1, 2),
        errors=("A·V",),
    ),
    "halo strided": Case(
        lambda: HaloAttn(16, num_heads=2, block_size=4, halo_size=2, stride=2),
        lambda: (pictures(8, 16),),
        x=absent,
        product=lambda tensor: tensor.unflatten(0, (B, 2)).transpose(1, 2),
        errors=("A·V",),
    ),
    "twins local": Case(
        lambda: LocallyGroupedAttn(16, num_heads=2, ws=3),
        lambda: (tokens(54), (6, 9)),
        x=lambda x: cut(x.view(B, 6, 9, 16), 3),
        product=lambda tensor: tensor,
    ),
}


def cut(grid: Tensor, side: int) -> Tensor:
    """(b, h, w, c) → (b, windows, side², c), window by window, row by row."""
    windows = [
        grid[:, top : top + side, left : left + side].flatten(1, 2)
        for top in range(0, grid.shape[1], side)
        for left in range(0, grid.shape[2], side)
    ]
    return torch.stack(windows, 1)


@pytest.mark.parametrize("name", CASES)
def test_windows_and_layouts_give_what_the_written_out_path_gives(name: str) -> None:
    case = CASES[name]
    model = seeded(case.build())
    expected = WrittenOutPath(model, case.path).of(model, *case.inputs())
    probe = run(model, *case.inputs())
    site = case.path or "."
    [audit] = [audit for audit in probe.audit() if audit.site == site]
    assert set(audit.errors) == set(case.errors)
    product = {part: case.product(expected[part]) for part in ("weights", "query", "key")}
    rows = {"x": case.x(expected["x"]), "output": (case.output or case.x)(expected["output"])}
    assert_windows(probe.frame(), site=site, hidden=HIDDEN, **product, **rows)


def zero_padded(side: int, window: int) -> Tensor:
    """(B, windows, n): which positions of windows over a square map are not padding."""
    total = -(-side // window) * window
    real = torch.zeros(B, total, total, 1, dtype=torch.bool)
    real[:, :side, :side] = True
    return cut(real, window).squeeze(-1)


def test_padding_that_twins_adds_inside_the_module_is_no_query() -> None:
    model = seeded(LocallyGroupedAttn(16, num_heads=2, ws=3))
    x = tokens(25)
    expected = WrittenOutPath(model, "").of(model, x, (5, 5))
    probe = run(model, x, (5, 5))
    pad = (0, 0, 0, 1, 0, 1)
    rows = {part: cut(nn.functional.pad(expected[part].view(B, 5, 5, 16), pad), 3) for part in ("x", "output")}
    product = {part: expected[part] for part in ("weights", "query", "key")}
    assert_windows(probe.frame(), site=".", valid=zero_padded(5, 3), **product, **rows)


PADDED = {
    "sam": (
        lambda: timm.create_model(
            "samvit_base_patch16",
            img_size=40,
            patch_size=8,
            embed_dim=16,
            depth=1,
            num_heads=2,
            window_size=3,
            global_attn_indexes=(),
            num_classes=0,
        ),
        40,
        "blocks.0.attn",
        (5, 3),
        rows_of_windows,
        heads_in_front(2),
    ),
    "tiny vit": (tiny_vit, 40, "stages.1.blocks.0.attn", (5, 4), windows_first, windows_first),
}


@pytest.mark.parametrize("name", PADDED)
def test_padding_that_fills_windows_up_is_no_query(name: str) -> None:
    build, side, path, (cells, window), rows, product = PADDED[name]
    model = seeded(build())
    expected = WrittenOutPath(model, path).of(model, pictures(side))
    probe = run(model, pictures(side))
    parts = {part: product(expected[part]) for part in ("weights", "query", "key")}
    ends = {part: rows(expected[part]) for part in ("x", "output")}
    assert_windows(probe.frame(), site=path, valid=zero_padded(cells, window), **parts, **ends)


def test_prefix_tokens_are_left_out_of_whole_images_and_not_of_windows() -> None:
    frame = run(seeded(tnt()), pictures()).frame()
    assert set(frame.query("site == 'blocks.0.attn_in'")["positions"]) == {"all"}
    assert set(frame.query("site == 'blocks.0.attn_out'")["positions"]) == {"all", "no_prefix"}
