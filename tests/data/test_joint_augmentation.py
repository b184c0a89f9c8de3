"""A picture and its map of classes go through every step together."""

import numpy as np
import pytest
import torch
from PIL import Image

from nlprobe.data import IGNORED, JointAugmentation, Preprocessing, whole
from nlprobe.errors import ConfigError

PLAIN = Preprocessing(0, 0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def blocks(width: int, height: int, side: int = 16) -> tuple[Image.Image, Image.Image]:
    """A picture of flat squares, each in the grey of ten times its class, and its map."""
    rows, columns = np.mgrid[:height, :width] // side
    classes = ((3 * rows + 5 * columns) % 19).astype(np.uint8)
    return Image.fromarray((10 * classes).astype(np.uint8)).convert("RGB"), Image.fromarray(classes)


@pytest.mark.parametrize("seed", range(12))
def test_every_pixel_keeps_its_class_through_scale_crop_and_flip(seed: int) -> None:
    torch.manual_seed(seed)
    image, label = JointAugmentation(crop=64).transform(PLAIN).transform(*blocks(96, 80))
    assert image.shape == (3, 64, 64)
    assert label.shape == (64, 64)
    assert label.dtype == torch.int64
    inside = label != IGNORED
    # between two squares the picture is interpolated, and the map is not
    agree = (image[0] * 255 / 10 - label).abs() < 0.51
    borders = 64 * 64 * 4 / (16 * 0.5)
    assert int((inside & ~agree).sum()) <= borders
    assert image[:, ~inside].eq(0).all()


def test_without_scaling_every_pixel_agrees_exactly() -> None:
    torch.manual_seed(0)
    augmentation = JointAugmentation(scale=(1.0, 1.0), crop=40)
    for _ in range(5):
        image, label = augmentation.transform(PLAIN).transform(*blocks(96, 80))
        assert torch.equal((image[1] * 255 / 10).round().long(), label)


def test_small_pictures_are_filled_up_with_the_mean_and_what_is_ignored() -> None:
    torch.manual_seed(0)
    preprocessing = Preprocessing(0, 0)
    offsets = set()
    for _ in range(8):
        augmentation = JointAugmentation(scale=(1.0, 1.0), crop=32)
        image, label = augmentation.transform(preprocessing).transform(*blocks(20, 24))
        filled = label == IGNORED
        assert int((~filled).sum()) == 20 * 24
        assert image[:, filled].abs().max() < 0.01
        offsets.add(int((~filled).nonzero()[0, 0]))
    assert len(offsets) > 1


def test_scales_and_flips_are_as_often_as_they_should_be() -> None:
    torch.manual_seed(0)
    augmentation = JointAugmentation(scale=(0.5, 2.0), crop=8)
    sides = [augmentation._scaled((200, 100)) for _ in range(2000)]
    widths = np.array(sides)[:, 0] / 200
    assert 0.5 <= widths.min() < 0.51
    assert 1.99 < widths.max() <= 2
    assert abs(widths.mean() - 1.25) < 0.03
    assert all(width == pytest.approx(2 * height, abs=2) for width, height in sides)
    picture, label = blocks(16, 8, side=8)
    still = JointAugmentation(scale=(1.0, 1.0), crop=8).transform(PLAIN)
    flipped = 0
    for _ in range(400):
        _, seen = still.transform(picture.crop((4, 0, 12, 8)), label.crop((4, 0, 12, 8)))
        flipped += int(seen[0, 0] != label.getpixel((4, 0)))
    assert 160 < flipped < 240


def test_colours_change_and_maps_do_not() -> None:
    torch.manual_seed(0)
    augmentation = JointAugmentation(scale=(1.0, 1.0), crop=16, flip=0.0, photometric=1.0)
    picture, label = blocks(16, 16, side=4)
    image, seen = augmentation.transform(PLAIN).transform(picture, label)
    assert torch.equal(seen, torch.from_numpy(np.array(label)).long())
    assert not torch.equal((image[0] * 255).round().long(), torch.from_numpy(np.array(picture)[..., 0]).long())


def test_scoring_takes_pictures_whole() -> None:
    picture, label = blocks(30, 20)
    image, seen = whole(PLAIN).transform(picture, label)
    assert image.shape == (3, 20, 30)
    assert torch.equal((image[0] * 255 / 10).round().long(), seen)
    with pytest.raises(ConfigError, match="are scored whole"):
        whole(Preprocessing(32, 32))


@pytest.mark.parametrize("wrong", [{"scale": (2.0, 1.0)}, {"scale": (0.0, 1.0)}, {"crop": 0}, {"flip": 1.5}])
def test_numbers_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="augmentation"):
        JointAugmentation(**wrong)
