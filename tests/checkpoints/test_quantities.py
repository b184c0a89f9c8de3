"""The six distances of a checkpoint that was read are those of the block that the original package computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import lively
from mmaction_twin import Recogniser
from mmcv.cnn import ContextBlock, NonLocal2d
from mmcv.cnn.bricks.non_local import _NonLocalNd
from mmdet_twin import Detector, Disentangled
from mmseg_twin import PAM, Segmentor
from torch import Tensor, nn

import nlprobe
from nlprobe.checkpoints.foreign import read_foreign

PIXELS = {"order": "rgb", "mean": "0", "std": "255", "resize": "0"}
IMAGE = {**PIXELS, "align_corners": "false"}
CLIP = {**PIXELS, "frames": "4", "interval": "1"}
DETECTOR = {**PIXELS, "gamma": "plain"}


def distance(rows: Tensor) -> float:
    """1/N² Σ_i Σ_j (1 − cos(v_i, v_j))/2, the matrix written out."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    return float(((1 - unit @ unit.mT) / 2).mean())


def rows(x: Tensor) -> Tensor:
    """(1, C, *grid) -> (N, C)."""
    return x.flatten(2)[0].mT


def of_non_local(block: _NonLocalNd, x: Tensor, z: Tensor) -> dict[str, Tensor]:
    """All of mmcv's block, from its own layers."""
    embeds = block.mode != "gaussian"
    query = rows(block.theta(x)) if embeds else rows(x)
    key = rows(block.phi(x)) if embeds or block.sub_sample else rows(x)
    prod = query @ key.mT
    if block.mode == "dot_product":
        att = prod / len(key)
    elif embeds:
        att = block.embedded_gaussian(query[None], key.mT[None])[0]
    else:
        att = prod.softmax(1)
    named = {"query": query, "key": key} if embeds else {}
    # one distance for both, as the one is a multiple of the other
    return {"input": rows(x), **named, "prod": prod, "att": att, "output": rows(z - x)}


def of_position(block: PAM, x: Tensor, z: Tensor) -> dict[str, Tensor]:
    query, key = rows(block.query_project(x)), rows(block.key_project(x))
    prod = query @ key.mT
    return {"input": rows(x), "query": query, "key": key, "prod": prod, "att": prod.softmax(1), "output": rows(z - x)}


def of_context(block: ContextBlock, x: Tensor, z: Tensor) -> dict[str, Tensor]:
    return {"input": rows(x)}


def of_disentangled(block: Disentangled, x: Tensor, z: Tensor) -> dict[str, Tensor]:
    query, key = rows(block.conv_query(x)), rows(block.conv_key(x))
    query, key = query - query.mean(0), key - key.mean(0)
    return {"input": rows(x), "query": query, "key": key, "prod": query @ key.mT, "output": rows(z - x)}


CASES: dict[
    str, tuple[Callable[[], nn.Module], dict[str, str], type, Callable[..., dict[str, Tensor]], tuple[int, ...]]
] = {
    "mmseg, embedded Gaussian": (
        lambda: Segmentor("NL"),
        {**IMAGE, "mode": "embedded_gaussian", "scale": "inv_sqrt"},
        NonLocal2d,
        of_non_local,
        (64, 48),
    ),
    "mmseg, Gaussian": (
        lambda: Segmentor("NL", mode="gaussian"),
        {**IMAGE, "scale": "none"},
        NonLocal2d,
        of_non_local,
        (64, 48),
    ),
    "mmseg, dot product": (
        lambda: Segmentor("NL", mode="dot_product"),
        {**IMAGE, "mode": "dot_product", "scale": "none"},
        NonLocal2d,
        of_non_local,
        (64, 48),
    ),
    "mmseg, position attention": (lambda: Segmentor("DANet"), IMAGE, PAM, of_position, (64, 48)),
    "mmseg, global context": (lambda: Segmentor("GC"), IMAGE, ContextBlock, of_context, (64, 48)),
    "GCNet, times √d": (
        lambda: Detector(1, (1, 1, 2, 1), block="nl-times", sites=("layer3.0",), place="after_add"),
        {**DETECTOR, "mode": "embedded_gaussian", "scale": "sqrt", "site": "after_add"},
        NonLocal2d,
        of_non_local,
        (128, 96),
    ),
    "DNL-Object-Detection": (
        lambda: Detector(1, (1, 1, 2, 1), block="dnl", sites=("layer3.0",), place="after_add"),
        {**DETECTOR, "scale": "inv_sqrt", "temperature": "0.05", "site": "after_add"},
        Disentangled,
        of_disentangled,
        (128, 96),
    ),
    "mmaction2, pooled keys": (
        lambda: Recogniser("slowonly"),
        {**CLIP, "mode": "embedded_gaussian", "scale": "inv_sqrt"},
        _NonLocalNd,
        of_non_local,
        (4, 64, 48),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_distances_are_those_of_the_original_block(case: str, tmp_path: Path) -> None:
    make, answers, kind, reference, shape = CASES[case]
    theirs = lively(make()).double()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "x.pth")
    ours = read_foreign(tmp_path / "x.pth", answers).model.double()
    inputs = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen: list[dict[str, Tensor]] = []

    def keep(block: Any, arguments: tuple[Tensor, ...], z: Tensor) -> None:
        seen.append(reference(block, arguments[0].clone(), z))

    blocks = [module for module in theirs.modules() if isinstance(module, kind)]
    handles = [block.register_forward_hook(keep) for block in blocks]
    with torch.no_grad():
        if isinstance(theirs, Detector):
            theirs.backbone(inputs)
        else:
            theirs(inputs)
    for handle in handles:
        handle.remove()
    with nlprobe.probe(ours, precision="float64") as probe, torch.no_grad():
        ours(inputs)
    assert all(entry.status == "passed" for entry in probe.audit())
    frame = probe.frame()
    frame = frame[frame["head"].isin(("0", "-"))]
    sites = [site for site in dict.fromkeys(frame["site"]) if "channel" not in site]
    assert len(sites) == len(seen)
    for site, expected in zip(sites, seen, strict=True):
        measured = frame[frame["site"] == site].set_index("quantity")["avg_dist"]
        for quantity, vectors in expected.items():
            assert measured[quantity] == pytest.approx(distance(vectors), rel=1e-6, abs=1e-12), (site, quantity)
