"""Networks of torchvision: built without a download, fed as their weights were."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.libraries import Drawn, Loaded
from nlprobe.libraries.torchvision import torchvision_network


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))


def test_pictures_are_prepared_as_for_the_default_weights(picture: Image.Image) -> None:
    network = torchvision_network("resnet18")
    assert network.pictures is not None
    assert torch.equal(network.pictures.transform(picture), ResNet18_Weights.DEFAULT.transforms()(picture))
    assert network.pictures.settings["resize_size"] == [256]
    assert "`ResNet18_Weights.IMAGENET1K_V1`" in network.pictures.description
    assert network.weights == Drawn(0)


def test_pictures_are_prepared_as_for_the_named_weights(picture: Image.Image) -> None:
    network = torchvision_network("resnet50.IMAGENET1K_V1")
    assert network.pictures is not None
    expected = ResNet50_Weights.IMAGENET1K_V1.transforms()(picture)
    assert torch.equal(network.pictures.transform(picture), expected)
    assert not torch.equal(expected, ResNet50_Weights.DEFAULT.transforms()(picture))


def test_a_transformer_has_as_many_positions_as_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def get_model(name: str, **settings: object) -> torch.nn.Module:
        asked.update(settings)
        return torch.nn.Identity()

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    torchvision_network("vit_b_16.IMAGENET1K_SWAG_E2E_V1")
    assert asked == {"weights": None, "image_size": 384}


def test_weights_come_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    trained = torchvision.models.resnet18().state_dict()
    torch.save(trained, path)
    network = torchvision_network("resnet18", path)
    assert isinstance(network.weights, Loaded)
    assert all(torch.equal(trained[name], tensor) for name, tensor in network.model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"holds `layer1\.0\.conv3\.weight`|lacks `layer1\.0\.conv3\.weight`"):
        torchvision_network("resnet50", path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "torchvision has no network `resnet19`\ndid you mean .*`resnet18`"),
        ("zzzzzzzz", r"`torchvision.models.list_models\(\)` lists them"),
        ("fasterrcnn_resnet50_fpn", "is no classification network"),
        ("resnet50.IMAGENET1K_V3", "no weights `IMAGENET1K_V3` of `resnet50`\ndid you mean `IMAGENET1K_V"),
    ],
)
def test_unknown_names_come_with_close_ones(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        torchvision_network(name)
