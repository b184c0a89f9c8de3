"""From `LIBRARY:NAME` to a network."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from nlprobe.data import Preprocessing
from nlprobe.errors import ConfigError
from nlprobe.libraries import Pictures, Settings, default_name, open_network


def test_each_library_is_asked_for_its_network(bert_folder: Path) -> None:
    assert open_network("torchvision:resnet18").package == "torchvision"
    assert open_network("timm:resnet18").package == "timm"
    assert open_network(f"hf:{bert_folder}").package == "transformers"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("timm:vit_base_patch16_224", "vit_base_patch16_224"),
        ("hf:models/bert/", "bert"),
        ("python:package.module:make", "package.module:make"),
    ],
)
def test_a_network_is_called_by_its_name(source: str, name: str) -> None:
    assert default_name(source) == name


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tim:resnet18", "unknown library `tim`\ndid you mean `timm`"),
        ("resnet18", "`resnet18` names no network\nwrite one of a network of timm: `timm:"),
        ("timm:", "`timm:` names no network"),
    ],
)
def test_what_names_no_library_is_refused(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_network(source)


def test_settings_that_are_not_for_a_network_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whose preprocessing comes with it"):
        open_network("timm:resnet18", settings=Settings(preprocessing=Preprocessing()))
    with pytest.raises(ConfigError, match="brings its weights"):
        open_network(f"hf:{bert_folder}", tmp_path / "weights.pth")


def test_a_transform_that_keeps_the_shape_of_a_picture_has_no_size() -> None:
    def keep(picture: Image.Image) -> torch.Tensor:
        return torch.zeros(3, picture.height, picture.width)

    assert Pictures(keep, "", {}).size is None
    assert Pictures.of(Preprocessing(40, 32)).size == (32, 32)
