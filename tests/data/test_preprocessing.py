"""From a picture to a tensor, as torchvision's published weights have it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms._presets import ImageClassification

from nlprobe.data import Preprocessing
from nlprobe.errors import ConfigError


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (50, 40), (1000, 90)])
def test_it_is_torchvisions_evaluation_transform(size: tuple[int, int]) -> None:
    image = picture(*size)
    expected = ImageClassification(crop_size=224, resize_size=256)(image)
    torch.testing.assert_close(Preprocessing().transform()(image), expected)


def test_the_photograph_keeps_its_aspect() -> None:
    tensor = Preprocessing(resize=64, crop=56).photograph()(picture(300, 200))
    assert tensor.shape == (3, 64, 96)


def test_without_antialiasing_shrinking_differs() -> None:
    image = picture(300, 300)
    smooth, rough = (Preprocessing(32, 32, antialias=antialias).transform()(image) for antialias in (True, False))
    assert rough.std() > 2 * smooth.std()


def test_it_survives_json() -> None:
    settings = Preprocessing(100, 90, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bicubic", False)
    assert Preprocessing.from_dict(settings.as_dict()) == settings


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="`crop` 224 does not fit into `resize` 200"):
        Preprocessing(resize=200)
    with pytest.raises(ConfigError, match=r"`linear`.*\n.*bilinear"):
        Preprocessing(interpolation="linear")
    with pytest.raises(ConfigError, match="unknown setting `size`"):
        Preprocessing.from_dict({"size": 224})
    with pytest.raises(ConfigError, match="those of std positive"):
        Preprocessing(std=(0.0, 1.0, 1.0))


def test_it_says_what_it_does() -> None:
    assert str(Preprocessing(72, 64)).startswith("shorter side 72 (bilinear), crop 64, normalised by 0.485±0.229")


def test_pictures_can_be_taken_whole_and_in_their_own_size() -> None:
    image = picture(24, 10)
    whole = Preprocessing(resize=0, crop=0, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    expected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.2
    torch.testing.assert_close(whole.transform()(image), expected)
    assert Preprocessing(resize=5, crop=0).transform()(image).shape == (3, 5, 12)
    assert str(whole).startswith("in its own size, whole")
    assert Preprocessing.from_dict(whole.as_dict()) == whole
