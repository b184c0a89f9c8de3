"""The miniature ImageNet: native layout, same bytes each time, and a class that no single object tells."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nlprobe.data import open_dataset, write_miniature_imagenet
from nlprobe.data.miniature.imagenet import CLASSES, draw_labels
from nlprobe.errors import ConfigError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_imagenet(tmp_path_factory.mktemp("miniature"), seed=1, train=60, val=40)


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def annotations(root: Path, split: str) -> list[dict]:
    return json.loads((root / "annotations" / f"{split}.json").read_text())


def test_it_opens_as_imagenet(small: Path) -> None:
    training, validation = open_dataset(small, "train"), open_dataset(small, "val")
    assert training.kind == "ImageNet folders"
    assert training.classes == validation.classes == list(CLASSES)
    assert set(Counter(training.labels).values()) == {6}
    assert set(Counter(validation.labels).values()) == {4}
    assert training[0].image.size == (128, 128)


def test_a_seed_gives_the_same_bytes_and_another_seed_others(small: Path, tmp_path: Path) -> None:
    again = write_miniature_imagenet(tmp_path / "again", seed=1, train=20, val=40)
    other = write_miniature_imagenet(tmp_path / "other", seed=2, train=10, val=10)
    expected = digests(small)
    images = {name: digest for name, digest in digests(again).items() if name.endswith("JPEG")}
    assert len(images) == 60
    assert images.items() <= expected.items()
    assert not set(digests(other).values()) & set(expected.values())


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_name_every_picture_and_its_objects(small: Path, split: str) -> None:
    listed = annotations(small, split)
    assert sorted(entry["image"] for entry in listed) == sorted(open_dataset(small, split).ids)
    for entry in listed:
        assert entry["image"].split("/")[0] == entry["class"]
        counts = Counter(seen["class"] for seen in entry["objects"])
        (first, most), (_, second) = counts.most_common(2)
        assert first == entry["class"]
        assert most >= 3 > second


def test_a_perfect_classifier_of_single_objects_is_right_about_half_of_the_time() -> None:
    """The ceiling of any model that sees one object: the share of objects that have their scene's class."""
    rng = np.random.default_rng(0)
    shares = [np.mean([label == 3 for label in draw_labels(3, rng)]) for _ in range(2000)]
    assert min(shares) >= 0.50
    assert max(shares) < 0.60
    assert 0.52 < np.mean(shares) < 0.56


def test_distractors_are_spread_over_all_other_classes() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(label for _ in range(2000) for label in draw_labels(3, rng))
    others = [counts[label] for label in range(10) if label != 3]
    assert min(others) > 0.85 * max(others)


def test_it_is_not_overwritten_without_force(small: Path) -> None:
    before = digests(small)
    with pytest.raises(ConfigError, match="already there"):
        write_miniature_imagenet(small.parent, train=10, val=10)
    assert digests(small) == before


def test_force_replaces_it(tmp_path: Path) -> None:
    root = write_miniature_imagenet(tmp_path, train=20, val=10)
    write_miniature_imagenet(tmp_path, train=10, val=10, force=True)
    assert len(open_dataset(root, "train")) == 10


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave classes empty"):
        write_miniature_imagenet(tmp_path, train=9, val=10)
