"""The miniature COCO reads as the real one, and its scenes tell more than their objects."""

import contextlib
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from nlprobe.data import Coco, open_dataset, write_miniature_coco
from nlprobe.data.miniature.coco import CATEGORY_IDS
from nlprobe.data.miniature.playgrounds import AMBIGUOUS, KINDS, has_hole, outlines
from nlprobe.data.outlines import filled
from nlprobe.errors import ConfigError

COUNTS = {"train": 180, "val": 100}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature_coco(tmp_path_factory.mktemp("data"), **COUNTS)


def opened(root: Path, split: str = "val") -> Coco:
    dataset = open_dataset(root, split)
    assert isinstance(dataset, Coco)
    return dataset


def lines(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())


# pycocotools hands NumPy an array in a way that NumPy 2 has deprecated.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_reads_it_and_sees_the_same_masks(root: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCO(root / "annotations" / "instances_val2017.json")
    dataset = opened(root)
    assert dataset.index.image_ids.tolist() == sorted(official.getImgIds())
    for place, number in enumerate(dataset.index.image_ids.tolist()):
        annotations = official.loadAnns(official.getAnnIds(number))
        label = dataset.instances(place)
        assert [one["category_id"] for one in annotations] == [dataset.categories[label] for label in label.labels]
        for one, mask, box in zip(annotations, label.masks.numpy(), label.boxes.tolist(), strict=True):
            np.testing.assert_array_equal(official.annToMask(one), mask)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert one["area"] == mask.sum()


def test_it_holds_what_makes_coco_hard_to_read(root: Path) -> None:
    for split, count in COUNTS.items():
        dataset = opened(root, split)
        assert (len(dataset), dataset.faults) == (count, ())
        assert dataset.categories == sorted(CATEGORY_IDS.values()) == [1, 3, 6, 7, 13, 37, 38, 51, 85]
        objects = np.diff(dataset.index.first)
        assert (objects == 0).sum() >= 2
        assert dataset.index.crowd.sum() >= 2
        assert set(dataset.index.labels.tolist()) == set(range(9))
        heights, widths = dataset.shapes.T
        assert len({*zip(heights.tolist(), widths.tolist(), strict=True)}) > count / 4
        assert 0.25 < (heights > widths).mean() < 0.55
        assert max(heights.max(), widths.max()) <= 128
        areas = np.array([one["area"] for one in lines(root, split)["annotations"]])
        assert min((areas < 32**2).mean(), (areas > 32**2).mean()) > 0.15
        assert min(np.diff(dataset.index.image_ids)) > 1


def test_the_parts_share_no_picture_and_no_number(root: Path) -> None:
    train, val = (set(opened(root, split).index.image_ids.tolist()) for split in COUNTS)
    assert not train & val


def test_objects_hide_one_another_in_part(root: Path) -> None:
    dataset = opened(root)
    shares = []
    for place in range(len(dataset)):
        label = dataset.instances(place)
        owners = label.masks.sum(0)
        assert owners.max() <= 1
        for first, (left, top, right, bottom) in zip(label.masks, label.boxes.int().tolist(), strict=True):
            others = (owners.bool() & ~first)[top:bottom, left:right]
            shares.append(others.sum().item() / others.numel())
    assert np.mean(np.array(shares) > 0.1) > 0.2


