"""Batches are a function of seed, epoch and index, whatever the workers."""

from pathlib import Path

import pytest
import torch

from nlprobe.data import Augmentation, Batch, Batches, Preprocessing, UnreadableImageError, open_dataset
from nlprobe.data.loading import BatchOrder, derived_seed
from nlprobe.errors import DataError

PREPROCESSING = Preprocessing(12, 12)
RANDOM = Augmentation(area=(0.5, 1.0)).transform(PREPROCESSING)


def loaded(root: Path, workers: int = 0, seed: int | None = 3) -> Batches:
    return Batches(open_dataset(root, "train"), RANDOM, 2, workers=workers, seed=seed)


def same(first: list[Batch], second: list[Batch]) -> bool:
    return [batch.ids for batch in first] == [batch.ids for batch in second] and all(
        torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True)
    )


def test_batches_hold_images_labels_and_names(imagenet: Path) -> None:
    batch = next(loaded(imagenet).epoch(0))
    assert batch.images.shape == (2, 3, 12, 12)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0 if name.startswith("cat") else 1 for name in batch.ids]


def test_workers_do_not_change_a_bit(imagenet: Path) -> None:
    with_workers = loaded(imagenet, workers=2)
    for epoch in (0, 1):
        assert same(list(loaded(imagenet).epoch(epoch)), list(with_workers.epoch(epoch)))


def test_going_on_within_an_epoch_gives_the_rest_of_it(imagenet: Path) -> None:
    whole = list(loaded(imagenet).epoch(1))
    assert same(list(loaded(imagenet).epoch(1, start=1)), whole[1:])
    assert list(loaded(imagenet).epoch(1, start=3)) == []


def test_epochs_and_seeds_differ(imagenet: Path) -> None:
    first = list(loaded(imagenet).epoch(0))
    assert not same(first, list(loaded(imagenet).epoch(1)))
    assert not same(first, list(loaded(imagenet, seed=4).epoch(0)))
    assert same(first, list(loaded(imagenet).epoch(0)))


def test_consumed_samples_are_not_read(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    dataset = open_dataset(imagenet, "train")
    picture = dataset.picture
    monkeypatch.setattr(dataset, "picture", lambda index: (read.append(index), picture(index))[1])
    list(Batches(dataset, RANDOM, 2, seed=0).epoch(0, start=2))
    assert len(read) == 2


def test_the_global_generator_is_left_alone(imagenet: Path) -> None:
    before = torch.get_rng_state()
    list(loaded(imagenet).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_all_images_come_in_order(imagenet: Path) -> None:
    dataset = open_dataset(imagenet, "train")
    batches = Batches(dataset, PREPROCESSING.transform(), 4)
    assert len(batches) == 2
    assert [name for batch in batches for name in batch.ids] == dataset.ids


def test_photographs_have_no_labels(tmp_path: Path, write_images) -> None:
    (batch,) = Batches(open_dataset(write_images(tmp_path / "photos", 2)), PREPROCESSING.transform(), 2)
    assert batch.labels is None


def test_an_unreadable_image_is_left_out_named_and_the_rest_stays_what_it_was(imagenet: Path) -> None:
    whole = {
        name: image for batch in loaded(imagenet).epoch(0) for name, image in zip(batch.ids, batch.images, strict=True)
    }
    (imagenet / "train" / "dog" / "1.png").write_bytes(b"gone")
    errors: list[UnreadableImageError] = []
    batches = Batches(open_dataset(imagenet, "train"), RANDOM, 2, seed=3, report=errors.append)
    rest = [pair for batch in batches.epoch(0) for pair in zip(batch.ids, batch.images, strict=True)]
    assert [error.image for error in errors] == ["dog/1.png"]
    assert len(rest) == 5
    assert all(torch.equal(image, whole[name]) for name, image in rest)


def test_a_batch_without_a_readable_image_ends_training_and_is_passed_over_otherwise(imagenet: Path) -> None:
    for path in (imagenet / "train").rglob("*.png"):
        path.write_bytes(b"gone")
    with pytest.raises(DataError, match="none of the 2 images of a batch can be read"):
        next(loaded(imagenet).epoch(0))
    assert list(Batches(open_dataset(imagenet, "train"), RANDOM, 2)) == []


def test_an_order_holds_every_sample_once_and_leaves_an_incomplete_batch_out() -> None:
    order = BatchOrder(10, 3, seed=0)
    assert sorted(order.indices(5)) == list(range(10))
    assert len(order) == len(list(order)) == 3
    assert {key[0] for batch in order for key in batch} == {0}


def test_derived_seeds_depend_on_every_number_and_their_order() -> None:
    seeds = {derived_seed(*numbers) for numbers in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0), (0, 0, 0, 1))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
