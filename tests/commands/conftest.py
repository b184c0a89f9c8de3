"""A small network on disk and photographs to show it."""

from pathlib import Path

import pytest
import torch
from checkpoints_on_disk import write_checkpoint
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with an embedded Gaussian block."""
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.safetensors")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder: two photographs, a very wide one, a very tall one, a tiny one."""
    folder = tmp_path_factory.mktemp("photographs")
    first, second = load_sample_images().images
    for name, pixels in {
        "china.jpg": first,
        "flower.jpg": second,
        "wide.png": first[200:240],
        "tall.png": second[:, 300:340],
        "tiny.png": first[:9, :11],
    }.items():
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def broken_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A non-local block that does not compute what its settings say."""
    from nlprobe.blocks import NonLocal

    forward = NonLocal.forward

    def broken(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x) + 0.1 * x

    monkeypatch.setattr(NonLocal, "forward", broken)
