"""Top-k against scikit-learn, and data that no classifier can be trained on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import top_k_accuracy_score
from torch import nn
from training_reference import Stripes

from nlprobe.data import Batch
from nlprobe.errors import DataError
from nlprobe.training import Scores, check_data, evaluate, rank_of_label

CPU = torch.device("cpu")


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_is_scikit_learns(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    logits = torch.randn(200, 10, generator=generator)
    labels = torch.randint(0, 10, (200,), generator=generator)
    ranks = rank_of_label(logits, labels)
    scores = Scores([""] * 200, ranks.numpy(), np.zeros(200), 10)
    expected = top_k_accuracy_score(labels, logits, k=k, labels=range(10))
    assert scores.hits(k).mean() == pytest.approx(expected)


@given(arrays(np.int64, (4, 6), elements=st.integers(-2, 2)), arrays(np.int64, (4,), elements=st.integers(0, 5)))
def test_the_rank_is_the_place_in_a_stable_sort(logits: np.ndarray, labels: np.ndarray) -> None:
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert rank_of_label(torch.from_numpy(logits).float(), torch.from_numpy(labels)).tolist() == expected


def test_equal_logits_are_no_hit_but_for_the_first_class() -> None:
    ranks = rank_of_label(torch.zeros(10, 10), torch.arange(10))
    assert ranks.tolist() == list(range(10))


def test_nan_is_a_miss_for_every_k() -> None:
    logits = torch.zeros(2, 6)
    logits[0, 3] = torch.nan
    assert rank_of_label(logits, torch.tensor([0, 0])).tolist() == [6, 0]


def batches(labels: list[int] | None) -> list[Batch]:
    return [Batch(torch.zeros(2, 3, 4, 4), None if labels is None else torch.tensor(labels), ["a", "b"], [])]


class Constant(nn.Module):
    """Always class 1 of `classes`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.eye(classes)[1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


def test_evaluation_scores_each_image_and_puts_the_mode_back() -> None:
    model = Constant(7)
    scores = evaluate(model.train(), batches([1, 0]), CPU)
    assert scores is not None
    assert model.training
    assert scores.ids == ["a", "b"]
    assert scores.hits(1).tolist() == [1, 0]
    assert set(scores.means()) == {"loss", "top1", "top5"}
    assert scores.means()["top1"] == 0.5


def test_top_5_of_five_classes_is_not_reported() -> None:
    scores = evaluate(Constant(5), batches([1, 1]), CPU)
    assert scores is not None
    assert set(scores.means()) == {"loss", "top1"}


def test_evaluation_stops_on_request() -> None:
    assert evaluate(Constant(5), batches([1, 1]), CPU, stop=lambda: True) is None


def test_images_without_labels_or_no_images_are_an_error() -> None:
    with pytest.raises(DataError, match="have no labels"):
        evaluate(Constant(5), batches(None), CPU)
    with pytest.raises(DataError, match="no image of the data set can be read"):
        evaluate(Constant(5), [], CPU)


def test_good_data_pass() -> None:
    check_data(Stripes(8), Stripes(4), 8)


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="has one class only, `cat`"):
        check_data(Stripes(8, classes=("cat",)), Stripes(4, classes=("cat",)), 4)


def test_a_set_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match=r"8 training images, fewer than one batch of 64\n.*--batch-size 2"):
        check_data(Stripes(8), Stripes(4), 64)


def test_an_empty_class_is_refused() -> None:
    lonely = Stripes(8)
    lonely.labels = [0] * 8
    with pytest.raises(DataError, match=r"1 of 2 classes .* have no training image, such as `upright`"):
        check_data(lonely, Stripes(4), 4)


def test_classes_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="`cat` is in one of them only"):
        check_data(Stripes(8), Stripes(6, classes=("cat", "level", "upright")), 4)


def test_photographs_without_labels_are_refused() -> None:
    photographs = Stripes(8)
    photographs.labels = photographs.classes = None
    with pytest.raises(DataError, match="without labels"):
        check_data(photographs, Stripes(4), 4)


def test_label_smoothing_reaches_the_loss(make_run) -> None:
    losses = []
    for smoothing in (0.0, 0.5):
        task = make_run(label_smoothing=smoothing).engine(CPU).task
        batch = next(task.batches(0, 0))
        model = Constant(2)
        with torch.no_grad():
            model.logits *= 10
        losses.append(task.loss(model, replace_labels(batch)).mean.item())
    assert losses[0] < 0.01
    assert losses[1] == pytest.approx(2.5, abs=0.01)


def replace_labels(batch: Batch) -> Batch:
    """All of class 1."""
    assert batch.labels is not None
    return batch._replace(labels=torch.ones_like(batch.labels))


def test_scores_are_plain_data() -> None:
    scores = Scores(["a"], np.array([0]), np.array([0.5]), 10)
    assert replace(scores, classes=3).means() == {"loss": 0.5, "top1": 1.0}


def test_scores_of_several_processes_are_those_of_one_in_its_order() -> None:
    one = Scores(["a", "c"], np.array([0, 2]), np.array([0.1, 0.3]), 10)
    two = Scores(["b"], np.array([1]), np.array([0.2]), 10)
    nothing = Scores([], np.empty(0, np.int64), np.empty(0), 0)
    joined = Scores.joined([one, two, nothing], ["a", "b", "gone", "c"])
    assert joined.ids == ["a", "b", "c"]
    assert joined.ranks.tolist() == [0, 1, 2]
    assert joined.losses.tolist() == [0.1, 0.2, 0.3]
    assert joined.classes == 10
