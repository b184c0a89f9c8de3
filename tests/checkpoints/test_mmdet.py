"""Checkpoints of mmdetection, GCNet's repository and DNL-Object-Detection compute here what they compute there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lively import lively
from mmdet_twin import AbsoluteNorm, Detector
from torch import Tensor

from nlprobe.checkpoints.foreign import Foreign, read_foreign
from nlprobe.errors import CheckpointError, ConfigError

PIXELS = {
    "order": "rgb",
    "mean": "123.675,116.28,103.53",
    "std": "58.395,57.12,57.375",
    "resize": "800",
    "longest": "1333",
    "pad": "32",
}
PLAIN = {"gamma": "plain", **PIXELS}


def saved(path: Path, network: torch.nn.Module) -> Path:
    torch.save({"meta": {"CLASSES": ("a", "b", "c")}, "state_dict": network.state_dict()}, path)
    return path


@torch.no_grad()
def assert_equal(theirs: Detector, found: Foreign, version: int, tolerance: float = 1e-9) -> None:
    """Levels, proposals, and what every stage makes of the same pooled maps."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    images, pooled, larger = drawn(2, 3, 96, 64), drawn(5, 8, 7, 7), drawn(5, 8, 14, 14)
    theirs, ours = theirs.double(), found.model.double()
    expected = theirs(images, pooled, larger)
    levels = ours.levels(images)
    objectness, anchors = ours.proposals.head(levels)
    stages = ours.stages.in_order()
    boxes = [stage.box(pooled) for stage in stages]
    masks = [stage.mask(larger) for stage in stages if stage.mask is not None]
    if version == 2:  # the background is the last of their scores and has neither box nor mask
        expected["classes"] = [torch.cat([each[:, -1:], each[:, :-1]], 1) for each in expected["classes"]]
        masks = [each[:, 1:] for each in masks]
        if not ours.config.class_agnostic:
            boxes = [(scores, deltas[:, 1:]) for scores, deltas in boxes]
    computed = {
        "levels": levels,
        "objectness": objectness,
        "anchors": anchors,
        "classes": [each[0] for each in boxes],
        "boxes": [each[1].flatten(1) for each in boxes],
        "masks": masks,
    }
    for name, tensors in expected.items():
        assert len(tensors) == len(computed[name])
        for one, other in zip(tensors, computed[name], strict=True):
            assert one.std() > 1e-4
            torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)


NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "GC in all blocks": {"block": "gc"},
    "SE with layer norm": {"block": "se"},
    "ResNeXt": {"block": "gc", "groups": 32, "width": 16},
    "cascade": {"block": "gc", "cascade": True},
    "4conv1fc": {"block": "gc", "heavy": True},
    "deformable": {"deforms": True, "cascade": True},
    "Faster R-CNN": {"masks": False},
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_detectors_of_both_versions_are_the_same(name: str, version: int, tmp_path: Path) -> None:
    theirs = lively(Detector(version, **NETWORKS[name]))
    site = {"site": "after_1x1"} if "block" in NETWORKS[name] else {}
    found = read_foreign(saved(tmp_path / "x.pth", theirs), {**PLAIN, **site})
    assert_equal(theirs, found, version)
    assert found.metadata["classes"] == ["a", "b", "c"]
    assert found.model.config.geometry == f"mmdet{version}"
    assert found.metadata["preprocessing"]["longest"] == 1333


FORKS: dict[str, dict[str, str]] = {
    "nl": {"mode": "embedded_gaussian", "scale": "inv_sqrt"},
    "nl-times": {"mode": "embedded_gaussian", "scale": "sqrt"},
    "snl": {},
    "gc": {},
    "dnl": {"scale": "inv_sqrt", "temperature": "0.05"},
}


@pytest.mark.parametrize("absolute", [False, True], ids=["plain", "InPlaceABN"])
@pytest.mark.parametrize("block", FORKS)
def test_blocks_of_the_forks_after_the_add_are_the_same(block: str, absolute: bool, tmp_path: Path) -> None:
    layers, sites = (1, 1, 3, 1), ("layer3.1",)
    theirs = lively(Detector(1, layers, block=block, sites=sites, place="after_add", heavy=True, absolute=absolute))
    if absolute:
        with torch.no_grad():
            for module in theirs.modules():
                if isinstance(module, AbsoluteNorm):
                    module.weight[::2] *= -1
    gamma = {"gamma": "absolute" if absolute else "plain"}
    for site in ("after_add", "layer3.1:after_add"):
        found = read_foreign(saved(tmp_path / "x.pth", theirs), {**FORKS[block], **PIXELS, **gamma, "site": site})
        assert found.model.sites() == ["backbone.layer3.1:after_add"]
    # |γ| + ε is computed in the file's precision
    assert_equal(theirs, found, 1, 1e-5 if absolute else 1e-9)


@pytest.mark.parametrize(
    "wrong", [{"site": "after_1x1"}, {"scale": "inv_sqrt"}, {"scale": "none"}, {"gamma": "absolute"}]
)
def test_a_wrong_answer_computes_something_else(wrong: dict[str, str], tmp_path: Path) -> None:
    theirs = lively(Detector(1, block="nl-times", sites=("layer3.0",), place="after_add", heavy=True))
    answers = {**FORKS["nl-times"], **PLAIN, "site": "after_add", **wrong}
    found = read_foreign(saved(tmp_path / "x.pth", theirs), answers)
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(theirs, found, 1)


def test_questions_and_answers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", lively(Detector(1, block="nl", sites=("layer3.0",), place="after_add")))
    with pytest.raises(
        ConfigError, match=r"mmdetection 1: Mask R-CNN .* with nonlocal_block.*`site=after_1x1\|"
    ) as error:
        read_foreign(path)
    assert all(f"`{name}=" in error.value.cause for name in ("mode", "scale", "gamma", "order", "resize"))
    given = {**FORKS["nl"], **PLAIN}
    with pytest.raises(ConfigError, match=r"has blocks in layer3\.0"):
        read_foreign(path, {**given, "site": "layer3.1:after_add"})
    with pytest.raises(ConfigError, match="whose pyramid has no norms"):
        read_foreign(path, {**given, "site": "after_add", "gamma": "absolute"})


@pytest.mark.parametrize(
    "name, words",
    [
        ("neck.1.refine.g.conv.weight", "a second neck behind its feature pyramid"),
        ("backbone.layer3.0.gen_attention_block.gamma", "generalised attention"),
        ("roi_head.bbox_roi_extractor.pre_module.conv.weight", "GRoIE"),
    ],
)
def test_detectors_of_other_kinds_are_refused_in_words(name: str, words: str, tmp_path: Path) -> None:
    theirs = lively(Detector())
    torch.save({"state_dict": {**theirs.state_dict(), name: torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=words):
        read_foreign(tmp_path / "x.pth", PLAIN)
