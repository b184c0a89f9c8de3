"""COCO's own layout: objects as the JSON has them, and everything that may be wrong with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folders import CATEGORIES, SQUARE, annotation, picture, write_coco
from PIL import Image
from pycocotools import mask as official_masks
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

from nlprobe.data import (
    Batches,
    Coco,
    InstanceAugmentation,
    Preprocessing,
    UnreadableImageError,
    data_fingerprint,
    open_dataset,
    open_parts,
)
from nlprobe.data.coco_index import read_index
from nlprobe.data.part import Part, Selection, Unlabelled
from nlprobe.errors import DataError, MissingExtraError

RUNS = {"size": [12, 20], "counts": [14, 5, 7, 5, 209]}


def opened(root: Path, annotations: list[Any], pictures: list[Any] | None = None) -> Coco:
    write_coco(root, annotations, pictures)
    dataset = open_dataset(root)
    assert isinstance(dataset, Coco)
    return dataset


def test_objects_come_as_they_are_written_with_classes_in_the_order_of_their_ids(tmp_path: Path) -> None:
    crowd = annotation(8, category_id=90, iscrowd=1, box=(1, 2, 2, 5), segmentation=RUNS)
    dataset = opened(tmp_path, [crowd, annotation(7)])
    assert (dataset.kind, dataset.classes, dataset.categories) == (
        "COCO 2017",
        ["person", "dog", "toothbrush"],
        [1, 18, 90],
    )
    sample = dataset[0]
    label = sample.label
    assert sample.id == "000000000001.jpg"
    assert label.boxes.tolist() == [[1, 2, 3, 7], [2, 1, 8, 6]]
    assert label.labels.tolist() == [2, 1]
    assert label.crowd.tolist() == [True, False]
    assert (label.image_id, label.size, len(label)) == (1, (12, 20), 2)
    assert [mask.nonzero().tolist()[0] for mask in label.masks] == [[2, 1], [1, 2]]
    assert label.masks.sum((1, 2)).tolist() == [10, 30]
    assert label.boxes.dtype == torch.float32
    assert dataset.faults == ()
    assert dataset.notes() == []


# pycocotools hands NumPy an array in a way that NumPy 2 has deprecated.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes: list[Any] = [[rng.uniform(0, 12, 2 * corners).round(2).tolist()] for corners in (3, 5, 9)]
    shapes.append([*shapes[0], *shapes[1]])
    drawn = np.asfortranarray(rng.random((12, 20)) < 0.4, dtype=np.uint8)
    packed = official_masks.encode(drawn)["counts"].decode("ascii")
    shapes += [RUNS, {"size": [12, 20], "counts": packed}]
    annotations = [annotation(number, segmentation=shape) for number, shape in enumerate(shapes, 1)]
    path = write_coco(tmp_path, annotations)
    official = COCO(path)
    label = open_dataset(tmp_path)[0].label
    for mask, one in zip(label.masks, official.loadAnns(range(1, len(shapes) + 1)), strict=True):
        np.testing.assert_array_equal(mask.numpy(), official.annToMask(one))
    np.testing.assert_array_equal(label.masks[-1].numpy(), drawn)


def test_a_picture_without_objects_has_none(tmp_path: Path) -> None:
    dataset = opened(tmp_path, [annotation(1), annotation(2, 3, iscrowd=1)], [picture(1), picture(2), picture(3)])
    label = dataset[1].label
    assert (label.boxes.shape, label.labels.shape, label.masks.shape) == ((0, 4), (0,), (0, 12, 20))
    assert dataset.occupied() == [0]
    assert [len(dataset[number].label) for number in range(3)] == [1, 0, 1]


def test_boxes_without_any_outline_are_a_data_set_of_boxes(tmp_path: Path) -> None:
    without = annotation(1)
    del without["segmentation"]
    dataset = opened(tmp_path, [without, annotation(2, segmentation=[])])
    assert (dataset.has_masks, dataset.faults, dataset[0].label.masks) == (False, (), None)
    assert len(dataset[0].label) == 2


UNDRAWN = "outline that cannot be drawn"
BAD_ANNOTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "zero width": ({"box": (3, 3, 0, 4)}, "box without area"),
    "negative height": ({"box": (3, 3, 2, -4)}, "box without area"),
    "outside": ({"box": (20, 3, 5, 4)}, "box outside of its picture"),
    "outside at the left": ({"box": (-9, 3, 5, 4)}, "box outside of its picture"),
    "another size": (
        {"segmentation": {"size": [20, 12], "counts": [240]}},
        "mask of another size than its picture",
    ),
    "unknown category": ({"category_id": 2}, "category that is not in the list"),
    "no picture": ({"image": 77}, "picture that is not in the list"),
    "id of a string": ({"category_id": "18"}, "no whole number as `category_id`"),
    "no numbers": ({"bbox": [1, 2, 3, "4"]}, "no `bbox` of four numbers"),
    "infinite": ({"bbox": [1, 2, 3, float("inf")]}, "a `bbox` that is not finite"),
    "no outline": ({"segmentation": []}, "no outline, though others have one"),
    "odd polygon": ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, UNDRAWN),
    "two corners": ({"segmentation": [[1, 2, 3, 4]]}, UNDRAWN),
    "polygon of NaN": ({"segmentation": [[1, 2, 3, float("nan"), 5, 6]]}, UNDRAWN),
    "polygon far away": ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, UNDRAWN),
    "polygon of words": ({"segmentation": [["a"] * 6]}, UNDRAWN),
    "short runs": ({"segmentation": {"size": [12, 20], "counts": [100, 5]}}, UNDRAWN),
    "negative runs": ({"segmentation": {"size": [12, 20], "counts": [250, -10]}}, UNDRAWN),
    "garbled runs": ({"segmentation": {"size": [12, 20], "counts": "zzzz"}}, UNDRAWN),
    "runs of words": ({"segmentation": {"size": [12, 20], "counts": ["a"]}}, UNDRAWN),
    "runs without a size": ({"segmentation": {"counts": [240]}}, UNDRAWN),
    "an outline of words": ({"segmentation": "round"}, UNDRAWN),
}


@pytest.mark.parametrize(("changes", "reason"), BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_a_bad_annotation_is_named_and_the_others_stay(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    dataset = opened(tmp_path, [annotation(1), annotation(9, **changes), annotation(3, 2)])
    assert [(fault.thing, fault.reason, fault.kept) for fault in dataset.faults] == [("annotation 9", reason, False)]
    assert [dataset[number].label.boxes.tolist() for number in (0, 1)] == [[[2, 1, 8, 6]]] * 2
    assert dataset.notes() == [
        f"1 entry of `instances_val2017.json` left out: {reason} (1); `nlprobe data check {tmp_path}` names each"
    ]


def test_a_fault_says_where_and_what(tmp_path: Path) -> None:
    dataset = opened(tmp_path, [annotation(5, box=(3, 3, 0, 4)), annotation(6, category_id=2), {"id": 4}, 7])
    assert [str(fault) for fault in dataset.faults] == [
        "annotation 4: no whole number as `image_id`",
        "entry 3 of the annotations: no object with `image_id`, `category_id` and `bbox`",
        "annotation 6 of `000000000001.jpg`: category that is not in the list (2)",
        "annotation 5 of `000000000001.jpg`: box without area (x 3, y 3, width 0, height 4 in 20x12 pixels)",
    ]
    assert dataset.notes()[0].startswith("4 entries of `instances_val2017.json` left out: ")


def test_a_box_that_reaches_beyond_its_picture_ends_there_and_rounding_is_no_fault(tmp_path: Path) -> None:
    dataset = opened(tmp_path, [annotation(1, box=(15, 3, 9, 40)), annotation(2, box=(12.0, 3.0, 8.01, 4))])
    (fault,) = dataset.faults
    assert (fault.thing, fault.kept, dataset.notes()) == ("annotation 1", True, [])
    assert fault.reason == "box that reaches beyond its picture, and is cut off there"
    assert dataset[0].label.boxes.tolist() == [[15, 3, 20, 12], [12, 3, 20, 7]]


def test_an_id_that_two_annotations_have_costs_neither(tmp_path: Path) -> None:
    dataset = opened(tmp_path, [annotation(1), annotation(1, 2), annotation(1, box=(3, 2, 1, 1))])
    assert [(fault.thing, fault.reason, fault.kept) for fault in dataset.faults] == [
        ("annotation 1", "id that another one has, too", True)
    ] * 2
    assert [len(dataset[number].label) for number in (0, 1)] == [2, 1]


def test_pictures_that_cannot_be_understood_are_named(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1)], [picture(1)])
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"] += [
        picture(1, file_name="again.jpg"),
        picture(5, file_name="000000000001.jpg"),
        picture(6, height=0),
        {"id": 7},
        {"file_name": "x.jpg"},
    ]
    path.write_text(json.dumps(content))
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset, Coco)
    assert dataset.ids == ["000000000001.jpg"]
    assert [str(fault) for fault in dataset.faults] == [
        "picture 1 of `again.jpg`: id or file that another one has, too",
        "picture 5 of `000000000001.jpg`: id or file that another one has, too",
        "picture 6 of `000000000006.jpg`: no `height` and `width`",
        "picture 7: no `file_name`",
        "entry 5 of the pictures: no whole number as `id`",
    ]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "is empty"),
        ("{}", "lists no pictures"),
        ("[]", "no whole JSON: `{` is missing at byte 0 of 2"),
        ('{"images": [], "annotations": []}', "lists no pictures"),
        ('{"images": [{"id": 1}]}', "lists no picture that can be used: picture 1: no `file_name`"),
        ('{"images": [{"id": 1, "file_name": "a", "height": 1, "width": 1}]}', "lists no categories"),
        (
            '{"images": [{"id": 1, "file_name": "a", "height": 1, "width": 1}], "categories": [{"id": 1}]}',
            "has a category without",
        ),
        ('{"images": [1, 2,]}', "`]` follows on `,`"),
        ('{"images": [1 2]}', "`,` or `]` is missing"),
        ("[" * 100_000, "no whole JSON"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_json_that_is_none_of_cocos_is_refused(tmp_path: Path, text: str, cause: str) -> None:
    path = write_coco(tmp_path, [])
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path)
    assert cause in caught.value.cause
    assert str(path) in caught.value.cause


def test_a_json_cut_off_anywhere_is_no_whole_one(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1)])
    whole = path.read_bytes()
    for length in range(1, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="no whole JSON"):
            open_dataset(tmp_path)


def test_two_categories_of_one_id_leave_nothing_to_go_on_with(tmp_path: Path) -> None:
    write_coco(tmp_path, [], categories=[*CATEGORIES, {"id": 1, "name": "other"}])
    with pytest.raises(DataError, match="two categories with the id 1"):
        open_dataset(tmp_path)


def test_names_in_any_language_and_any_layout_of_the_json(tmp_path: Path) -> None:
    pictures = [picture(2, file_name="Straße/ñ.jpg"), picture(1)]
    (tmp_path / "val2017" / "Straße").mkdir(parents=True)
    path = write_coco(tmp_path, [annotation(4, 2)], pictures, [{"id": 18, "name": "犬"}])
    content = json.loads(path.read_text())
    backwards = dict(reversed(content.items()))
    text = json.dumps({"info": {"annotations": [1]}, **backwards}, ensure_ascii=False, indent=3)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8"))
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ["000000000001.jpg", "Straße/ñ.jpg"]
    assert dataset.classes == ["犬"]
    assert dataset[1].label.boxes.tolist() == [[2, 1, 8, 6]]


def test_a_picture_of_another_size_than_its_annotations_is_named(tmp_path: Path) -> None:
    dataset = opened(tmp_path, [annotation(1)])
    Image.new("RGB", (12, 20)).save(tmp_path / "val2017" / "000000000001.jpg")
    with pytest.raises(UnreadableImageError) as caught:
        dataset[0]
    assert caught.value.reason == "it is 12x20 pixels, and its annotations are for 20x12"
    assert dataset.picture(0).size == (12, 20)


def test_missing_empty_and_truncated_pictures_are_named(tmp_path: Path) -> None:
    dataset = opened(tmp_path, [annotation(1)], [picture(number, 64, 64) for number in (1, 2, 3, 4)])
    files = [tmp_path / "val2017" / name for name in dataset.ids]
    files[0].unlink()
    files[1].write_bytes(b"")
    files[2].write_bytes(files[2].read_bytes()[:700])
    reasons = []
    for number in range(3):
        with pytest.raises(UnreadableImageError) as caught:
            dataset[number]
        reasons.append(caught.value.reason)
    assert reasons[0] == "it is not there"
    assert "not an image" in reasons[1]
    assert "truncated" in reasons[2]
    assert len(dataset[3].label) == 0


def test_the_orientation_in_a_picture_is_not_heeded(tmp_path: Path) -> None:
    dataset = opened(tmp_path, [annotation(1)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 12)).save(tmp_path / "val2017" / "000000000001.jpg", exif=exif)
    assert dataset[0].image.size == (20, 12)


def test_pictures_alone_can_be_measured(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1)]).unlink()
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset, Coco)
    assert (dataset.has_instances, dataset.classes, len(dataset), dataset.shapes) == (False, None, 2, None)
    assert dataset[0].label is None
    with pytest.raises(DataError, match="has no annotations"):
        dataset.instances(0)


def test_where_the_folders_may_lie(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1)])
    write_coco(tmp_path, [annotation(1), annotation(2)], [picture(3), picture(1)], split="train2017")
    assert {name: len(part) for name, part in open_parts(tmp_path).items()} == {"train": 2, "val": 2}
    (tmp_path / "images").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "images" / "val2017")
    assert open_dataset(tmp_path)[0].image.size == (20, 12)
    with pytest.raises(DataError, match="is a part of COCO"):
        open_dataset(tmp_path / "annotations")
    assert open_dataset(tmp_path / "train2017").kind == "photographs"
    for name in ("000000000001.jpg", "000000000003.jpg"):
        (tmp_path / "train2017" / name).unlink()
    with pytest.raises(DataError, match=r"holds none of the 2 pictures of `instances_train2017\.json`"):
        open_dataset(tmp_path, "train")
    (tmp_path / "train2017").rmdir()
    with pytest.raises(DataError, match="has no folder `train2017`"):
        open_dataset(tmp_path, "train")
    (tmp_path / "images" / "val2017").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="has no folder `train2017`"):
        open_parts(tmp_path)


def test_the_later_edition_is_taken(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(1)], split="val2014")
    assert open_dataset(tmp_path).kind == "COCO 2014"
    write_coco(tmp_path, [annotation(1)])
    assert open_dataset(tmp_path).kind == "COCO 2017"


def test_the_fingerprint_changes_with_a_box(tmp_path: Path) -> None:
    before = data_fingerprint(opened(tmp_path, [annotation(1), annotation(2, 2)]))
    assert before == data_fingerprint(opened(tmp_path, [annotation(2, 2), annotation(1)]))
    assert before != data_fingerprint(opened(tmp_path, [annotation(1, box=(3, 1, 6, 5)), annotation(2, 2)]))
    dataset = open_dataset(tmp_path)
    (tmp_path / "val2017" / "000000000001.jpg").unlink()
    assert dataset.size(0) == -1


def test_a_json_that_changes_while_it_is_in_use_is_found_out(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [annotation(1), annotation(2)])
    dataset = open_dataset(tmp_path)
    path.write_text(path.read_text().replace('"annotations": [', '"annotations": [   '))
    with pytest.raises(DataError, match="was changed while it was in use"):
        dataset[0]


def test_the_truth_holds_what_nothing_is_learnt_from(tmp_path: Path) -> None:
    without_area = annotation(2, box=(3, 3, 0, 4))
    del without_area["area"], without_area["iscrowd"]
    bad = annotation(3, segmentation=[[1, 2]], area=9.5)
    lines = opened(tmp_path, [annotation(1), without_area, bad, annotation(4, 2)])
    truth = lines.truth(0)
    assert [line["bbox"] for line in truth] == [[2, 1, 6, 5], [3, 3, 0, 4], [2, 1, 6, 5]]
    assert [line["area"] for line in truth] == [30.0, 30.0, 9.5]
    assert ["segmentation" in line for line in truth] == [True, True, False]
    assert len(lines[0].label) == 1


def test_a_part_knows_shapes_and_the_pictures_alone_need_no_outlines(tmp_path: Path, monkeypatch) -> None:
    dataset = opened(tmp_path, [annotation(1), annotation(2, 2)], [picture(1), picture(2, 12, 20)])
    assert Part(dataset, 1).shapes.tolist() == [[12, 20]]
    assert Selection(dataset, [1, 0]).shapes.tolist() == [[20, 12], [12, 20]]
    assert Selection(dataset, [1])[0].label.image_id == 2
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    assert Unlabelled(dataset)[1].label is None
    with pytest.raises(MissingExtraError, match=r"pip install 'nlprobe\[coco\]'"):
        dataset[0]


def test_workers_read_the_same(tmp_path: Path) -> None:
    dataset = opened(tmp_path, [annotation(number, 1 + number % 2) for number in range(1, 6)])
    read = DataLoader(dataset, batch_size=None, num_workers=2, collate_fn=lambda sample: sample.label.boxes.tolist())
    assert list(read) == [dataset[number].label.boxes.tolist() for number in (0, 1)]


def test_the_index_does_not_grow_with_the_outlines(tmp_path: Path) -> None:
    round_outline = [np.random.default_rng(0).uniform(0, 12, 4000).tolist()]
    few = read_index(write_coco(tmp_path / "few", [annotation(1, segmentation=SQUARE)]))
    many = read_index(write_coco(tmp_path / "many", [annotation(1, segmentation=round_outline)]))
    arrays = [name for name, value in vars(few).items() if isinstance(value, np.ndarray)]
    assert [getattr(few, name).nbytes for name in arrays] == [getattr(many, name).nbytes for name in arrays]


def test_batches_of_objects_hold_pictures_of_one_orientation(tmp_path: Path) -> None:
    pictures = [picture(number, *((20, 12) if number % 2 else (12, 20))) for number in range(1, 13)]
    write_coco(tmp_path, [annotation(number, number) for number in range(1, 13)], pictures)
    preprocessing = Preprocessing(resize=16, longest=24, crop=0, pad=8)
    loaded = Batches(
        open_dataset(tmp_path),
        InstanceAugmentation().transform(preprocessing),
        3,
        seed=0,
        workers=1,
        pad=preprocessing.pad,
        by_aspect=True,
    )
    batches = list(loaded.epoch(0))
    assert [batch.images.shape for batch in batches] == [
        (3, 3, *((16, 24) if batch.sizes[0][1] == 24 else (24, 16))) for batch in batches
    ]
    for batch in batches:
        assert [label.masks.shape[1:] for label in batch.labels] == batch.sizes
        assert [label.image_id for label in batch.labels] == [int(name[:12]) for name in batch.ids]
