"""The loss of every pixel and the scores, written out; and a run from its data to its checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlprobe.checkpoints import read_checkpoint
from nlprobe.cli import run
from nlprobe.data import IGNORED, Batch, Batches, open_dataset, write_miniature_cityscapes, write_miniature_imagenet
from nlprobe.errors import ConfigError, DataError
from nlprobe.models import entry
from nlprobe.training import evaluate_segmentation, recipe
from nlprobe.training.catalogue import CHOICES
from nlprobe.training.keeping import Keeper
from nlprobe.training.run import Run
from nlprobe.training.segmentation import Segmentation, check_label_maps, hard_pixels, inference_of, pixel_losses

CPU = torch.device("cpu")
RECIPE = recipe("miniature-cityscapes")
NOTHING = object.__new__(Batches)


class Fixed(nn.Module):
    """Gives the same scores whatever it is shown."""

    def __init__(self, **scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        return self.scores if self.training else self.scores["scores"]


def batch(labels: Tensor) -> Batch:
    names = [str(number) for number in range(len(labels))]
    return Batch(torch.zeros(len(labels), 3, *labels.shape[1:]), labels, names, [])


def task(**changes: object) -> Segmentation:
    return Segmentation(NOTHING, NOTHING, RECIPE.override(changes), CPU)


def drawn() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(5, (3, 4, 6))
    labels[0, :2] = IGNORED
    return torch.randn(3, 5, 4, 6), labels


def written_out(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over images of the mean over labelled pixels."""
    each = [
        F.cross_entropy(one[None], label[None], ignore_index=IGNORED) for one, label in zip(logits, labels, strict=True)
    ]
    return torch.stack(each).mean()


def test_the_loss_is_the_written_out_one_with_the_heads_weights() -> None:
    logits, labels = drawn()
    auxiliary, branch = torch.randn_like(logits), torch.randn_like(logits)
    found = task(auxiliary=0.3, further=0.5).loss(
        Fixed(scores=logits, auxiliary=auxiliary, branch=branch), batch(labels)
    )
    expected = written_out(logits, labels) + 0.3 * written_out(auxiliary, labels) + 0.5 * written_out(branch, labels)
    torch.testing.assert_close(found.mean, expected)
    assert found.images == 3
    right = [
        (one.argmax(0) == label)[label != IGNORED].float().mean() for one, label in zip(logits, labels, strict=True)
    ]
    torch.testing.assert_close(found.sums["pixel_accuracy"], torch.stack(right).sum())


def test_an_image_without_labels_adds_nothing_and_breaks_nothing() -> None:
    logits, labels = drawn()
    labels[1] = IGNORED
    logits.requires_grad_()
    found = task().loss(Fixed(scores=logits), batch(labels))
    found.mean.backward()
    torch.testing.assert_close(found.mean, 2 / 3 * written_out(logits[[0, 2]], labels[[0, 2]]))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[1] == 0).all()


def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_shared_out() -> None:
    logits, labels = drawn()
    parts = [task().loss(Fixed(scores=logits[part]), batch(labels[part])) for part in (slice(0, 1), slice(1, 3))]
    whole = task().loss(Fixed(scores=logits), batch(labels))
    torch.testing.assert_close(sum(part.mean * part.images for part in parts) / 3, whole.mean)


def test_hard_pixels_are_those_below_the_threshold_and_always_the_hardest() -> None:
    logits, labels = drawn()
    probabilities = logits.softmax(1)
    for threshold, kept in ((0.0001, 4), (0.3, 1), (0.999, 2)):
        found = hard_pixels(logits, labels, threshold, kept)
        for image in range(3):
            own = {
                (y, x): float(probabilities[image, labels[image, y, x], y, x])
                for y in range(4)
                for x in range(6)
                if labels[image, y, x] != IGNORED
            }
            hardest = sorted(own, key=own.__getitem__)[:kept]
            expected = {place for place in own if own[place] < threshold or place in hardest}
            assert {tuple(place.tolist()) for place in found[image].nonzero()} == expected


def test_hard_example_mining_counts_hard_pixels_only() -> None:
    logits, labels = drawn()
    found = task(ohem=0.3, ohem_kept=2).loss(Fixed(scores=logits), batch(labels))
    chosen = hard_pixels(logits, labels, 0.3, 2)
    losses = pixel_losses(logits, labels)
    expected = torch.stack([one[hard].mean() for one, hard in zip(losses, chosen, strict=True)]).mean()
    torch.testing.assert_close(found.mean, expected)


