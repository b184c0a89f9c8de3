"""Windows, scales and flips against what they are written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlprobe.errors import ConfigError
from nlprobe.training import Inference


class Pixelwise(nn.Module):
    """Scores that depend on a pixel alone."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, -images.sum(1, keepdim=True)], 1)


class Positional(nn.Module):
    """Scores that depend on where in its input a pixel lies."""

    def forward(self, images: Tensor) -> Tensor:
        columns = torch.linspace(0, 1, images.shape[3]).expand_as(images[:, :1])
        return torch.cat([images[:, :1] + columns, images[:, 1:2] * columns], 1)


def test_a_picture_taken_whole_has_the_networks_own_scores() -> None:
    images = torch.randn(2, 3, 9, 11)
    assert torch.equal(Inference().logits(Positional(), images), Positional()(images))


@pytest.mark.parametrize("size", [(20, 30), (8, 8), (5, 21), (3, 4)])
def test_windows_of_a_pixelwise_network_change_nothing(size: tuple[int, int]) -> None:
    images = torch.randn(1, 3, *size)
    torch.testing.assert_close(Inference(window=8, stride=5).logits(Pixelwise(), images), Pixelwise()(images))


def test_scores_are_averaged_where_windows_overlap() -> None:
    images = torch.randn(1, 3, 8, 13)
    expected, count = torch.zeros(1, 2, 8, 13), torch.zeros(13)
    for left in (0, 3, 5):  # the last window ends at the edge
        expected[..., left : left + 8] += Positional()(images[..., left : left + 8])
        count[left : left + 8] += 1
    torch.testing.assert_close(Inference(window=8, stride=3).logits(Positional(), images), expected / count)


def test_probabilities_are_averaged_over_scales_and_flips() -> None:
    images = torch.randn(1, 3, 10, 12)
    model, total = Positional(), torch.zeros(1, 2, 10, 12)
    for scale in (0.5, 1.0, 1.5):
        size = (round(10 * scale), round(12 * scale))
        resized = F.interpolate(images, size, mode="bilinear", align_corners=False)
        for flipped in (False, True):
            scores = model(resized.flip(3) if flipped else resized)
            scores = F.interpolate(scores, (10, 12), mode="bilinear", align_corners=False).softmax(1)
            total += scores.flip(3) if flipped else scores
    found = Inference(scales=(0.5, 1.0, 1.5), flip=True).logits(model, images)
    torch.testing.assert_close(found.softmax(1), total / 6)


def test_a_mirrored_picture_alone_is_another_answer_for_a_positional_network() -> None:
    images = torch.randn(1, 3, 6, 7)
    assert not torch.allclose(Inference(flip=True).logits(Positional(), images), Positional()(images))


def test_it_says_what_it_does() -> None:
    assert str(Inference()) == "whole pictures"
    assert str(Inference(8, 5, (0.5, 1.0), True)) == "sliding windows of 8 every 5 at scales 0.5, 1, and mirrored"


@pytest.mark.parametrize("wrong", [{"window": 8}, {"window": 8, "stride": 9}, {"scales": ()}, {"scales": (0.0,)}])
def test_numbers_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Inference(**wrong)
