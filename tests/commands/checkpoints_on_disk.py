"""Checkpoints as training would leave them, without training."""

from pathlib import Path

import torch

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
