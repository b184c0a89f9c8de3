"""Checkpoints of video-nonlocal-net and PySlowFast compute here what they compute there."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from slowfast_twin import C2D, I3D, SLOW, blobs, logits, slowfast_names

from nlprobe.checkpoints.foreign import Foreign, read_foreign
from nlprobe.errors import CheckpointError, ConfigError

PIXELS = {"order": "rgb", "mean": "114.75", "std": "57.375", "resize": "256", "frames": "8", "interval": "8"}
BLOCKS = {"mode": "embedded_gaussian", "scale": "inv_sqrt", "sub_sample": "pool_then_project"}
SHORT = {"stem_stride": "1", "pool_stride": "1", "pool_frames": "1", "halve": "true", "pad_pool": "false"}
LONG = {**SHORT, "stem_stride": "2", "pool_stride": "2", "pool_frames": "2"}


def pickled(path: Path, held: dict[str, np.ndarray]) -> Path:
    path.write_bytes(pickle.dumps({"blobs": held}, protocol=2))
    return path


def assert_equal(found: Foreign, expected: torch.Tensor, clips: torch.Tensor) -> None:
    assert expected.std() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(found.model.double()(clips), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernels", [I3D, C2D], ids=["i3d", "c2d"])
@pytest.mark.parametrize(
    "answers, stride, pool, frames", [(SHORT, 1, (1, 1), 4), (LONG, 2, (2, 2), 16)], ids=["8", "32"]
)
def test_networks_of_caffe2_give_the_same_logits(
    kernels: dict, answers: dict, stride: int, pool: tuple[int, int], frames: int, tmp_path: Path
) -> None:
    held = blobs(kernels)
    clips = torch.randn(2, 3, frames, 56, 40, dtype=torch.float64)
    found = read_foreign(pickled(tmp_path / "x.pkl", held), {**PIXELS, **BLOCKS, **answers})
    assert_equal(found, logits(held, clips, stem_stride=stride, pool=pool, padding=0), clips)
    assert found.left_out["state of the training"] == 2
    assert found.left_out["momentum of the optimiser"] > 50
    sites = ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]
    assert found.model.sites() == [f"{site}:after_block" for site in sites]
    assert found.metadata["preprocessing"]["mean"] == [0.45] * 3


@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "dot product"])
def test_files_of_pyslowfast_give_the_same_logits(softmax: bool, tmp_path: Path) -> None:
    held = blobs(SLOW)
    clips = torch.randn(2, 3, 4, 48, 48, dtype=torch.float64)
    path = tmp_path / "checkpoint_epoch_00196.pyth"
    torch.save({"epoch": 196, "model_state": slowfast_names(held), "optimizer_state": {}, "cfg": "TASK: x"}, path)
    mode = {"mode": "embedded_gaussian" if softmax else "dot_product"}
    answers = {**PIXELS, **BLOCKS, **SHORT, **mode, "pad_pool": "true", "halve": "false"}
    found = read_foreign(path, answers)
    expected = logits(held, clips, stem_stride=1, pool=(1, 1), padding=1, halves=False, softmax=softmax)
    assert_equal(found, expected, clips)
    wrong = read_foreign(path, {**answers, "pad_pool": "false"})
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(wrong, expected, clips)


def test_networks_that_cannot_be_built_are_refused_in_words(tmp_path: Path) -> None:
    held = blobs(I3D)
    affine = {name: blob for name, blob in held.items() if not name.endswith(("_rm", "_riv"))}
    answers = {**PIXELS, **BLOCKS, **SHORT}
    with pytest.raises(CheckpointError, match="attend within groups of four frames"):
        read_foreign(pickled(tmp_path / "x.pkl", affine), answers)
    with pytest.raises(CheckpointError, match="two pathways"):
        read_foreign(pickled(tmp_path / "y.pkl", {**held, "t_conv1_w": held["conv1_w"]}), answers)
    with pytest.raises(ConfigError, match="a stem of 5 frames") as error:
        read_foreign(pickled(tmp_path / "z.pkl", held))
    assert all(f"`{name}=" in error.value.cause for name in (*BLOCKS, *SHORT, "frames", "mean"))
