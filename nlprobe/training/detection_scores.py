"""Average precision of boxes and masks as COCO defines it, and how it hangs on the pictures that were drawn.

The numbers are those of `pycocotools`. From its matches between objects and detections the same numbers follow for any
other weights of the pictures, without matching again: this is what intervals over pictures are made of.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64

from nlprobe.data import Coco, ImageDataset
from nlprobe.data.outlines import pycocotools_masks
from nlprobe.data.part import Selection
from nlprobe.errors import ConfigError, DataError, MissingExtraError
from nlprobe.training.detection_results import ImageDetections, Kind, results

METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""Mean over overlaps of .5, .55, …, .95; at .5; at .75; the first for objects below 32², below 96², and above."""

Backend = Literal["pycocotools", "faster-coco-eval"]

_COCO_KINDS = {"box": "bbox", "mask": "segm"}
_AREAS = 4  # all, small, medium, large
_OF_METRIC = ((0, None), (0, 0), (0, 5), (1, None), (2, None), (3, None))
"""Number of the range of areas, and of the overlap (None: mean over all), of each metric."""
_RECALLS = np.linspace(0, 1, 101)
_MOST = 100


@dataclass(frozen=True)
class Matches:
    """The detections of one class in all pictures, the surest first, for one range of areas.

    Attributes:
        images: Number of each one's picture, from 0.
        matched: Whether it is matched to an object, at each overlap.
        counted: Whether it counts at all: neither matched to what is ignored nor of another size.
        objects: How many objects there are to be found in each picture.
    """

    images: Int64[np.ndarray, " d"]
    matched: Bool[np.ndarray, "t d"]
    counted: Bool[np.ndarray, "t d"]
    objects: Int64[np.ndarray, " n"]

    def precision(self, weights: Int64[np.ndarray, " n"]) -> Float[np.ndarray, " t"]:
        """Average precision at each overlap where each picture counts so often; NaN where no object is left.

        The mean over recalls of 0, .01, …, 1 of the highest precision at that recall or a higher one; 0 where a recall
        is not reached. Cost: O(t·d).
        """
        objects = float(self.objects @ weights)
        if not objects:
            return np.full(len(self.matched), np.nan)
        own = weights[self.images]
        found = np.empty(len(self.matched))
        for overlap, (matched, counted) in enumerate(zip(self.matched, self.counted, strict=True)):
            right = np.flatnonzero(matched & counted)
            hits = np.cumsum(own[right])
            precision = hits / (np.cumsum(own * counted)[right] + np.spacing(1))
            highest = np.maximum.accumulate(precision[::-1])[::-1]
            places = np.searchsorted(hits / objects, _RECALLS, side="left")
            reached = places < len(highest)
            found[overlap] = highest[places[reached]].sum() / len(_RECALLS)
        return found


@dataclass(frozen=True)
class AveragePrecision:
    """How well boxes, or masks, were found in a set of pictures.

    Attributes:
        values: The metrics; NaN where there is no object of the kind.
        by_class: `ap` of each class.
        matches: For each range of areas and class the matches; empty where another package than pycocotools counted.
    """

    values: dict[str, float]
    by_class: Float[np.ndarray, " k"]
    matches: tuple[tuple[Matches, ...], ...] = ()

    def at(self, weights: Int64[np.ndarray, " n"]) -> Float[np.ndarray, "6"]:
        """The metrics where each picture counts as often as `weights` says, such as in a bootstrap sample.

        They are those of a set with so many copies of each picture. Cost: O(detections), without matching again.

        Raises:
            ConfigError: there are no matches.
        """
        if not self.matches:
            raise ConfigError("only pycocotools tells its matches", "score with it, or ask for no interval")
        areas = [np.array([one.precision(weights) for one in classes]) for classes in self.matches]
        chosen = [areas[area] if at is None else areas[area][:, at] for area, at in _OF_METRIC]
        return np.array([_mean(each) for each in chosen])


@dataclass(frozen=True)
class DetectionScores:
    """How a network did: `kinds` holds the average precision of boxes, and of masks if it gives any.

    Attributes:
        image_ids: The pictures that were scored, in the order of the weights of `AveragePrecision.at`.
        classes: Names of the classes.
        kinds: By `box` and `mask`.
    """

    image_ids: list[int]
    classes: list[str]
    kinds: Mapping[Kind, AveragePrecision]

    def means(self) -> dict[str, float]:
        """All metrics under names such as `box_ap50`."""
        return {f"{kind}_{name}": value for kind, each in self.kinds.items() for name, value in each.values.items()}


def score_detections(
    dataset: ImageDataset,
    found: Sequence[ImageDetections],
    kinds: Sequence[Kind] = ("box", "mask"),
    backend: Backend = "pycocotools",
) -> DetectionScores:
    """Score what was found, against all objects of these pictures that the JSON has.

    Args:
        dataset: COCO, or a part of it.
        found: What was found in each picture that is scored, in any order; also of pictures in which nothing was.
        kinds: Whether boxes, masks or both are scored.
        backend: Which package counts; `faster-coco-eval` gives the same numbers sooner, but no intervals.

    Raises:
        DataError: nothing was scored, a picture is not in the data set or twice, or it has no objects or masks.
        MissingExtraError: the package is not installed.
    """
    coco = whole_of(dataset)
    order = {int(number): place for place, number in enumerate(coco.index.image_ids)}
    _refuse_unknown([each.image_id for each in found], order, coco)
    found = sorted(found, key=lambda each: order[each.image_id])
    if "mask" in kinds and not coco.has_masks:
        raise DataError(f"`{coco.root}` ({coco.kind}) has no outlines to score masks against", "score boxes only")
    places = [order[each.image_id] for each in found]
    scored = {kind: _average_precision(coco, places, found, kind, backend) for kind in kinds}
    return DetectionScores([each.image_id for each in found], list(coco.classes or ()), scored)


