"""Every number the obvious way, in float64 on the CPU, with all N×N pairs and all N×M weights in memory."""

import math

import torch
from torch import Tensor


def average_distance(rows: Tensor) -> float:
    rows = rows.double().cpu()
    rows = rows / rows.abs().amax(-1, keepdim=True)  # the direction only; a zero row becomes NaN
    rows = rows[~rows.isnan().any(-1)]
    if len(rows) == 0:
        return math.nan
    unit = rows / rows.norm(dim=-1, keepdim=True)
    # (1 − cos(u, v))/2 = ‖u − v‖²/4 for unit vectors, and does not cancel
    return float(torch.stack([(unit - row).square().sum(-1).mean() / 4 for row in unit]).mean())


def logits(query: Tensor, key: Tensor, scale: float = 1.0) -> Tensor:
    return scale * query.double().cpu() @ key.double().cpu().mT


def softmax_map(query: Tensor, key: Tensor, scale: float = 1.0) -> Tensor:
    return torch.softmax(logits(query, key, scale), -1)


def concat_map(a: Tensor, b: Tensor) -> Tensor:
    return torch.relu(a.double().cpu()[:, None] + b.double().cpu()[None, :]) / len(b)


def zero_rows(rows: Tensor) -> int:
    return int((rows == 0).all(-1).sum())


def entropy(maps: Tensor) -> float:
    return float(-torch.special.xlogy(maps, maps).sum(-1).mean()) / math.log(maps.shape[-1])


def n_eff(maps: Tensor) -> float:
    maps = maps[(maps != 0).any(-1)]
    return float((maps.abs().sum(-1).square() / maps.square().sum(-1)).mean())


def shared(maps: Tensor) -> float:
    centred = maps - maps.mean(-1, keepdim=True)
    return float(centred.mean(0).square().sum() / centred.square().sum(-1).mean())


def covariance(rows: Tensor) -> Tensor:
    centred = rows.double().cpu() - rows.double().cpu().mean(0)
    return centred.mT @ centred / len(rows)
