"""Average precision: pycocotools' own, counted by hand, by another package, and for any weights of the pictures."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as official_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nlprobe.data import Coco, Preprocessing, open_dataset, write_miniature_coco
from nlprobe.data.part import Part
from nlprobe.errors import ConfigError, DataError, MissingExtraError
from nlprobe.models.detections import Detections
from nlprobe.stats.intervals import bootstrap_of_counts
from nlprobe.training.detection_results import ImageDetections, in_original, paste, results, write_results
from nlprobe.training.detection_scores import METRICS, score_detections

# pycocotools hands NumPy an array in a way that NumPy 2 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Coco:
    dataset = open_dataset(write_miniature_coco(tmp_path_factory.mktemp("data"), train=1, val=40))
    assert isinstance(dataset, Coco)
    return dataset


def packed(masks: np.ndarray) -> tuple[dict[str, Any], ...]:
    runs = [official_masks.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    return tuple({"size": list(one["size"]), "counts": one["counts"].decode()} for one in runs)


def perfect(coco: Coco) -> list[ImageDetections]:
    found = []
    for place in range(len(coco)):
        label = coco.instances(place).without_crowds()
        boxes, labels = label.boxes.double().numpy(), label.labels.numpy()
        found.append(ImageDetections(label.image_id, boxes, np.ones(len(label)), labels, packed(label.masks.numpy())))
    return found


def worse(coco: Coco, seed: int) -> list[ImageDetections]:
    """Objects found more or less well, twice, as other classes, or not at all, with scores that tie."""
    rng, found = np.random.default_rng(seed), []
    for place in range(len(coco)):
        label = coco.instances(place)
        height, width = label.size
        boxes, labels, masks = [], [], []
        for box, name, mask in zip(label.boxes.numpy(), label.labels.tolist(), label.masks.numpy(), strict=True):
            for _ in range(int(rng.integers(0, 4))):
                spread = rng.choice([0.2, 1.5, 4])
                moved = np.clip(box + rng.normal(0, spread, 4), 0, [width, height] * 2)
                if (moved[2:] <= moved[:2]).any():
                    continue
                boxes.append(moved)
                labels.append(name if rng.random() < 0.85 else int(rng.integers(len(coco.classes))))
                masks.append(np.roll(mask, rng.integers(-2, 3, 2), (0, 1)))
        scores = rng.choice(np.linspace(0.05, 0.99, 30), len(boxes))
        stacked = np.array(masks).reshape(-1, height, width)
        kinds = np.array(labels, dtype=np.int64)
        found.append(
            ImageDetections(
                label.image_id, np.array(boxes).reshape(-1, 4).astype(float), scores, kinds, packed(stacked)
            )
        )
    return found


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    both = np.prod(sides.clip(0))
    return float(both / (np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - both))


def counted_by_hand(coco: Coco, places: list[int], found: list[ImageDetections], threshold: float) -> float:
    """Average precision of boxes at one overlap, one object at a time; for detections that touch no crowd."""
    precisions = []
    for label in range(len(coco.classes)):
        objects = {}
        for place in places:
            known = coco.instances(place).without_crowds()
            objects[known.image_id] = [
                box
                for box, name in zip(known.boxes.double().numpy(), known.labels.tolist(), strict=True)
                if name == label
            ]
        total = sum(map(len, objects.values()))
        if not total:
            continue
        taken = {number: [False] * len(boxes) for number, boxes in objects.items()}
        candidates = [
            (-score, order, each.image_id, box)
            for order, each in enumerate(found)
            for score, box, name in zip(each.scores, each.boxes, each.labels, strict=True)
            if name == label
        ]
        hits = []
        for _, _, number, box in sorted(candidates, key=lambda one: one[:2]):
            best, chosen = threshold, None
            for place, own in enumerate(objects[number]):
                if not taken[number][place] and overlap(box, own) >= best:
                    best, chosen = overlap(box, own), place
            if chosen is not None:
                taken[number][chosen] = True
            hits.append(chosen is not None)
        points = [(right / total, right / (end + 1)) for end, right in enumerate(np.cumsum(hits).tolist())]
        best_at = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
        precisions.append(np.mean(best_at))
    return float(np.mean(precisions))


def test_all_objects_found_exactly_score_one_and_none_found_score_zero(coco: Coco) -> None:
    scores = score_detections(coco, perfect(coco)).means()
    assert {name for name, value in scores.items() if value == pytest.approx(1)} == set(scores) - {
        "box_ap_large",
        "mask_ap_large",
    }
    assert np.isnan(scores["box_ap_large"])
    nothing = [
        ImageDetections(each.image_id, np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), ())
        for each in perfect(coco)
    ]
    scores = score_detections(coco, nothing).means()
    assert {scores[f"{kind}_{name}"] for kind in ("box", "mask") for name in METRICS[:5]} == {0.0}


def test_average_precision_is_that_counted_by_hand(coco: Coco) -> None:
    without = [place for place in range(len(coco)) if not coco.instances(place).crowd.any()]
    found = worse(coco, 0)
    part = [found[place] for place in without]
    kept = score_detections(coco, part, ["box"])
    by_hand = [counted_by_hand(coco, without, part, threshold) for threshold in np.arange(0.5, 1, 0.05)]
    assert kept.means()["box_ap50"] == pytest.approx(by_hand[0], rel=1e-9)
    assert kept.means()["box_ap75"] == pytest.approx(by_hand[5], rel=1e-9)
    assert kept.means()["box_ap"] == pytest.approx(np.mean(by_hand), rel=1e-9)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_both_packages_agree(coco: Coco, kind: str) -> None:
    found = worse(coco, 2)
    one = score_detections(coco, found, [kind])
    other = score_detections(coco, found, [kind], "faster-coco-eval")
    assert one.means() == pytest.approx(other.means(), abs=1e-9, nan_ok=True)
    np.testing.assert_allclose(one.kinds[kind].by_class, other.kinds[kind].by_class, atol=1e-9)
    assert 0.1 < one.means()[f"{kind}_ap50"] < 0.9
    with pytest.raises(ConfigError, match="only pycocotools tells its matches"):
        other.kinds[kind].at(np.ones(40, np.int64))


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_weights_of_one_give_pycocotools_numbers(coco: Coco, kind: str) -> None:
    scores = score_detections(coco, worse(coco, 3), [kind]).kinds[kind]
    np.testing.assert_allclose(scores.at(np.ones(40, np.int64)), [scores.values[name] for name in METRICS], atol=1e-12)


def copied(
    root: Path, coco: Coco, found: list[ImageDetections], times: np.ndarray
) -> tuple[Coco, list[ImageDetections]]:
    """COCO with so many copies of each picture, and the same detections in each."""
    content = json.loads(coco.index.path.read_text())
    pictures, annotations, detections = [], [], []
    for place, count in enumerate(times.tolist()):
        old = int(coco.index.image_ids[place])
        (picture,) = [one for one in content["images"] if one["id"] == old]
        for _ in range(count):
            number = len(pictures) + 1
            pictures.append({**picture, "id": number, "file_name": f"{number}.jpg"})
            annotations += [{**one, "image_id": number} for one in content["annotations"] if one["image_id"] == old]
            own = vars(found[place]) | {"image_id": number}
            detections.append(ImageDetections(**own))
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    (root / "val2017" / "1.jpg").touch()
    text = json.dumps({**content, "images": pictures, "annotations": annotations})
    (root / "annotations" / "instances_val2017.json").write_text(text)
    dataset = open_dataset(root)
    assert isinstance(dataset, Coco)
    return dataset, detections


def test_weights_are_copies_of_the_pictures(coco: Coco, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = [
        ImageDetections(each.image_id, each.boxes, rng.random(len(each)), each.labels, each.masks)
        for each in worse(coco, 4)
    ]
    times = np.bincount(rng.integers(0, 40, 40), minlength=40)
    scores = score_detections(coco, found)
    whole = score_detections(*copied(tmp_path / "copies", coco, found, times))
    for kind, each in scores.kinds.items():
        expected = [whole.kinds[kind].values[name] for name in METRICS]
        np.testing.assert_allclose(each.at(times), expected, atol=1e-12)


def test_an_interval_over_pictures_holds_the_score(coco: Coco) -> None:
    scores = score_detections(coco, worse(coco, 5), ["box"]).kinds["box"]
    values, low, high = bootstrap_of_counts(40, scores.at, resamples=60)
    named = dict(zip(METRICS, zip(values, low, high, strict=True), strict=True))
    for name in METRICS[:5]:
        value, lowest, highest = named[name]
        assert lowest < value < highest
        assert value == pytest.approx(scores.values[name])
    assert np.isnan(named["ap_large"]).all()


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_other_tools_read_the_results_and_get_the_same_numbers(coco: Coco, tmp_path: Path, kind: str) -> None:
    found = worse(coco, 6)
    path = tmp_path / "predictions" / f"{kind}.json"
    write_results(path, found, coco.categories, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(coco.index.path)
        evaluation = COCOeval(truth, truth.loadRes(str(path)), {"box": "bbox", "mask": "segm"}[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = score_detections(coco, found, [kind]).means()
    theirs = np.where(evaluation.stats[:6] > -1, evaluation.stats[:6], np.nan)
    np.testing.assert_allclose([ours[f"{kind}_{name}"] for name in METRICS], theirs, atol=1e-12)
    line = json.loads(path.read_text())[0]
    assert set(line) == {"image_id", "category_id", "score", {"box": "bbox", "mask": "segmentation"}[kind]}
    write_results(path, [], coco.categories, kind)
    assert json.loads(path.read_text()) == []


def test_detections_within_a_crowd_do_not_count(coco: Coco) -> None:
    place = next(place for place in range(len(coco)) if coco.instances(place).crowd.any())
    crowd = coco.instances(place)
    crowd = crowd.where(crowd.crowd)
    found = perfect(coco)
    own = found[place]
    many = ImageDetections(
        own.image_id,
        np.concatenate([own.boxes, np.repeat(crowd.boxes.double().numpy(), 3, 0)]),
        np.concatenate([own.scores - 0.5, np.ones(3)]),
        np.concatenate([own.labels, np.repeat(crowd.labels.numpy(), 3)]),
        (*own.masks, *packed(np.repeat(crowd.masks.numpy(), 3, 0))),
    )
    scores = score_detections(coco, [*found[:place], many, *found[place + 1 :]]).means()
    assert (scores["box_ap"], scores["mask_ap"]) == (pytest.approx(1), pytest.approx(1))


def test_a_part_is_scored_against_its_own_objects_only(coco: Coco) -> None:
    part = Part(coco, 7)
    found = [perfect(coco)[place] for place in part.indices]
    scores = score_detections(part, found[::-1])
    assert scores.image_ids == [each.image_id for each in found]
    assert scores.means()["box_ap"] == pytest.approx(1)
    assert scores.classes == coco.classes


def test_what_cannot_be_scored_is_said(coco: Coco, monkeypatch: pytest.MonkeyPatch) -> None:
    found = perfect(coco)
    with pytest.raises(DataError, match="no image of the data set can be read"):
        score_detections(coco, [])
    with pytest.raises(DataError, match="was scored twice"):
        score_detections(coco, [found[0], found[0]])
    stranger = ImageDetections(3, found[0].boxes, found[0].scores, found[0].labels, found[0].masks)
    with pytest.raises(DataError, match="has no picture 3"):
        score_detections(coco, [stranger])
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtraError, match=r"nlprobe\[faster-coco\]"):
        score_detections(coco, found, ["box"], "faster-coco-eval")
    bare = ImageDetections(found[0].image_id, found[0].boxes, found[0].scores, found[0].labels)
    with pytest.raises(DataError, match="no masks were found"):
        results([bare], coco.categories, "mask")


def pasted_by_hand(probabilities: np.ndarray, box: list[float], size: tuple[int, int]) -> np.ndarray:
    """The value at each pixel's centre, bilinear between the centres of the cells, 0 beyond; in float64."""
    side = len(probabilities)
    padded = np.pad(probabilities.astype(np.float64), 2)
    left, top, right, bottom = box
    values = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            x = (column + 0.5 - left) / (right - left) * side - 0.5
            y = (row + 0.5 - top) / (bottom - top) * side - 0.5
            if -1 < x < side and -1 < y < side:
                i, j = int(np.floor(y)), int(np.floor(x))
                a, b = y - i, x - j
                four = padded[i + 2 : i + 4, j + 2 : j + 4]
                values[row, column] = np.array([1 - a, a]) @ four @ np.array([1 - b, b])
    return values


@pytest.mark.parametrize(
    "box", [[3.2, 4.9, 20.7, 15.1], [-5.0, -3.0, 9.0, 40.0], [10.0, 10.0, 10.6, 10.8], [0.0, 0.0, 30.0, 24.0]]
)
def test_masks_are_pasted_at_sub_pixel_precision(box: list[float]) -> None:
    probabilities = torch.rand(7, 7)
    drawn = paste(probabilities, torch.tensor(box, dtype=torch.float64), (24, 30))
    by_hand = pasted_by_hand(probabilities.numpy(), box, (24, 30))
    certain = np.abs(by_hand - 0.5) > 1e-4
    np.testing.assert_array_equal(drawn[certain], (by_hand >= 0.5)[certain])


def test_a_box_without_area_has_an_empty_mask() -> None:
    assert not paste(torch.ones(5, 5), torch.tensor([3.0, 3.0, 3.0, 9.0]), (12, 12)).any()


def test_what_was_found_in_a_resized_picture_comes_back_to_the_original(coco: Coco) -> None:
    preprocessing = Preprocessing(resize=120, longest=200, crop=0)
    place = next(place for place in range(len(coco)) if len(coco.instances(place)) > 3)
    sample = coco[place]
    height, width = preprocessing.transform()(sample.image).shape[1:]
    original = sample.label.size
    seen = sample.label.resized(original, (height, width))
    cut = [
        mask[int(y1) : int(y2), int(x1) : int(x2)]
        for mask, (x1, y1, x2, y2) in zip(seen.masks, seen.boxes, strict=True)
    ]
    grids = torch.stack([torch.nn.functional.interpolate(one[None, None].float(), (56, 56))[0, 0] for one in cut])
    found = Detections(seen.boxes, torch.linspace(1, 0.5, len(seen)), seen.labels, grids)
    back = in_original(found, 5, (height, width), original)
    np.testing.assert_allclose(back.boxes, sample.label.boxes.numpy(), atol=1e-4)
    for runs, mask in zip(back.masks, sample.label.masks.numpy(), strict=True):
        drawn = official_masks.decode(runs).astype(bool)
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.85
    assert in_original(Detections(seen.boxes, found.scores, seen.labels), 5, (height, width), original).masks is None
