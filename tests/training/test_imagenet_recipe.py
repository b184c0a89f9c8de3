"""The paper's ImageNet recipe, section 5.2, item by item: what the numbers do, not only that they are there."""

import colorsys
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from nlprobe.checkpoints import read_checkpoint
from nlprobe.cli import run
from nlprobe.data import Augmentation
from nlprobe.data.augmentation import PCANoise, ScaleHSV
from nlprobe.training import recipe
from nlprobe.training.catalogue import CHOICES

PAPER = recipe("imagenet")
DRAWS = 4000
LIMIT = 1.95 / math.sqrt(DRAWS)  # of Kolmogorov's and Smirnov's distance; a right distribution stays below in 99.9 %

# "ImageNet classification with deep convolutional neural networks", section 4.1, in the numbers of Torch's ResNets.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def distance(drawn: np.ndarray, cumulative: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov's and Smirnov's: the largest gap between the drawn numbers' distribution and the one meant."""
    ordered = np.sort(drawn)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    meant = cumulative(ordered)
    return float(max(np.abs(meant - steps[1:]).max(), np.abs(meant - steps[:-1]).max()))


def uniform(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


def alone(**numbers: float | tuple[float, float]) -> Augmentation:
    """The augmentation with only these numbers at work."""
    rest = {"rotation": 0.0, "area": (1.0, 1.0), "aspect": (1.0, 1.0), "flip": 0.0, "hsv": (1.0, 1.0), "pca": 0.0}
    return Augmentation(**{**rest, **numbers})


def steps() -> list:
    return PAPER.augmentation.transform(PAPER.preprocessing).transforms


def step(kind: type) -> v2.Transform:
    (found,) = [each for each in steps() if isinstance(each, kind)]
    return found


def test_the_steps_come_in_the_papers_order() -> None:
    kinds = (v2.RandomRotation, v2.RandomResizedCrop, v2.RandomHorizontalFlip, ScaleHSV, PCANoise, v2.Normalize)
    assert [type(each) for each in steps() if isinstance(each, kinds)] == list(kinds)


def test_pictures_turn_by_an_angle_that_is_uniform_within_ten_degrees() -> None:
    side, middle = 96, slice(24, 72)
    ramp = np.broadcast_to(np.linspace(20, 230, side), (side, side)).round().astype(np.uint8)
    picture = Image.fromarray(np.stack([ramp] * 3, axis=2))
    still = replace(PAPER.preprocessing, resize=side, crop=side, mean=(0.0,) * 3, std=(1.0,) * 3)
    turn = alone(rotation=PAPER.augmentation.rotation).transform(still)
    y, x = np.mgrid[middle, middle]
    plane = np.linalg.pinv(np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1))
    angles = []
    for _ in range(DRAWS // 4):
        across, down, _ = plane @ turn(picture)[0, middle, middle].double().numpy().ravel()
        angles.append(math.degrees(math.atan2(down, across)))
    assert 9.8 < max(np.abs(angles)) < 10.1
    assert distance(np.array(angles), uniform(-10, 10)) < 2 * LIMIT


def test_crops_are_uniform_in_area_and_log_uniform_in_aspect() -> None:
    width, height = 500, 375
    crop = step(v2.RandomResizedCrop)
    assert tuple(crop.size) == (224, 224)
    drawn = np.array(
        [
            (p["width"], p["height"])
            for p in (crop.make_params([Image.new("RGB", (width, height))]) for _ in range(DRAWS))
        ]
    )
    # What the text says, and a crop that does not fit is drawn again.
    generator = np.random.default_rng(0)
    area = generator.uniform(0.08, 1.0, 40 * DRAWS) * width * height
    aspect = np.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3), 40 * DRAWS))
    wide, high = np.sqrt(area * aspect), np.sqrt(area / aspect)
    fits = (wide <= width) & (high <= height)
    for theirs, ours in (
        ((wide * high)[fits], drawn.prod(axis=1)),
        ((wide / high)[fits], drawn[:, 0] / drawn[:, 1]),
    ):
        ordered = np.sort(theirs)
        assert distance(ours, lambda x, ordered=ordered: np.searchsorted(ordered, x) / len(ordered)) < 1.5 * LIMIT
    shares = drawn.prod(axis=1) / (width * height)
    assert 0.079 < shares.min() < 0.085
    assert 0.98 < shares.max() <= 1.0


def test_half_of_all_pictures_are_mirrored() -> None:
    picture = Image.fromarray(np.arange(224, dtype=np.uint8)[None].repeat(224, 0))
    mirror = step(v2.RandomHorizontalFlip)
    mirrored = sum(mirror(picture).getpixel((0, 0)) == 223 for _ in range(DRAWS))
    assert abs(mirrored / DRAWS - 0.5) < 3.3 * 0.5 / math.sqrt(DRAWS)


def test_hue_saturation_and_value_get_a_uniform_factor_each() -> None:
    scale = step(ScaleHSV)
    factors = np.array([scale.make_params([])["factors"] for _ in range(DRAWS)])
    assert all(distance(column, uniform(0.6, 1.4)) < LIMIT for column in factors.T)
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 3.3 / math.sqrt(DRAWS)


