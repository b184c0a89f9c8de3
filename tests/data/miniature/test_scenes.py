"""Scenes: what the objects claim is what can be seen."""

import sys

import numpy as np
import pytest

from nlprobe.data.miniature.scenes import SceneSettings, compose, draw_digit, material
from nlprobe.errors import MissingExtraError

SETTINGS = SceneSettings()


def scenes(count: int = 20, split: str = "train") -> list:
    return [
        compose(material(split), [1, 2, 3, 4, 5, 6], np.random.default_rng(seed), SETTINGS) for seed in range(count)
    ]


def test_the_splits_share_no_digit_and_no_part_of_a_photograph() -> None:
    training, validation = material("train"), material("val")
    seen = {digit.tobytes() for digit in training.digits}
    assert not any(digit.tobytes() in seen for digit in validation.digits)
    assert len(training.digits) + len(validation.digits) == 1797
    widths = [material(split).photographs[0].shape[1] for split in ("train", "val")]
    assert sum(widths) < 640
    for ours, theirs in zip(training.photographs, validation.photographs, strict=True):
        assert not any(np.array_equal(ours[:, -1], theirs[:, column]) for column in range(theirs.shape[1]))


def test_masks_are_disjoint_and_give_the_visible_share() -> None:
    for scene in scenes():
        covered = np.zeros((SETTINGS.size, SETTINGS.size), dtype=int)
        for seen in scene.objects:
            left, top, right, bottom = seen.box
            assert 0 <= left < right <= SETTINGS.size
            assert 0 <= top < bottom <= SETTINGS.size
            outside = seen.mask.copy()
            outside[top:bottom, left:right] = False
            assert not outside.any()
            assert SETTINGS.least_visible <= seen.visible <= 1
            covered += seen.mask
        assert covered.max() == 1


def test_digits_hide_one_another_in_part() -> None:
    shares = [seen.visible for scene in scenes(40) for seen in scene.objects]
    assert min(shares) < 0.9
    assert max(shares) == 1


def test_digits_stand_out_from_the_photograph() -> None:
    brightness = np.array([0.299, 0.587, 0.114])
    differences = []
    for scene in scenes():
        grey = np.asarray(scene.image) @ brightness
        for seen in scene.objects:
            left, top, right, bottom = seen.box
            around = ~np.logical_or.reduce([other.mask for other in scene.objects])[top:bottom, left:right]
            if around.any():
                differences.append(abs(grey[seen.mask].mean() - grey[top:bottom, left:right][around].mean()))
    assert np.median(differences) > 50


def test_a_digit_is_drawn_at_its_size_upright_or_turned() -> None:
    one = material("train").digits[material("train").instances(1)[0]]
    upright, turned = draw_digit(one, 32, 0.0), draw_digit(one, 32, 90.0)
    assert upright.min() >= 0
    assert upright.max() <= 1
    assert upright.shape[0] == pytest.approx(turned.shape[1], abs=2)


def test_a_missing_extra_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nlprobe\[mini\]'"):
        material.__wrapped__("train")