def test_scores_are_those_of_the_predictions() -> None:
    logits, labels = drawn()
    kept: list[Tensor] = []
    scores = evaluate_segmentation(
        Fixed(scores=logits), [batch(labels)], CPU, keep=lambda ids, predicted: kept.append(predicted)
    )
    assert scores is not None
    assert torch.equal(kept[0], logits.argmax(1))
    assert scores.confusion.sum((1, 2)).tolist() == (labels != IGNORED).sum((1, 2)).tolist()
    expected = [
        F.cross_entropy(one[None], label[None], ignore_index=IGNORED) for one, label in zip(logits, labels, strict=True)
    ]
    assert scores.losses.tolist() == pytest.approx([float(each) for each in expected], rel=1e-6)


def test_the_recipes_windows_are_used() -> None:
    assert inference_of(RECIPE).window == 0
    sliding = inference_of(RECIPE.override({"inference": "sliding"}))
    assert (sliding.window, sliding.stride) == (128, 64)


@pytest.mark.parametrize(
    "changes",
    [{"inference": "wholly"}, {"auxiliary": -0.1}, {"ohem": 1.0}, {"window": 8, "window_stride": 9}, {"ohem_kept": 0}],
)
def test_recipes_that_cannot_be_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        RECIPE.override(changes)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_cityscapes(tmp_path_factory.mktemp("data"), train=8, val=3)


def make_run(root: Path) -> Run:
    chosen = entry("miniature-cityscapes/resnet-gc")
    small = RECIPE.override({"epochs": 2, "batch_size": 4, "augmentation.crop": 64, "schedule.warmup_epochs": 0})
    return Run(chosen.name, chosen.config, small, open_dataset(root, "train"), open_dataset(root, "val"))


def test_a_run_leaves_a_checkpoint_that_scores_as_its_log_says(streets: Path, tmp_path: Path) -> None:
    run = make_run(streets)
    engine = run.engine(CPU, observers=[Keeper(tmp_path, run.metadata({}), {"resolved": run.settings()})])
    engine.train()
    row = engine.progress.history[-1]
    assert {"val_miou", "val_pixel_accuracy", "val_loss", "train_pixel_accuracy"} <= set(row)
    checkpoint = read_checkpoint(tmp_path / "last.safetensors")
    assert len(checkpoint.metadata["classes"]) == 19
    assert checkpoint.metadata["preprocessing"] == {**run.recipe.preprocessing.as_dict()}
    again = Segmentation(NOTHING, engine.task._validation, run.recipe, CPU)
    scores = again.validate(checkpoint.model, lambda: False)
    assert scores is not None
    assert scores["miou"] == pytest.approx(row["val_miou"], rel=1e-6)


def test_data_without_maps_are_refused(streets: Path, tmp_path: Path) -> None:
    good = open_dataset(streets, "train")
    scenes = open_dataset(write_miniature_imagenet(tmp_path, train=10, val=10), "train")
    with pytest.raises(DataError, match="has no maps of classes"):
        check_label_maps(good, scenes, 2)
    with pytest.raises(DataError, match="8 training images, fewer than one batch of 9"):
        check_label_maps(good, good, 9)
    with pytest.raises(DataError, match="ImageNet folders"):
        replace(make_run(streets), training=scenes)


def test_the_plan_says_what_section_5_4_leaves_open(streets: Path, tmp_path: Path, capsys) -> None:
    arguments = ["train", "miniature-cityscapes/resnet-gc", "--recipe", "cityscapes", "--data", str(streets)]
    assert run([*arguments, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "left open by the paper, section 5.4, which follows CCNet, and chosen:" in text
    assert all(choice in text for choice in CHOICES["cityscapes"].choices)


@pytest.mark.slow
def test_a_step_and_a_validation_of_the_full_size_network_run(streets: Path, tmp_path: Path) -> None:
    arguments = ["train", "cityscapes/resnet101-nl", "--data", str(streets), "--out", str(tmp_path / "run")]
    arguments += ["--epochs", "1", "--batch-size", "8", "--accumulate", "4", "--device", "cpu"]
    assert run([*arguments, "--set", "augmentation.crop=97"]) == 0
    trained = read_checkpoint(tmp_path / "run")
    assert 0 <= trained.metadata["metrics"]["miou"] <= 1
    assert trained.model.head.context.norm.weight.any()  # it starts at zero, so the step has reached the block
    assert trained.model.auxiliary is not None