def test_scaling_in_hsv_is_that_of_the_standard_library() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    factors = [1.3, 0.7, 1.2]
    found = np.asarray(step(ScaleHSV).transform(Image.fromarray(pixels), {"factors": factors}), dtype=np.float64)
    expected = []
    for red, green, blue in pixels.reshape(-1, 3) / 255.0:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        hue, saturation, value = hue * factors[0] % 1, min(saturation * factors[1], 1), min(value * factors[2], 1)
        expected.append(colorsys.hsv_to_rgb(hue, saturation, value))
    gap = np.abs(found - 255 * np.array(expected).reshape(pixels.shape))
    # Pillow's HSV has 8 bits a channel: a step of the hue is 6 of 256 levels where the colour changes fastest.
    assert gap.mean() < 1.5
    assert np.quantile(gap, 0.99) < 8


def test_the_circle_of_hues_has_pillows_255_steps() -> None:
    blue = Image.new("RGB", (1, 1), (0, 0, 255))  # hue 170
    found = step(ScaleHSV).transform(blue, {"factors": [1.6, 1.0, 1.0]}).getpixel((0, 0))
    assert found == Image.new("HSV", (1, 1), (17, 255, 255)).convert("RGB").getpixel((0, 0))


def test_the_principal_components_are_an_orthonormal_basis() -> None:
    np.testing.assert_allclose(EIGENVECTORS.T @ EIGENVECTORS, np.eye(3), atol=2e-3)


def test_pca_noise_is_the_written_out_formula() -> None:
    noise, grey = step(PCANoise), torch.full((3, 5, 4), 0.5)
    torch.manual_seed(7)
    shifts = torch.stack([noise(grey)[:, 2, 1] for _ in range(DRAWS)]).double().numpy() - 0.5
    torch.manual_seed(7)
    alphas = 0.1 * torch.stack([torch.randn(3) for _ in range(DRAWS)]).double().numpy()
    expected = sum(np.outer(alphas[:, k], EIGENVALUES[k] * EIGENVECTORS[:, k]) for k in range(3))
    np.testing.assert_allclose(shifts, expected, atol=1e-7)
    weights = np.linalg.solve(EIGENVECTORS * EIGENVALUES, shifts.T)
    normal = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / (0.1 * math.sqrt(2)))))
    assert all(distance(row, normal) < LIMIT for row in weights)


def test_pca_noise_comes_before_the_normalisation() -> None:
    grey = Image.new("RGB", (8, 8), (128, 128, 128))
    transform = alone(pca=0.1).transform(replace(PAPER.preprocessing, resize=8, crop=8))
    torch.manual_seed(3)
    found = transform(grey)[:, 0, 0].double().numpy()
    torch.manual_seed(3)
    v2.RandomResizedCrop(8, (1.0, 1.0), (1.0, 1.0))(grey)  # draws first
    alpha = 0.1 * torch.randn(3).double().numpy()
    colour = 128 / 255 + EIGENVECTORS @ (EIGENVALUES * alpha)
    np.testing.assert_allclose(found, (colour - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], atol=1e-5)


def test_the_learning_rate_is_half_a_cosine_over_120_epochs_from_a_tenth() -> None:
    per_epoch = 1_281_167 // PAPER.batch_size
    rates = [
        PAPER.optimiser.learning_rate * PAPER.schedule.factor(epoch * per_epoch + step, per_epoch, PAPER.epochs)
        for epoch in range(120)
        for step in (0, per_epoch - 1)
    ]
    expected = [0.05 * (1 + math.cos(math.pi * epoch / 120)) for epoch in range(120) for _ in range(2)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_validation_takes_one_central_crop() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    resized = picture.resize((int(256 * 400 / 300), 256), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    pixels = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=np.float64) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(
        PAPER.validation_transform()(picture).permute(1, 2, 0).double().numpy(), expected, atol=1e-5
    )


def write_photographs(root: Path) -> None:
    """Six classes of a picture each to train on and to validate on, of ImageNet's usual size."""
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in range(6):
            (root / part / f"n{label}").mkdir(parents=True)
            coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((500, 375)).save(root / part / f"n{label}" / f"{part}_{label}.JPEG")


FULL_SIZE = ["train", "imagenet/resnet50-nl", "--epochs", "1", "--batch-size", "6", "--device", "cpu"]


def test_the_plan_says_what_the_text_leaves_open(tmp_path: Path, capsys) -> None:
    write_photographs(tmp_path / "data")
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--batch-size", "6", "--dry-run"]
    assert run(["train", "miniature-imagenet/resnet-nl", "--recipe", "imagenet", *where]) == 0
    text = capsys.readouterr().out
    assert "left open by the paper, section 5.2, and chosen:" in text
    assert all(choice in text for choice in CHOICES["imagenet"].choices)


@pytest.mark.slow
def test_a_step_and_a_validation_of_the_full_size_network_run(tmp_path: Path) -> None:
    write_photographs(tmp_path / "data")
    assert run([*FULL_SIZE, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]) == 0
    trained = read_checkpoint(tmp_path / "run")
    metrics = trained.metadata["metrics"]
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 1
    scale = trained.model.get_submodule("layer3.4.after_add.norm").weight
    assert scale.any()  # it starts at zero, so the step has reached the block
    assert trained.model.fc.out_features == 6
