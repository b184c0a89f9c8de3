"""A small network on disk and photographs to show it."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from nlprobe.checkpoints import fingerprint, save_checkpoint
from nlprobe.data import Preprocessing
from nlprobe.models import build


def write_checkpoint(path: Path, name: str = "miniature-imagenet/resnet-nl", **metadata: object) -> Path:
    """A network of the zoo whose blocks are not zero, as training would leave it."""
    model = build(name, seed=0)
    initial = fingerprint(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if ".after_" in parameter_name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    described = {
        "model": name,
        "config": model.config.as_dict(),
        "preprocessing": Preprocessing(64, 64).as_dict(),
        "classes": [str(number) for number in range(10)],
        "metrics": {"top1": 0.5},
        "seed": 0,
        "epoch": 1,
        "initial_fingerprint": initial,
    }
    save_checkpoint(path, model, described | metadata)
    return path


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
