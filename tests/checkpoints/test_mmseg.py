"""Checkpoints of mmsegmentation compute here what they compute there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lively import lively
from mmseg_twin import HEADS, Segmentor
from torch import Tensor

import nlprobe
from nlprobe.checkpoints.foreign import Foreign, read_foreign
from nlprobe.errors import CheckpointError, ConfigError

PIXELS = {"order": "rgb", "mean": "123.675,116.28,103.53", "std": "58.395,57.12,57.375", "resize": "0"}
ANSWERS: dict[str, dict[str, str]] = {
    "NL": {"mode": "embedded_gaussian", "scale": "inv_sqrt"},
    "DNL": {"scale": "inv_sqrt", "temperature": "0.05"},
    "criss-cross": {"recurrence": "2"},
    "ANN": {"pyramid": "1,3,6,8"},
    "PSA": {"mask": "7x5", "shrink": "2", "normalisation": "1"},
}


def saved(path: Path, network: torch.nn.Module, **meta: Any) -> Path:
    torch.save({"meta": {"CLASSES": tuple("abcde"), "epoch": 1, **meta}, "state_dict": network.state_dict()}, path)
    return path


def read(path: Path, head: str, **answers: str) -> Foreign:
    return read_foreign(path, {"align_corners": "false", **PIXELS, **ANSWERS.get(head, {}), **answers})


def images(*shape: int) -> Tensor:
    return torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("aligned, shape", [(False, (64, 48)), (True, (73, 57))], ids=["crop", "aligned"])
def test_every_head_computes_the_same_scores(head: str, aligned: bool, shape: tuple[int, int], tmp_path: Path) -> None:
    extra: dict[str, Any] = {"mask": (7, 5)} if head == "PSA" else {}
    theirs = lively(Segmentor(head, aligned=aligned, **extra)).double()
    ours = read(saved(tmp_path / "x.pth", theirs), head, align_corners="true" if aligned else "false").model.double()
    with torch.no_grad():
        expected = theirs(images(*shape))
        torch.testing.assert_close(ours(images(*shape)), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("mode", ["gaussian", "dot_product", "embedded_gaussian", "concatenation"])
@pytest.mark.parametrize("scaled", [True, False])
def test_every_instantiation_that_mmcv_has_is_the_same(mode: str, scaled: bool, tmp_path: Path) -> None:
    theirs = lively(Segmentor("NL", mode=mode, scale=scaled)).double()
    path = saved(tmp_path / "x.pth", theirs)
    asked = {} if mode in ("gaussian", "concatenation") else {"mode": mode}
    given = {"scale": "inv_sqrt" if scaled else "none", "align_corners": "false", **asked, **PIXELS}
    ours = read_foreign(path, given).model.double()
    with torch.no_grad():
        torch.testing.assert_close(ours(images(48, 48)), theirs(images(48, 48)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "head, wrong",
    [
        ("NL", {"scale": "none"}),
        ("NL", {"mode": "dot_product"}),
        ("DNL", {"temperature": "0.1"}),
        ("criss-cross", {"recurrence": "1"}),
        ("PSA", {"normalisation": "2"}),
        ("GC", {"align_corners": "true"}),
    ],
)
def test_a_wrong_answer_computes_something_else(head: str, wrong: dict[str, str], tmp_path: Path) -> None:
    extra: dict[str, Any] = {"mask": (7, 5)} if head == "PSA" else {}
    theirs = lively(Segmentor(head, **extra)).double()
    ours = read(saved(tmp_path / "x.pth", theirs), head, **wrong).model.double()
    with torch.no_grad():
        assert not torch.allclose(ours(images(64, 48)), theirs(images(64, 48)), rtol=1e-5, atol=1e-5)


def test_pictures_in_blue_green_red_are_turned_round_with_the_first_convolution(tmp_path: Path) -> None:
    theirs = lively(Segmentor("GC")).double()
    path = saved(tmp_path / "x.pth", theirs)
    found = read(path, "GC", order="bgr", mean="104.0,116.67,122.68", std="1")
    assert found.metadata["preprocessing"]["mean"] == [122.68 / 255, 116.67 / 255, 104.0 / 255]
    assert found.metadata["preprocessing"]["std"] == [1 / 255] * 3
    with torch.no_grad():
        expected = theirs(images(48, 48).flip(1))
        torch.testing.assert_close(found.model.double()(images(48, 48)), expected, rtol=1e-9, atol=1e-9)


def test_open_questions_are_asked_and_like_answers_them(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", lively(Segmentor("DNL")))
    with pytest.raises(
        ConfigError, match=r"DNLHead on a ResNet of 4 blocks, 5 classes.*`scale=none\|inv_sqrt`"
    ) as error:
        read_foreign(path)
    assert "--set like=NAME" in error.value.remedy
    like = {"like": "mmseg/dnl_r50-d8_769x769_40k_cityscapes"}
    found = read_foreign(path, like)
    assert found.model.config.align_corners
    assert found.metadata["classes"] == list("abcde")
    assert not read_foreign(path, {**like, "align_corners": "false"}).model.config.align_corners
    with pytest.raises(ConfigError, match=r"does not ask for `recurrence`"):
        read_foreign(path, {**like, "recurrence": "2"})
    with pytest.raises(ConfigError, match="did you mean `inv_sqrt`"):
        read(path, "DNL", scale="inv_sqr")


def test_load_takes_other_projects_files_too(tmp_path: Path) -> None:
    theirs = lively(Segmentor("GC")).double()
    path = saved(tmp_path / "x.pth", theirs)
    ours = nlprobe.load(path, settings={"like": "gcnet_r50-d8_512x1024_40k_cityscapes"}).double()
    with torch.no_grad():
        torch.testing.assert_close(ours(images(48, 48)), theirs(images(48, 48)), rtol=1e-9, atol=1e-9)


def test_weights_that_are_missing_or_left_over_are_named(tmp_path: Path) -> None:
    theirs = lively(Segmentor("GC"))
    state = theirs.state_dict()
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {**state, "decode_head.extra.weight": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match=r"holds `decode_head\.extra\.weight` that the network has no place for"):
        read(path, "GC")
    del state["decode_head.convs.1.bn.bias"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(CheckpointError, match=r"lacks `head\.smooth\.norm\.bias` of the network"):
        read(path, "GC")


def test_a_weight_under_two_names_has_to_be_one(tmp_path: Path) -> None:
    theirs = lively(Segmentor("ANN"))
    assert read(saved(tmp_path / "x.pth", theirs), "ANN").left_out == {"the same weight under a second name": 6}
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state["decode_head.context.stages.0.query_project.conv.weight"] += 1
    torch.save({"state_dict": state}, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="two weights for the one"):
        read(tmp_path / "y.pth", "ANN")
