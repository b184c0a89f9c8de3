"""CCNet's, DANet's and the CBAM authors' own checkpoints compute here what they compute there."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from ccnet_twin import ABN, CCNet, DANet, Gates
from lively import lively
from torch import nn

from nlprobe.checkpoints.foreign import read_foreign
from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.models import config_from_dict

CCNET = {"recurrence": "2", "order": "bgr", "mean": "104.0,116.7,122.7", "std": "1", "resize": "0"}
CBAM = {"order": "rgb", "mean": "123.675,116.28,103.53", "std": "58.395,57.12,57.375", "resize": "256", "crop": "224"}


@pytest.mark.parametrize("first", [False, True], ids=["second release", "first release"])
@pytest.mark.parametrize("recurrence", [1, 2])
@pytest.mark.parametrize("shape", [(64, 48), (73, 57)], ids=str)
def test_ccnet_gives_the_same_scores(recurrence: int, shape: tuple[int, int], first: bool, tmp_path: Path) -> None:
    theirs = lively(CCNet(first=first)).double()
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, ABN):
                module.weight[::2] *= -1
    torch.save(theirs.saved(), tmp_path / "CS_scenes_60000.pth")
    found = read_foreign(tmp_path / "CS_scenes_60000.pth", {**CCNET, "recurrence": str(recurrence)})
    ours = found.model.double()
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        scores, auxiliary = theirs(images.flip(1), recurrence)
        features = ours.backbone.features(images)
        # |γ| + ε is computed in the file's precision
        computed = ours.head(features)["scores"], ours.auxiliary(features["c4"])
        for one, other in zip(computed, (scores, auxiliary), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        expected = F.interpolate(scores, shape, mode="bilinear", align_corners=True)
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)
    assert scores.std() > 1e-2


@pytest.mark.parametrize("given, dilations", [("4,8,16", (4, 8, 16)), ("4", (2, 4, 4))])
def test_danet_gives_the_same_scores(given: str, dilations: tuple[int, ...], tmp_path: Path) -> None:
    theirs = lively(DANet(dilations)).double()
    held = {"epoch": 240, "state_dict": theirs.state_dict(), "optimizer": {}, "best_pred": 0.8}
    torch.save(held, tmp_path / "DANet101.pth.tar")
    pixels = {name: value for name, value in CBAM.items() if name != "crop"}
    found = read_foreign(tmp_path / "DANet101.pth.tar", {**pixels, "dilations": given})
    images = torch.randn(1, 3, 72, 56, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = found.model.double()
    with torch.no_grad():
        computed = ours.head(ours.backbone.features(images))
        for name, expected in zip(("scores", "position", "channel"), theirs(images), strict=True):
            assert expected.std() > 1e-3
            torch.testing.assert_close(computed[name], expected, rtol=1e-9, atol=1e-9)
    assert found.left_out == {"the ImageNet classifier of its trunk": 2}
    assert config_from_dict(json.loads(json.dumps(ours.config.as_dict()))) == ours.config


def with_gates(network: nn.Module) -> nn.Module:
    """Torchvision's network with the authors' gates at the end of every residual branch."""
    for stage in (1, 2, 3, 4):
        for block in network.get_submodule(f"layer{stage}"):
            last = block.bn3 if hasattr(block, "bn3") else block.bn2
            block.cbam = Gates(last.num_features, 4)
            last.register_forward_hook(lambda _, __, y, gates=block.cbam: gates(y))
    return network


@pytest.mark.parametrize("kind", [torchvision.models.resnet.Bottleneck, torchvision.models.resnet.BasicBlock])
def test_cbam_gives_the_same_logits(kind: type[nn.Module], tmp_path: Path) -> None:
    theirs = lively(with_gates(torchvision.models.ResNet(kind, [1, 2, 1, 1], num_classes=7))).double()
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 90, "arch": "resnet", "state_dict": state, "best_prec1": 77.6}, tmp_path / "x.pth")
    found = read_foreign(tmp_path / "x.pth", CBAM)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(found.model.double()(images), theirs(images), rtol=1e-9, atol=1e-9)
    assert found.metadata["preprocessing"]["crop"] == 224
    assert found.model.sites()[0] == "layer1.0:after_1x1"


def test_what_is_open_is_asked(tmp_path: Path) -> None:
    torch.save(lively(CCNet()).saved(), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"CCNet on a ResNet of 5 residual blocks, 5 classes.*`recurrence=NUMBER`"):
        read_foreign(tmp_path / "x.pth")
    network = with_gates(torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7))
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    torch.save(network.state_dict(), tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="is a network for CIFAR"):
        read_foreign(tmp_path / "y.pth", CBAM)
