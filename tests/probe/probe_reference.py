"""The obvious way to compute what a probe measures: float64, every matrix written out."""

import numpy as np
import torch
from torch import Tensor, nn

from nlprobe.blocks import ContextBlock, NonLocal


@torch.no_grad()
def brute_avg_dist(rows: Tensor) -> float:
    """1/N² Σ_i Σ_j (1 − cos(v_i, v_j))/2 over the rows that have a direction."""
    rows = rows.detach().double()
    rows = rows[rows.norm(dim=1) > 0]
    if len(rows) == 0:
        return float("nan")
    unit = rows / rows.norm(dim=1, keepdim=True)
    return float(((1 - unit @ unit.T) / 2).mean())


@torch.no_grad()
def brute_block(block: NonLocal, x: Tensor) -> dict[str, Tensor]:
    """Every tensor of eq. 1 for one image (1, C, *grid), written out in float64; BN in evaluation mode."""
    config = block.config
    wide = x.double()
    grid = wide.shape[2:]

    def pool(tensor: Tensor) -> Tensor:
        return {1: nn.functional.max_pool1d, 2: nn.functional.max_pool2d, 3: nn.functional.max_pool3d}[len(grid)](
            tensor, (1, 2, 2) if len(grid) == 3 else 2
        )

    def rows(tensor: Tensor) -> Tensor:
        return tensor.flatten(2)[0].T

    def project(layer: nn.Linear | None, source: Tensor) -> Tensor:
        if layer is None:
            return source
        kernel = layer.weight.double().reshape(layer.weight.shape[0], layer.weight.shape[1], *[1] * len(grid))
        convolution = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[len(grid)]
        return convolution(source, kernel, None if layer.bias is None else layer.bias.double())

    early, late = config.sub_sample == "pool_then_project", config.sub_sample == "project_then_pool"
    source = pool(wide) if early else wide
    query = rows(project(block.query, wide))
    key_grid, value_grid = project(block.key, source), project(block.value, source)
    key = rows(pool(key_grid) if late else key_grid)
    value = rows(pool(value_grid) if late else value_grid)
    if config.instantiation == "concat":
        a = query @ block.attention.weight_query.double()
        b = key @ block.attention.weight_key.double()
        prod = a[:, None] + b[None, :]
        att = prod.relu() / len(b)
    else:
        prod = query @ key.T
        att = (
            prod / len(key)
            if config.instantiation == "dot_product"
            else (prod * block.attention.logit_scale).softmax(1)
        )
    output = (att @ value) @ block.output.weight.double().T
    if block.output.bias is not None:
        output = output + block.output.bias.double()
    if isinstance(block.norm, nn.BatchNorm1d):
        norm = block.norm
        output = (output - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt()
        output = output * norm.weight.double() + norm.bias.double()
    found = {"input": rows(wide), "prod": prod, "att": att, "output": output}
    if block.query is not None:
        found |= {"key": key, "query": query}
    return found


@torch.no_grad()
def brute_columns(found: dict[str, Tensor], scale: float, softmax: bool) -> dict[str, float]:
    """The accompanying numbers of design's formulas, from written-out matrices."""
    att, output, x = found["att"], found["output"], found["input"]
    m = att.shape[1]
    columns = {}
    if softmax:
        columns["entropy"] = float((-(att * att.log()).sum(1)).mean() / np.log(m))
    columns["n_eff"] = float((att.abs().sum(1) ** 2 / (att**2).sum(1)).nanmean())  # zero rows are left out
    c = att - att.mean(1, keepdim=True)
    columns["shared"] = float((c.mean(0) ** 2).sum() / (c**2).sum(1).mean())
    logits = found["prod"] * (scale if softmax else 1.0)
    centred = logits - logits.mean(1, keepdim=True)
    columns["logit_std"] = float((centred**2).mean().sqrt())
    columns["unary"] = float((centred.mean(0) ** 2).mean())
    columns["pairwise"] = float(((centred - centred.mean(0)) ** 2).mean())
    columns["update"] = float(output.norm() / x.norm())
    mean = output.mean(0)
    columns["mean_map_error"] = float((((output - mean) ** 2).sum(1).mean() / (output**2).sum(1).mean()).sqrt())
    return columns


@torch.no_grad()
def brute_context(block: ContextBlock, x: Tensor) -> dict[str, Tensor]:
    """Map and output of a context block for one image, in float64."""
    rows = x.double().flatten(2)[0].T
    if block.mask is None:
        weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    else:
        weights = (rows @ block.mask.weight.double()[0] + block.mask.bias.double()).softmax(0)
    transform = block.transform.to(torch.float64)
    shift = transform((weights @ rows)[None])[0]
    block.transform.to(x.dtype)
    output = shift.expand_as(rows) if block.config.fusion == "add" else rows * torch.sigmoid(shift) - rows
    return {"input": rows, "weights": weights, "output": output}


def brute_split(rows: Tensor, frames: int) -> dict[str, float]:
    """The average distance over pairs of the same frame, of other frames, and of the same place; zero rows left out."""
    number = torch.arange(len(rows))
    time, place = number // (len(rows) // frames), number % (len(rows) // frames)
    kept = (rows != 0).any(-1)
    unit = torch.nn.functional.normalize(rows.double(), dim=-1)
    apart = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist").square() / 4
    both = kept[:, None] & kept
    same_time, same_place = time[:, None] == time, place[:, None] == place
    pairs = {"same_frame": same_time, "other_frames": ~same_time, "same_place": same_place}
    return {name: float(apart[chosen & both].mean()) for name, chosen in pairs.items()}