def test_the_files_are_a_function_of_the_seed(root: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()

    first, again = (write_miniature_coco(tmp_path / name, train=3, val=3) for name in ("first", "again"))
    other = write_miniature_coco(tmp_path / "other", seed=1, train=3, val=3)
    assert digest(first) == digest(again) != digest(other)
    for path in (first / "val2017").iterdir():
        assert path.read_bytes() == (root / "val2017" / path.name).read_bytes()


def test_the_light_decides_which_class_a_seven_has(root: Path) -> None:
    content = lines(root, "train")
    names = {one["id"]: one["name"] for one in content["categories"]}
    lights = {one["id"]: one["light"] for one in content["images"]}
    seen = set()
    for one in content["annotations"]:
        light = lights[one["image_id"]]
        assert names[one["category_id"]] == KINDS[one["digit"]].names[light == "evening"]
        seen.add((one["digit"], names[one["category_id"]]))
    assert AMBIGUOUS == (7,)
    assert {name for digit, name in seen if digit == 7} == {"sports ball", "clock"}
    assert len(seen) == 9


def seen_of_objects(root: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours and form of each object's own pixels; the colour of all the rest; the class."""
    dataset = opened(root, split)
    objects, scenes, labels = [], [], []
    for place in range(len(dataset)):
        label = dataset.instances(place)
        pixels = np.asarray(dataset.picture(place), dtype=float)
        free = pixels[~label.masks.any(0).numpy()]
        for mask, box, name in zip(label.masks.numpy(), label.boxes.numpy(), label.labels.tolist(), strict=True):
            own = pixels[mask]
            width, height = box[2:] - box[:2]
            form = [width / height, mask.sum() / (width * height)]
            objects.append([*np.percentile(own, [10, 25, 50, 75, 90], axis=0).ravel(), *own.mean(0), *form])
            scenes.append(np.median(free, 0))
            labels.append(name)
    return np.array(objects), np.array(scenes), np.array(labels)


def test_whoever_sees_the_scene_knows_more_than_who_sees_the_object_alone(root: Path) -> None:
    (objects, scenes, labels), (new_objects, new_scenes, new_labels) = (
        seen_of_objects(root, split) for split in COUNTS
    )

    def right(known: np.ndarray, unknown: np.ndarray, chosen: np.ndarray, asked: np.ndarray) -> float:
        scaler = StandardScaler().fit(known[chosen])
        learner = LogisticRegression(max_iter=2000).fit(scaler.transform(known[chosen]), labels[chosen])
        return float(learner.score(scaler.transform(unknown[asked]), new_labels[asked]))

    both, new_both = np.hstack([objects, scenes]), np.hstack([new_objects, new_scenes])
    sevens = np.array([sorted(CATEGORY_IDS.values()).index(CATEGORY_IDS[name]) for name in KINDS[7].names])
    chosen, asked = np.isin(labels, sevens), np.isin(new_labels, sevens)
    assert min(np.mean(new_labels[asked] == each) for each in sevens) > 0.3
    assert right(objects, new_objects, chosen, asked) < 0.68
    assert right(both, new_both, chosen, asked) > 0.95
    everything, every = np.full(len(labels), True), np.full(len(new_labels), True)
    alone, seeing = right(objects, new_objects, everything, every), right(both, new_both, everything, every)
    assert seeing > 0.9
    assert seeing > alone + 0.02


@given(st.integers(0, 2**32), st.integers(1, 14), st.integers(1, 14), st.sampled_from([0.2, 0.5, 0.8]))
def test_outlines_enclose_exactly_the_mask_and_tell_of_holes(seed: int, height: int, width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    polygons = outlines(mask)
    hole = has_hole(mask)
    assert hole == holes_by_flooding(mask)
    if mask.any() and not hole:
        np.testing.assert_array_equal(filled(polygons, (height, width)), mask)
    assert bool(polygons) == bool(mask.any())


def holes_by_flooding(mask: np.ndarray) -> bool:
    """Whether water from outside, which passes between pixels that touch at a corner, leaves a place dry."""
    solid = np.pad(mask, 1)
    wet = np.zeros_like(solid)
    wet[0, 0] = True
    while True:
        grown = np.pad(wet, 1)
        around = [
            grown[1 + a : 1 + a + wet.shape[0], 1 + b : 1 + b + wet.shape[1]] for a in (-1, 0, 1) for b in (-1, 0, 1)
        ]
        grown = np.logical_or.reduce(around) & ~solid
        if (grown == wet).all():
            return bool((~solid & ~wet).any())
        wet = grown


def test_a_folder_that_is_there_is_kept(root: Path) -> None:
    with pytest.raises(ConfigError):
        write_miniature_coco(root.parent, train=1, val=1)
    with pytest.raises(ConfigError, match="at least 1"):
        write_miniature_coco(root.parent, val=0, force=True)
