"""Checkpoints of mmaction2 compute here what they compute there."""

from pathlib import Path

import pytest
import torch
from lively import lively
from mmaction_twin import Recogniser, ShiftRecogniser, clips

from nlprobe.checkpoints.foreign import read_foreign
from nlprobe.errors import CheckpointError, ConfigError

PIXELS = {"order": "rgb", "mean": "123.675,116.28,103.53", "std": "58.395,57.12,57.375", "resize": "256"}
CLIP = {"frames": "8", "interval": "8", **PIXELS}


def saved(path: Path, network: torch.nn.Module) -> Path:
    torch.save({"meta": {"mmaction_version": "0.24"}, "state_dict": network.state_dict()}, path)
    return path


@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian", "dot_product"])
@pytest.mark.parametrize("kind, scaled", [("slowonly", True), ("i3d", False)])
def test_networks_for_clips_give_the_same_logits(kind: str, scaled: bool, mode: str, tmp_path: Path) -> None:
    theirs = lively(Recogniser(kind, mode, scaled)).double()
    asked = {} if mode == "gaussian" else {"mode": mode}
    scale = {"scale": "inv_sqrt" if scaled else "none"}
    found = read_foreign(saved(tmp_path / "x.pth", theirs), {**CLIP, **asked, **scale})
    with torch.no_grad():
        expected = theirs(clips(16 if kind == "i3d" else 4))
        assert expected.std() > 1e-3
        computed = found.model.double()(clips(16 if kind == "i3d" else 4))
        torch.testing.assert_close(computed, expected, rtol=1e-9, atol=1e-9)
    indices = (1, 3), (1, 3, 5)
    if kind == "slowonly":
        indices = (0, 2), (0, 2, 4)
    sites = [f"layer{stage}.{index}:after_block" for stage, own in zip((2, 3), indices, strict=True) for index in own]
    assert found.model.sites() == sites
    assert {"frames": 8, "stride": 8}.items() <= found.metadata["preprocessing"].items()


@pytest.mark.parametrize("wrong", [{"mode": "dot_product", "scale": "none"}, {"scale": "none"}])
def test_a_wrong_answer_computes_something_else(wrong: dict[str, str], tmp_path: Path) -> None:
    theirs = lively(Recogniser("slowonly")).double()
    given = {**CLIP, "mode": "embedded_gaussian", "scale": "inv_sqrt", **wrong}
    ours = read_foreign(saved(tmp_path / "x.pth", theirs), given).model.double()
    with torch.no_grad():
        assert not torch.allclose(ours(clips(4)), theirs(clips(4)), rtol=1e-5, atol=1e-5)


def test_what_is_open_is_asked_and_other_networks_are_refused(tmp_path: Path) -> None:
    theirs = lively(Recogniser("i3d"))
    path = saved(tmp_path / "x.pth", theirs)
    with pytest.raises(
        ConfigError, match="mmaction2: I3D of 16 residual blocks with 5 non-local ones, 5 classes"
    ) as error:
        read_foreign(path)
    assert all(f"`{name}=" in error.value.cause for name in ("mode", "scale", "frames", "interval", "mean"))
    network = lively(ShiftRecogniser())
    network.backbone.layer1[1].conv1.conv = network.backbone.layer1[1].conv1.conv.net
    path = saved(path, network)
    with pytest.raises(CheckpointError, match="shifts in 15 of its 16 residual blocks"):
        read_foreign(path, {**CLIP, "mode": "dot_product", "scale": "none", "shift": "8"})


@pytest.mark.parametrize("mode", ["embedded_gaussian", "gaussian", "dot_product"])
def test_temporal_shift_networks_give_the_same_logits(mode: str, tmp_path: Path) -> None:
    theirs = lively(ShiftRecogniser(mode)).double()
    asked = {} if mode == "gaussian" else {"mode": mode}
    path = saved(tmp_path / "x.pth", theirs)
    found = read_foreign(path, {**CLIP, **asked, "scale": "none", "shift": "8"})
    wrong = read_foreign(path, {**CLIP, **asked, "scale": "none", "shift": "4"})
    with torch.no_grad():
        expected = theirs(clips(8))
        assert expected.std() > 1e-3
        torch.testing.assert_close(found.model.double()(clips(8)), expected, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(wrong.model.double()(clips(8)), expected, rtol=1e-5, atol=1e-5)
    assert found.model.sites()[0] == "layer2.0:after_block"
