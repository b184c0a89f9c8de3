"""Scoring videos by their views, written out; recipes; and data that action recognition cannot be learnt from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nlprobe.data import Batch, open_dataset, write_miniature_imagenet
from nlprobe.errors import ConfigError, DataError
from nlprobe.training import evaluate_videos, recipe
from nlprobe.training.action import ActionScores, check_videos

CPU = torch.device("cpu")


class FirstPixel(nn.Module):
    """Logits that are written into the first pixels of each clip."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.largest = 0

    def forward(self, clips: Tensor) -> Tensor:
        self.largest = max(self.largest, len(clips))
        return clips[:, 0, 0, 0, : self.classes]


def videos(count: int, views: int, classes: int = 7) -> Batch:
    """Videos whose views say something different each."""
    clips = torch.randn(count, views, 3, 2, 4, classes, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % classes
    return Batch(clips, labels, [f"{number}.mp4" for number in range(count)], [])


@pytest.mark.parametrize("views", [1, 23])
def test_a_video_is_what_the_mean_softmax_of_its_views_says(views: int) -> None:
    shown = videos(6, views)
    network = FirstPixel(7)
    scores = evaluate_videos(network, [shown], CPU)
    assert scores is not None
    logits = shown.images[:, :, 0, 0, 0].double()
    probabilities = logits.softmax(2)
    for number, label in enumerate(shown.labels.tolist()):
        order = probabilities[number].mean(0).argsort(descending=True).tolist()
        assert scores.ranks[number] == order.index(label)
        by_clip = [row.argsort(descending=True).tolist().index(label) for row in logits[number]]
        assert scores.clip_ranks[number].tolist() == by_clip
    assert scores.means()["clip_top1"] == pytest.approx((scores.clip_ranks == 0).mean())
    assert scores.means()["top5"] == pytest.approx((scores.ranks < 5).mean())
    assert network.largest <= 10


def test_videos_of_one_clip_need_no_axis_of_views() -> None:
    shown = videos(4, 1)
    apart = evaluate_videos(FirstPixel(7), [shown._replace(images=shown.images[:, 0])], CPU)
    whole = evaluate_videos(FirstPixel(7), [shown], CPU)
    assert apart is not None
    assert whole is not None
    assert apart.ranks.tolist() == whole.ranks.tolist()


def test_parts_of_several_processes_come_in_the_order_of_the_data() -> None:
    whole = evaluate_videos(FirstPixel(7), [videos(5, 3)], CPU)
    assert whole is not None
    parts = [
        ActionScores(whole.ids[start::2], whole.ranks[start::2], whole.clip_ranks[start::2], 7) for start in (0, 1)
    ]
    joined = ActionScores.joined(parts, whole.ids)
    assert joined.ids == whole.ids
    np.testing.assert_array_equal(joined.clip_ranks, whole.clip_ranks)


def test_the_recipe_is_that_of_slow_8x8() -> None:
    known = recipe("kinetics")
    assert (known.epochs, known.batch_size, known.optimiser.learning_rate) == (196, 64, 0.1)
    assert known.optimiser.nesterov
    assert not known.optimiser.decay_norms
    steps = 3750
    assert known.schedule.factor(0, steps, 196) == pytest.approx(0.1, abs=1e-4)
    assert known.schedule.factor(34 * steps, steps, 196) == pytest.approx(1)
    assert known.schedule.factor(115 * steps, steps, 196) == pytest.approx(0.5, abs=1e-3)
    preprocessing = known.preprocessing
    assert (preprocessing.frames, preprocessing.stride, preprocessing.crop) == (8, 8, 224)  # type: ignore[attr-defined]
    assert (known.clips, known.crops) == (10, 3)  # type: ignore[attr-defined]
    inflated = recipe("kinetics-inflated")
    rates = [inflated.schedule.factor(epoch * steps, steps, 150) for epoch in (0, 10, 90, 130)]
    assert rates == pytest.approx([0.1, 1, 0.1, 0.01], abs=1e-4)


@pytest.mark.parametrize("changes", [{"clips": 0}, {"channels_last": True}, {"preprocessing.stride": 0}])
def test_recipes_that_cannot_be_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        recipe("kinetics").override(changes)


def test_pictures_are_refused(tmp_path: Path) -> None:
    scenes = open_dataset(write_miniature_imagenet(tmp_path, train=10, val=10), "train")
    with pytest.raises(DataError, match="holds no videos"):
        check_videos(scenes, scenes, 2)
    with pytest.raises(DataError, match="have no labels"):
        evaluate_videos(FirstPixel(7), [videos(1, 1)._replace(labels=None)], CPU)
    with pytest.raises(DataError, match="no video of the data set can be read"):
        evaluate_videos(FirstPixel(7), [], CPU)