def whole_of(dataset: ImageDataset) -> Coco:
    """The COCO that a data set is, or is a part of.

    Raises:
        DataError: it is none.
    """
    whole = dataset
    while isinstance(whole, Selection):
        whole = whole.whole
    if not isinstance(whole, Coco) or not whole.has_instances:
        raise DataError(
            f"`{dataset.root}` ({dataset.kind}) has no boxes",
            "detection needs a data set like COCO, with `annotations/instances_*.json`",
        )
    return whole


def _refuse_unknown(image_ids: Sequence[int], order: Mapping[int, int], coco: Coco) -> None:
    if not image_ids:
        raise DataError("no image of the data set can be read", "`nlprobe data check` names what is wrong with each")
    for number in image_ids:
        if number not in order:
            raise DataError(f"`{coco.index.path}` has no picture {number}", "score what was found in its own pictures")
    if len(set(image_ids)) < len(image_ids):
        twice = next(number for number in image_ids if image_ids.count(number) > 1)
        raise DataError(f"picture {twice} was scored twice", "give what was found in it once")


def _average_precision(
    coco: Coco, places: Sequence[int], found: Sequence[ImageDetections], kind: Kind, backend: Backend
) -> AveragePrecision:
    truth = _truth(coco, places, kind)
    lines = results(found, coco.categories, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluated(truth, lines, _COCO_KINDS[kind], backend)
    values = [float(value) if value > -1 else np.nan for value in evaluation.stats[: len(METRICS)]]
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = np.array([_mean(np.where(each > -1, each, np.nan)) for each in np.moveaxis(precision, 2, 0)])
    matches = tuple(_matches(evaluation, len(places), len(coco.categories))) if backend == "pycocotools" else ()
    return AveragePrecision(dict(zip(METRICS, values, strict=True)), classes, matches)


def _truth(coco: Coco, places: Sequence[int], kind: Kind) -> dict[str, Any]:
    """The part of COCO's JSON that is scored against, with annotation ids of its own: pycocotools takes 0 for none."""
    index = coco.index
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for place in places:
        height, width = index.shapes[place].tolist()
        images.append({"id": int(index.image_ids[place]), "height": height, "width": width})
        for line in coco.truth(place):
            if kind == "box" or "segmentation" in line:
                annotations.append({**line, "image_id": images[-1]["id"], "id": len(annotations) + 1})
    categories = [
        {"id": number, "name": name} for number, name in zip(coco.categories, coco.classes or (), strict=True)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _evaluated(truth: dict[str, Any], lines: list[dict[str, Any]], kind: str, backend: Backend) -> Any:
    """The package's evaluation, run from beginning to end."""
    base, evaluation = _package(backend)
    objects = base()
    objects.dataset = truth
    objects.createIndex()
    if lines:
        detected = objects.loadRes(lines)
    else:
        detected = base()
        detected.dataset = {**truth, "annotations": []}
        detected.createIndex()
    run = evaluation(objects, detected, kind)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run


def _package(backend: Backend) -> tuple[Any, Any]:
    if backend == "faster-coco-eval":
        try:
            from faster_coco_eval import COCO, COCOeval_faster
        except ImportError as error:
            raise MissingExtraError("faster-coco-eval", "faster-coco", "scoring with it") from error
        return COCO, COCOeval_faster
    pycocotools_masks()
    from pycocotools import coco, cocoeval

    return coco.COCO, cocoeval.COCOeval


def _matches(evaluation: Any, images: int, classes: int) -> Iterator[tuple[Matches, ...]]:
    """Pycocotools' matches by range of areas and class; it lists them by class, area and picture."""
    listed = evaluation.evalImgs
    for area in range(_AREAS):
        yield tuple(
            _joined(listed[(number * _AREAS + area) * images :][:images], len(evaluation.params.iouThrs))
            for number in range(classes)
        )


def _joined(listed: Sequence[dict[str, Any] | None], overlaps: int) -> Matches:
    """One class and range of areas, all pictures together."""
    scores, images, matched, ignored = [], [], [], []
    objects = np.zeros(len(listed), dtype=np.int64)
    for place, one in enumerate(listed):
        if one is not None:
            scores.append(np.asarray(one["dtScores"][:_MOST], dtype=np.float64))
            images.append(np.full(len(scores[-1]), place))
            matched.append(one["dtMatches"][:, :_MOST] > 0)
            ignored.append(one["dtIgnore"][:, :_MOST].astype(bool))
            objects[place] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
    if not scores:
        nothing = np.zeros((overlaps, 0), dtype=bool)
        return Matches(np.zeros(0, dtype=np.int64), nothing, nothing, objects)
    # The sort of pycocotools: stable, so that of equal scores the earlier picture's comes first.
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    counted = ~np.concatenate(ignored, 1)[:, order]
    return Matches(np.concatenate(images)[order], np.concatenate(matched, 1)[:, order], counted, objects)


def _mean(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN where all is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan
