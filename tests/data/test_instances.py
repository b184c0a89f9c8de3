"""Boxes and masks stay on their objects, whatever is done to the picture."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nlprobe.data import InstanceAugmentation, Instances, Joint, Preprocessing, scored
from nlprobe.data.preprocessing import keep_ratio
from nlprobe.errors import ConfigError

PLAIN = Preprocessing(resize=40, longest=60, crop=0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), pad=8)


def instances(height: int, width: int, boxes: list[list[int]], crowd: list[bool] | None = None) -> Instances:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    flags = torch.tensor(crowd or [False] * len(boxes))
    return Instances(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.arange(len(boxes)),
        masks,
        flags,
        image_id=7,
        size=(height, width),
    )


def box_of(mask: torch.Tensor) -> list[int]:
    rows, columns = mask.any(1).nonzero().ravel(), mask.any(0).nonzero().ravel()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 90))
def test_resized_masks_take_the_nearest_pixel(height: int, width: int, new_height: int, new_width: int) -> None:
    masks = torch.rand(2, height, width) < 0.5
    before = Instances(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), masks, torch.zeros(2).bool(), 1, (9, 9))
    after = before.resized((height, width), (new_height, new_width))
    assert after.masks is not None
    official = torch.nn.functional.interpolate(masks[None].float(), (new_height, new_width), mode="nearest-exact")[0]
    agreeing = (after.masks == official.bool()).float().mean()
    assert agreeing == 1 or (agreeing > 0.7 and _on_an_edge(height, new_height, width, new_width))
    assert after.size == (9, 9)


def _on_an_edge(*sizes: int) -> bool:
    """Whether a pixel's centre falls exactly between two pixels, where single precision may take either."""
    pairs = zip(sizes[::2], sizes[1::2], strict=True)
    return any((2 * place + 1) * old % (2 * new) == 0 for old, new in pairs for place in range(new))


def test_boxes_follow_the_picture() -> None:
    before = instances(20, 30, [[3, 2, 9, 8], [0, 0, 30, 20]])
    after = before.resized((20, 30), (40, 90))
    assert after.boxes.tolist() == [[9, 4, 27, 16], [0, 0, 90, 40]]
    assert after.masks is not None
    assert [box_of(mask) for mask in after.masks] == after.boxes.tolist()
    mirrored = after.mirrored(90)
    assert mirrored.boxes.tolist() == [[63, 4, 81, 16], [0, 0, 90, 40]]
    assert mirrored.masks is not None
    assert [box_of(mask) for mask in mirrored.masks] == mirrored.boxes.tolist()
    assert torch.equal(mirrored.mirrored(90).boxes, after.boxes)


def test_crowds_are_taken_away_and_nothing_else() -> None:
    some = instances(8, 8, [[0, 0, 2, 2], [1, 1, 5, 5], [2, 2, 8, 8]], [False, True, False]).without_crowds()
    assert some.boxes.tolist() == [[0, 0, 2, 2], [2, 2, 8, 8]]
    assert some.labels.tolist() == [0, 2]
    assert some.masks is not None
    assert [box_of(mask) for mask in some.masks] == some.boxes.tolist()
    assert some.where(torch.tensor([False, False])).boxes.shape == (0, 4)


def test_objects_without_masks_go_the_same_way() -> None:
    bare = instances(8, 8, [[0, 0, 2, 2]])
    bare = Instances(bare.boxes, bare.labels, None, bare.crowd, 1, (8, 8))
    moved = bare.resized((8, 8), (16, 16)).mirrored(16).to("cpu")
    assert (moved.masks, moved.boxes.tolist()) == (None, [[12, 0, 16, 4]])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((300, 640), (625, 1333)),
        ((640, 640), (800, 800)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_sides_are_those_of_the_published_code(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert keep_ratio(size, 800, 1333) == expected


def test_without_a_shorter_side_pictures_only_shrink() -> None:
    assert keep_ratio((30, 40), 0, 100) == (30, 40)
    assert keep_ratio((300, 400), 0, 100) == (75, 100)


def test_the_preprocessing_of_detection_keeps_the_ratio_and_comes_back_from_json() -> None:
    seen = PLAIN.transform()(Image.new("RGB", (30, 20)))
    assert seen.shape == (3, 40, 60)
    assert PLAIN.transform()(Image.new("RGB", (30, 10))).shape == (3, 20, 60)
    assert Preprocessing.from_dict(PLAIN.as_dict()) == PLAIN
    assert str(PLAIN).startswith("shorter side 40 (bilinear), longer side at most 60, whole, normalised by")
    assert str(PLAIN).endswith("padded to a multiple of 8")
    blunt = Preprocessing(resize=40, longest=60, crop=0, antialias=False)
    assert blunt.transform()(Image.new("RGB", (300, 200))).shape == (3, 40, 60)


@pytest.mark.parametrize("wrong", [{"longest": 30}, {"longest": 60, "crop": 20}, {"pad": -1}, {"longest": -1}])
def test_limits_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="`longest`"):
        Preprocessing(**{"resize": 40, "crop": 0, **wrong})


def marked() -> Image.Image:
    """A dark picture, 30 pixels wide and 20 high, with a bright object at (3, 2) to (9, 8)."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[2:8, 3:9] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_training_pictures_and_objects_stay_together(flip: float) -> None:
    augmentation = InstanceAugmentation(shorter=(30, 60), longest=90, flip=flip)
    transform = augmentation.transform(PLAIN).transform
    heights = set()
    for seed in range(20):
        torch.manual_seed(seed)
        image, label = transform(marked(), instances(20, 30, [[3, 2, 9, 8], [0, 0, 5, 5]], [False, True]))
        assert image.shape[2] == keep_ratio((20, 30), image.shape[1], 90)[1]
        assert label.boxes.shape == (1, 4)
        bright = box_of(image[0] > 0.5)
        assert np.abs(np.array(bright) - label.boxes[0].numpy()).max() <= 1.0
        assert np.abs(np.array(box_of(label.masks[0])) - label.boxes[0].numpy()).max() <= 0.6
        assert label.masks.shape[1:] == image.shape[1:]
        assert label.size == (20, 30)
        heights.add(image.shape[1])
    assert len(heights) > 8
    assert min(heights) >= 30
    assert max(heights) <= 60


def test_half_of_the_pictures_are_mirrored_and_one_size_is_the_preprocessings() -> None:
    transform = InstanceAugmentation().transform(PLAIN).transform
    lefts = []
    for seed in range(60):
        torch.manual_seed(seed)
        image, label = transform(marked(), instances(20, 30, [[3, 2, 9, 8]]))
        assert image.shape == (3, 40, 60)
        lefts.append(label.boxes[0, 0].item())
    assert set(lefts) == {6, 42}
    assert 15 < lefts.count(42) < 45


def test_pictures_are_scored_as_they_are_measured_and_objects_stay_in_the_original() -> None:
    label = instances(20, 30, [[3, 2, 9, 8]])
    joint = scored(PLAIN)
    assert isinstance(joint, Joint)
    image, kept = joint.transform(marked(), label)
    assert torch.equal(image, PLAIN.transform()(marked()))
    assert kept is label
    with pytest.raises(ConfigError, match="scored whole"):
        scored(Preprocessing())


@pytest.mark.parametrize("wrong", [{"shorter": (60, 30)}, {"shorter": (0, 30)}, {"flip": 1.5}, {"longest": -1}])
def test_augmentations_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="augmentation"):
        InstanceAugmentation(**wrong)
