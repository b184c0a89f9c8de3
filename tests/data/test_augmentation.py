"""The paper's augmentation: each step does what its number says."""

import numpy as np
import pytest
import torch
from PIL import Image

from nlprobe.data import Augmentation, Preprocessing
from nlprobe.data.augmentation import PCANoise, ScaleHSV
from nlprobe.errors import ConfigError

PLAIN = Preprocessing(32, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NOTHING = {"rotation": 0.0, "area": (1.0, 1.0), "aspect": (1.0, 1.0), "flip": 0.0, "hsv": (1.0, 1.0), "pca": 0.0}


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_with_every_number_at_rest_it_is_the_preprocessing() -> None:
    torch.testing.assert_close(
        Augmentation(**NOTHING).transform(PLAIN)(picture()), PLAIN.transform()(picture()), rtol=0, atol=0
    )


def test_a_certain_flip_mirrors() -> None:
    flipped = Augmentation(**{**NOTHING, "flip": 1.0}).transform(PLAIN)(picture())
    torch.testing.assert_close(flipped, PLAIN.transform()(picture()).flip(2), rtol=0, atol=0)


def test_each_step_changes_the_picture() -> None:
    still = PLAIN.transform()(picture())
    for change in ({"rotation": 10.0}, {"area": (0.3, 0.5)}, {"aspect": (0.5, 0.6)}, {"hsv": (0.6, 0.8)}, {"pca": 0.5}):
        moved = Augmentation(**{**NOTHING, **change}).transform(PLAIN)(picture())
        assert moved.shape == still.shape
        assert not torch.equal(moved, still), change


def test_it_is_a_function_of_torchs_seed() -> None:
    transform = Augmentation().transform(Preprocessing(32, 32))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(transform(picture()))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_value_and_saturation_are_scaled_each_by_its_own_number() -> None:
    colour = Image.new("HSV", (1, 1), (100, 100, 100)).convert("RGB")
    step = ScaleHSV(1.0, 1.0)
    changed = step.transform(colour, {"factors": [1.0, 0.5, 2.0]}).convert("HSV").getpixel((0, 0))
    assert np.abs(np.array(changed) - [100, 50, 200]).max() <= 3


def test_hue_goes_round_its_circle() -> None:
    colour = Image.new("HSV", (1, 1), (200, 255, 255)).convert("RGB")
    hue, *_ = ScaleHSV(1.0, 1.0).transform(colour, {"factors": [1.4, 1.0, 1.0]}).convert("HSV").getpixel((0, 0))
    assert abs(hue - (280 - 255)) <= 2


def test_pca_noise_moves_all_pixels_alike_and_mostly_in_brightness() -> None:
    torch.manual_seed(0)
    grey = torch.full((3, 4, 4), 0.5)
    shifts = torch.stack([PCANoise(0.1)(grey)[:, 0, 0] - 0.5 for _ in range(2000)])
    one = PCANoise(0.1)(grey)
    assert (one == one[:, :1, :1]).all()
    # Along the first component: variance (σ λ₁)², and the three components do not mix.
    along = shifts @ torch.tensor([-0.5675, -0.5808, -0.5836])
    assert along.std().item() == pytest.approx(0.1 * 0.2175, rel=0.1)
    assert shifts.mean(0).abs().max() < 2e-3


@pytest.mark.parametrize("wrong", [{"area": (0.5, 1.5)}, {"area": (0.0, 1.0)}, {"flip": 2.0}, {"hsv": (1.4, 0.6)}])
def test_impossible_numbers_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="augmentation"):
        Augmentation(**wrong)
