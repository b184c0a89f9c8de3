"""Softmax maps of several heads with biases and masks: materialised in float64, their statistics by the definitions."""

import math

import pytest
import torch
from torch import Tensor

from nlprobe.stats import MapStatistics
from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask
from nlprobe.stats.softmax_maps import softmax_statistics

S, H, N, M, D = 3, 6, 70, 50, 8


def written_out(logits: Logits) -> Tensor:
    """Every logit, in float64; −∞ where a key is hidden."""
    _, h, n, m = logits.shape
    if logits.given is not None:
        full = logits.given.double().clone()
    else:
        assert logits.query is not None
        assert logits.key is not None
        key = logits.key.double().repeat_interleave(h // logits.key.shape[1], 1)
        full = logits.scale * logits.query.double() @ key.mT
    mask = logits.mask
    if mask is None:
        return full
    if mask.bias is not None:
        if logits.given is None:
            full = full + mask.bias.double()
        full = full.masked_fill(mask.bias <= mask.hidden_below, -torch.inf)
    if mask.visible is not None:
        full = full.masked_fill(~mask.visible, -torch.inf)
    if mask.diagonal is not None:
        full = full.masked_fill(torch.arange(m)[None, :] > torch.arange(n)[:, None] + mask.diagonal, -torch.inf)
    return full


def reference(maps: Tensor, support: Tensor) -> dict[str, float]:
    """One map (n, m) and its support, by the definitions."""
    present = support.any(-1)
    result = {"zero_rows": float((~present).sum()), "avg_dist": math.nan, "entropy": math.nan}
    maps, support = maps[present], support[present].double()
    if not len(maps):
        return {**result, "n_eff": math.nan, "shared": math.nan}
    unit = maps / maps.norm(dim=-1, keepdim=True)
    result["avg_dist"] = torch.stack([(unit - row).square().sum(-1).mean() / 4 for row in unit]).mean().item()
    seen = support.sum(-1)
    entropies = -torch.special.xlogy(maps, maps).sum(-1)[seen > 1] / seen[seen > 1].log()
    if len(entropies):
        result["entropy"] = entropies.mean().item()
    result["n_eff"] = (maps.sum(-1).square() / maps.square().sum(-1)).mean().item()
    centred = maps - support * (maps.sum(-1) / seen)[:, None]
    energy = centred.square().sum(-1).mean()
    result["shared"] = (centred.mean(0).square().sum() / energy).item() if energy > 1e-26 else math.nan
    return result


def check_one(found: MapStatistics, at: tuple[int, ...], maps: Tensor, support: Tensor, exact: bool) -> None:
    expected = reference(maps, support)
    rel, absolute = (1e-9, 1e-13) if exact else (1e-5, 1e-9)
    assert found.avg_dist[at].item() == pytest.approx(expected["avg_dist"], rel=rel, abs=absolute, nan_ok=True)
    for name in ("zero_rows", "entropy", "n_eff", "shared"):
        value = getattr(found, name)[at].item()
        assert value == pytest.approx(expected[name], rel=rel, abs=1e-14, nan_ok=True), (name, at)


def check(logits: Logits, exact: bool = False) -> None:
    """Hold every head and the mean over heads to the errors that are promised."""
    found, mean = softmax_statistics(logits, precision="float64" if exact else "float32", average=True)
    assert mean is not None
    full = written_out(logits)
    support = torch.isfinite(full)
    maps = torch.softmax(full, -1).nan_to_num(0.0)
    contributing = support.any(-1, keepdim=True).sum(1).clamp_min(1)
    averaged = maps.sum(1) / contributing
    for image in range(full.shape[0]):
        check_one(mean, (image,), averaged[image], support[image].any(0), exact)
        for head in range(full.shape[1]):
            check_one(found, (image, head), maps[image, head], support[image, head], exact)


def product(key_heads: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(S, N, H, D, generator=generator).transpose(1, 2) + 0.3
    key = torch.randn(S, M, key_heads, D, generator=generator).transpose(1, 2) + 0.3
    return (size * query).to(dtype), key.to(dtype)


def masks() -> dict[str, Mask | None]:
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(1, H, N, M, generator=generator)
    some = torch.rand(S, 1, N, M, generator=generator) > 0.3
    blind = some.clone()
    blind[:, :, 5:9] = False
    blind[1] = False
    by_head = (torch.rand(1, H, 1, M, generator=generator) > 0.3).expand(S, H, N, M).clone()
    by_head[0, 2, 11] = False
    by_head[0, :, 12] = False
    return {
        "none": None,
        "hiding nothing": Mask(visible=torch.ones(1, 1, 1, M, dtype=torch.bool)),
        "bias by head": Mask(bias=bias),
        "causal": Mask(diagonal=0),
        "causal, keys ahead": Mask(diagonal=2),
        "causal, first queries blind": Mask(diagonal=-3),
        "padding": Mask(visible=torch.arange(M).expand(S, M).lt(torch.tensor([[50], [17], [1]]))[:, None, None]),
        "by head, some blind": Mask(visible=by_head),
        "some queries blind, one set wholly": Mask(visible=blind),
        "all together": Mask(bias=bias, visible=some, diagonal=1),
        "lowest number": Mask(bias=(bias[:, :1] > 1).float() * torch.finfo(torch.float32).min),
        "Swin": Mask(bias=torch.where(bias[:, :1] > 0, -100.0, 0.0), hidden_below=-99.0),
    }
