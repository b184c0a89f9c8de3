"""Batches are a function of seed, epoch and index, whatever the workers."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from nlprobe.data import Augmentation, Batch, Batches, Joint, Preprocessing, UnreadableImageError, open_dataset
from nlprobe.data.loading import BatchOrder, Share, derived_seed
from nlprobe.errors import ConfigError, DataError

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


@pytest.mark.parametrize(("processes", "parts"), [(1, 2), (2, 1), (2, 2), (3, 2)])
def test_processes_together_take_the_batches_of_one(processes: int, parts: int) -> None:
    whole = list(BatchOrder(40, 12, seed=0))
    orders = [BatchOrder(40, 12, seed=0, share=Share(rank, processes), parts=parts) for rank in range(processes)]
    assert {len(order) for order in orders} == {3}
    own = [list(order) for order in orders]
    assert {len(pieces) for pieces in own} == {3 * parts}
    for step, batch in enumerate(whole):
        pieces = [own[rank][step * parts + part] for part in range(parts) for rank in range(processes)]
        assert [key for piece in pieces for key in piece] == batch
        assert {len(piece) for piece in pieces} == {12 // processes // parts}


def test_going_on_within_an_epoch_counts_steps_and_not_their_parts() -> None:
    order = BatchOrder(40, 12, seed=0, share=Share(1, 2), parts=3)
    whole = list(order)
    order.start = 1
    assert list(order) == whole[3:]


def test_in_order_whole_batches_are_dealt_out() -> None:
    whole = list(BatchOrder(10, 4))
    assert [len(batch) for batch in whole] == [4, 4, 2]
    assert list(BatchOrder(10, 4, share=Share(0, 2))) == whole[::2]
    assert list(BatchOrder(10, 4, share=Share(1, 2))) == whole[1::2]
    assert list(BatchOrder(10, 4, share=Share(3, 4))) == []


def test_a_batch_that_cannot_be_cut_into_equal_parts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a batch of 32 .* 3 processes\n.* 30 or 33"):
        BatchOrder(100, 32, seed=0, share=Share(0, 3))
    with pytest.raises(ConfigError, match=r"such as 8$"):
        BatchOrder(100, 4, seed=0, share=Share(0, 8))
    BatchOrder(100, 32, share=Share(0, 3))


def test_samples_do_not_depend_on_who_loads_them(imagenet: Path) -> None:
    whole = list(loaded(imagenet).epoch(1))
    dataset = open_dataset(imagenet, "train")
    halves = [Batches(dataset, RANDOM, 2, seed=3, share=Share(rank, 2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *(half.epoch(1) for half in halves), strict=True):
        assert first.ids + second.ids == batch.ids
        assert torch.equal(torch.cat([first.images, second.images]), batch.images)


def test_a_joint_transform_changes_pictures_and_labels_together(imagenet: Path) -> None:
    def marked(picture: Image.Image, label: int) -> tuple[torch.Tensor, torch.Tensor]:
        turned = bool(torch.rand(()) < 0.5)
        return torch.full((3, 2, 2), float(turned)), torch.full((2, 2), 10 * label + turned)

    dataset = open_dataset(imagenet, "train")
    batches = list(Batches(dataset, Joint(marked), 2, seed=0).epoch(0))
    labels = torch.cat([batch.labels for batch in batches])
    images = torch.cat([batch.images for batch in batches])
    assert labels.shape == (len(images), 2, 2)
    assert torch.equal(labels % 10, images[:, 0].long())
    assert 0 < images.mean() < 1


def test_images_of_different_sizes_do_not_share_a_batch(imagenet: Path) -> None:
    shapes = iter([(3, 4, 5), (3, 4, 6)])
    batches = Batches(open_dataset(imagenet, "train"), lambda picture: torch.zeros(next(shapes)), 2)
    with pytest.raises(DataError, match="different sizes, 4x5 and 4x6"):
        next(iter(batches))


def grouped(processes: int = 1, rank: int = 0, parts: int = 1) -> BatchOrder:
    groups = [int(index % 3 == 0) for index in range(50)]
    return BatchOrder(50, 4, seed=1, share=Share(rank, processes), parts=parts, groups=groups)


def test_a_batch_holds_one_group_but_for_the_last_of_the_epoch() -> None:
    order = grouped()
    batches = list(order)
    mixed = [len({index % 3 == 0 for _, index in batch}) > 1 for batch in batches]
    assert len(batches) == len(order) == 12
    assert mixed == [False] * 12  # 33 and 17 samples fill 8 and 4 batches
    seen = [index for batch in batches for _, index in batch]
    assert len(set(seen)) == 48
    assert sorted(order.indices(0)) == list(range(50))
    kinds = [batch[0][1] % 3 == 0 for batch in batches]
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)


def test_the_rest_of_the_groups_comes_together_at_the_end() -> None:
    order = BatchOrder(12, 4, seed=1, groups=[0] * 6 + [1] * 6)
    mixed = [len({index < 6 for _, index in batch}) > 1 for batch in order]
    assert mixed == [False, False, True]
    assert sorted(order.indices(3)) == list(range(12))


def test_groups_are_shuffled_anew_each_epoch_and_resume_anywhere() -> None:
    order = grouped()
    assert order.indices(0) == grouped().indices(0) != order.indices(1)
    whole = list(order)
    order.start = 5
    assert list(order) == whole[5:]


@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (1, 2), (2, 2)])
def test_groups_do_not_hang_on_the_number_of_processes(processes: int, parts: int) -> None:
    own = [list(grouped(processes, rank, parts)) for rank in range(processes)]
    for step, batch in enumerate(grouped()):
        pieces = [own[rank][step * parts + part] for part in range(parts) for rank in range(processes)]
        assert [key for piece in pieces for key in piece] == batch


def test_images_are_padded_together_at_the_right_and_below_where_it_is_asked_for(imagenet: Path) -> None:
    shapes = iter([(3, 4, 5), (3, 9, 6)])
    (batch,) = Batches(
        open_dataset(imagenet), lambda picture: torch.ones(next(shapes)), 2, pad=4, report=lambda error: None
    ).epoch(0, 1)
    assert batch.images.shape == (2, 3, 12, 8)
    assert batch.sizes == [(4, 5), (9, 6)]
    for image, (height, width) in zip(batch.images, batch.sizes, strict=True):
        assert (image[:, :height, :width] == 1).all()
        assert image.sum() == 3 * height * width


def test_sizes_are_told_only_of_padded_images(imagenet: Path) -> None:
    (batch,) = Batches(open_dataset(imagenet), PREPROCESSING.transform(), 4)
    assert batch.sizes is None
    (batch,) = Batches(open_dataset(imagenet), PREPROCESSING.transform(), 4, pad=12)
    assert batch.images.shape == (4, 3, 12, 12)
    assert batch.sizes == [(12, 12)] * 4


def test_a_padded_batch_of_which_nothing_can_be_read_is_empty(imagenet: Path) -> None:
    for path in (imagenet / "val").rglob("*.png"):
        path.write_bytes(b"gone")
    (batch,) = Batches(open_dataset(imagenet), PREPROCESSING.transform(), 4, pad=4, keep_empty=True)
    assert (batch.ids, batch.sizes, len(batch.unreadable)) == ([], [], 4)


def test_pictures_of_unknown_shape_cannot_be_grouped(imagenet: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be grouped by their shape"):
        Batches(open_dataset(imagenet), RANDOM, 2, seed=0, by_aspect=True)
