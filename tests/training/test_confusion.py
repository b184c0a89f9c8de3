"""Confusion matrices and mIoU against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex

from nlprobe.data import IGNORED
from nlprobe.training import SegmentationScores
from nlprobe.training.confusion import confusion_matrices, intersection_over_union, mean_iou, pixel_accuracy

CLASSES = 5


def maps(seed: int, images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images, 6, 7), generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, labels.roll(1, 2))
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORED
    return predicted, labels


def test_each_image_has_scikit_learns_matrix() -> None:
    predicted, labels = maps(0)
    for found, guess, truth in zip(confusion_matrices(predicted, labels, CLASSES), predicted, labels, strict=True):
        counted = truth != IGNORED
        expected = confusion_matrix(truth[counted], guess[counted], labels=range(CLASSES))
        np.testing.assert_array_equal(found.numpy(), expected)


def test_iou_is_scikit_learns_and_torchmetrics() -> None:
    predicted, labels = maps(1)
    total = confusion_matrices(predicted, labels, CLASSES).sum(0).numpy()
    counted = labels != IGNORED
    expected = jaccard_score(labels[counted], predicted[counted], average=None, labels=range(CLASSES))
    np.testing.assert_allclose(intersection_over_union(total), expected, rtol=1e-12)
    metric = MulticlassJaccardIndex(CLASSES, ignore_index=IGNORED)
    assert float(mean_iou(total)) == pytest.approx(float(metric(predicted, labels)), rel=1e-6)
    assert float(pixel_accuracy(total)) == pytest.approx(float((predicted == labels)[counted].double().mean()))


def test_a_class_that_is_neither_there_nor_predicted_does_not_count() -> None:
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(intersection_over_union(confusion), [3 / 4, 4 / 5, np.nan])
    assert float(mean_iou(confusion)) == pytest.approx((3 / 4 + 4 / 5) / 2)
    predicted_once = np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]])
    assert float(mean_iou(predicted_once)) == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert np.isnan(mean_iou(np.zeros((2, 2), dtype=np.int64)))
    assert np.isnan(pixel_accuracy(np.zeros((2, 2), dtype=np.int64)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 5))
def test_any_way_to_share_images_out_gives_the_same_scores(seed: int, cut: int) -> None:
    predicted, labels = maps(seed, images=6)
    confusion = confusion_matrices(predicted, labels, CLASSES).numpy()
    losses = np.random.default_rng(seed).random(6)
    names = [f"image {number}" for number in range(6)]
    whole = SegmentationScores(names, confusion, losses)
    first = SegmentationScores(names[::2], confusion[::2], losses[::2])
    second = SegmentationScores(names[1::2], confusion[1::2], losses[1::2])
    empty = SegmentationScores([], np.empty((0, 0, 0), np.int64), np.empty(0))
    joined = SegmentationScores.joined([second, empty, first], names)
    assert joined.ids == names
    assert joined.means() == whole.means()


def test_images_without_labels_have_no_loss_and_no_pixels() -> None:
    predicted, labels = maps(2)
    labels[1] = IGNORED
    confusion = confusion_matrices(predicted, labels, CLASSES).numpy()
    assert confusion[1].sum() == 0
    scores = SegmentationScores(["a", "b", "c"], confusion, np.array([1.0, np.nan, 3.0]))
    assert scores.means()["loss"] == 2.0
