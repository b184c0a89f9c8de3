"""Detection networks: what they give in either mode, their settings, and what they share."""

import json
import math
from dataclasses import replace

import pytest
import torch
from models.detection_reference import SIZES, TINY, TRUNK, Truth, images, truths
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, box_iou

from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.errors import ConfigError
from nlprobe.models import DetectionConfig, DetectionNetwork, Insertion, ResNetConfig, build, config_from_dict, trunk_of
from nlprobe.models.fpn import BoxPool
from nlprobe.models.proposals import PyramidAnchors

NL = Insertion(NonLocalConfig(zero_init=False), "c4", (-1,), "after_add")


def test_training_gives_losses_and_gradients_everywhere() -> None:
    network = build(TINY.with_insertions((NL,)), seed=0)
    losses = network(images(), SIZES, truths())
    assert set(losses) == {"objectness", "proposals", "classes", "boxes", "masks"}
    assert all(loss.shape == () and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_batch_without_any_object_trains_the_classes_alone() -> None:
    network = build(TINY, seed=0)
    nothing = truths()[1]
    losses = network(images()[1:], SIZES[1:], [nothing])
    assert losses["boxes"] == losses["proposals"] == losses["masks"] == 0
    assert losses["classes"] > 0
    sum(losses.values()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_a_few_steps_on_one_image_find_its_objects() -> None:
    network = build(replace(TINY, channels=16, score_threshold=0.3), seed=0)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    shown, target = images()[:1], truths()[:1]
    for corners, label in zip(target[0].boxes.int().tolist(), target[0].labels.tolist(), strict=True):
        shown[0, label % 3, corners[1] : corners[3], corners[0] : corners[2]] += 3
    for _ in range(100):
        optimiser.zero_grad()
        sum(network(shown, SIZES[:1], target).values()).backward()
        optimiser.step()
    (found,) = network.eval()(shown, SIZES[:1])
    for box, label in zip(target[0].boxes, target[0].labels, strict=True):
        own = found.boxes[found.labels == label]
        assert len(own), f"class {label} was not found"
        assert box_iou(own, box[None]).max() > 0.5


def test_evaluation_is_deterministic_and_takes_images_alone() -> None:
    network = build(replace(TINY, score_threshold=0.0), seed=0).eval()
    with torch.no_grad():
        first, second = network(images()), network(images())
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.masks, other.masks)
        assert len(one) == 10
        assert one.masks.shape == (10, 28, 28)
        assert (one.scores.diff() <= 0).all()
        assert one.labels.min() >= 0
        assert one.labels.max() <= 4
        assert one.masks.min() >= 0
        assert one.masks.max() <= 1


def test_an_image_without_detections_is_empty_and_others_are_not_disturbed() -> None:
    network = build(replace(TINY, score_threshold=0.0), seed=0).eval()
    none = build(replace(TINY, score_threshold=0.99), seed=0).eval()
    with torch.no_grad():
        found = none(images())
    assert [len(each) for each in found] == [0, 0]
    assert [tuple(each.masks.shape) for each in found] == [(0, 28, 28)] * 2
    with torch.no_grad():
        alone, together = network(images()[1:])[0], network(images())[1]
    torch.testing.assert_close(alone.boxes, together.boxes)


def test_boxes_stay_within_the_picture() -> None:
    network = build(replace(TINY, score_threshold=0.0), seed=0).eval()
    with torch.no_grad():
        for (height, width), found in zip(SIZES, network(images(), SIZES), strict=True):
            assert found.boxes.min() >= 0
            assert found.boxes[:, 0::2].max() <= width
            assert found.boxes[:, 1::2].max() <= height


def test_in_float64_boxes_and_losses_of_the_heads_are() -> None:
    network = build(replace(TINY, score_threshold=0.0), seed=0).double()
    losses = network(images().double(), SIZES, truths())
    assert {losses[name].dtype for name in ("proposals", "classes", "boxes", "masks")} == {torch.float64}
    (found, _) = network.eval()(images().double(), SIZES)
    assert {found.boxes.dtype, found.scores.dtype, found.masks.dtype} == {torch.float64}


def test_under_autocast_boxes_and_losses_are_in_float32() -> None:
    network = build(replace(TINY, score_threshold=0.0), seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images(), SIZES, truths())
        found = network.eval()(images(), SIZES)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert found[0].boxes.dtype == found[0].scores.dtype == torch.float32


@pytest.mark.parametrize("size", [7, 14])
def test_boxes_are_pooled_as_by_torchvision(size: int) -> None:
    levels = {str(level): torch.randn(2, 3, 256 >> level, 320 >> level) for level in range(4)}
    corners = torch.rand(40, 2) * torch.tensor([1000.0, 800.0])
    boxes = torch.cat([corners, corners + torch.rand(40, 2) ** 2 * 900 + 1], 1)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2)
    expected = theirs(levels, [boxes[:25], boxes[25:]], [(1024, 1280)] * 2)
    pool = BoxPool(size, DetectionConfig())
    assert torch.equal(pool(list(levels.values()), [boxes[:25], boxes[25:]]), expected)


def test_in_the_later_geometry_a_pooled_box_is_the_mean_of_what_lies_in_it() -> None:
    # on a map that is linear in its position, whose positions have their values in the middle of their squares
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(50) + 0.5, indexing="ij")
    levels = [torch.stack([4 * y, 4 * x])[None]] * 4
    box = torch.tensor([[30.0, 40.0, 72.0, 110.0]])
    pooled = BoxPool(7, DetectionConfig(geometry="mmdet2", finest_box=1000))(levels, [box])[0]
    torch.testing.assert_close(pooled[1, 0], 30 + (torch.arange(7) + 0.5) * 6)
    torch.testing.assert_close(pooled[0, :, 0], 40 + (torch.arange(7) + 0.5) * 10)
    earlier = BoxPool(7, DetectionConfig(geometry="mmdet1", finest_box=1000))(levels, [box])[0]
    torch.testing.assert_close(earlier, pooled + 2)  # half a position of 4 pixels further


def anchors(geometry: str) -> list[list[float]]:
    """Those of the second position of the second row of P4, as lists."""
    made = PyramidAnchors(DetectionConfig(geometry=geometry))
    levels = [torch.zeros(1, 1, 128 // stride, 192 // stride) for stride in (4, 8, 16, 32, 64)]
    found = made(ImageList(torch.zeros(1, 3, 128, 192), [(128, 192)]), levels)[0]
    before = 3 * (32 * 48 + 16 * 24)
    return found[before : before + 3 * 8 * 12].view(8, 12, 3, 4)[1, 1].tolist()


def test_anchors_stand_where_each_project_has_them() -> None:
    expected = []
    for ratio in (0.5, 1.0, 2.0):  # mmdetection 1 rounds the corners of a box whose last pixel belongs to it
        width, height = 128 / math.sqrt(ratio), 128 * math.sqrt(ratio)
        first = [round(7.5 - (side - 1) / 2) for side in (width, height)]
        last = [round(7.5 + (side - 1) / 2) for side in (width, height)]
        expected.append([16.0 + number for number in (*first, last[0] + 1, last[1] + 1)])
    assert anchors("mmdet1") == expected
    exact = [[16 - w / 2, 16 - h / 2, 16 + w / 2, 16 + h / 2] for w, h in zip(SIDES, SIDES[::-1], strict=True)]
    torch.testing.assert_close(torch.tensor(anchors("mmdet2")), torch.tensor(exact))
    rounded = [[16 - w / 2, 16 - h / 2, 16 + w / 2, 16 + h / 2] for w, h in ((182, 90), (128, 128), (90, 182))]
    assert anchors("torchvision") == rounded


SIDES = (128 * math.sqrt(2), 128.0, 128 / math.sqrt(2))


def test_networks_of_one_seed_differ_in_the_inserted_blocks_alone() -> None:
    plain = build(TINY, seed=3).state_dict()
    for block in (NonLocalConfig(), ContextConfig.gc(4)):
        network = build(TINY.with_insertions((Insertion(block, "c3"), Insertion(block, "c5"))), seed=3)
        state = network.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())
        assert network.sites() == ["backbone.layer2.0:after_1x1", "backbone.layer4.0:after_1x1"]
        assert network.backbone.sites() == ["layer2.0:after_1x1", "layer4.0:after_1x1"]
        for site in network.sites():
            network.get_submodule(site.replace(":", "."))
    assert trunk_of(build(TINY, seed=3)).config == TRUNK


@pytest.mark.parametrize("change", [{}, {"norm": True, "box_head": "4conv1fc"}, {"cascade": True, "masks": False}])
def test_configurations_survive_json(change: dict[str, object]) -> None:
    config = replace(TINY, **change).with_insertions((NL,))
    assert config_from_dict(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"box_head": "3fc"}, "unknown box head of a detection network: `3fc`"),
        ({"geometry": "mmdet3"}, "unknown geometry of a detection network: `mmdet3`"),
        ({"backbone": ResNetConfig()}, "has a classifier of 1000 classes"),
        ({"backbone": replace(TRUNK, output_stride=8)}, "has the output stride 8"),
        ({"classes": 0}, "`classes` of a detection network is 0"),
        ({"score_threshold": 1.0}, "`score_threshold` is 1.0"),
    ],
)
def test_settings_that_make_no_network_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


def changed(**changes: Tensor | None) -> list[Truth]:
    return [replace(truths()[0], **changes), truths()[1]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None, None), "got no targets for 2 images"),
        ((None, truths()[:1]), "got 1 targets for 2 images"),
        (([(90, 120)], truths()), "1 sizes for 2 images"),
        (([(90, 129), (96, 100)], truths()), "a picture of 90x129 does not lie in its image of 96x128"),
        (
            (SIZES, changed(boxes=torch.tensor([[5.0, 5.0, 5.0, 9.0]] * 3))),
            "image 0 of the batch has a box without area",
        ),
        ((SIZES, changed(labels=torch.tensor([0, 5, 1]))), r"has the classes \[0, 1, 5\], the network 5"),
        ((SIZES, changed(masks=None)), "image 0 of the batch has no masks"),
    ],
)
def test_what_does_not_fit_the_images_is_refused(arguments: tuple[object, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(TINY, seed=0)(images(), *arguments)


def test_a_network_without_mask_head_needs_no_masks() -> None:
    network = build(replace(TINY, masks=False), seed=0)
    assert set(network(images(), SIZES, changed(masks=None))) == {"objectness", "proposals", "classes", "boxes"}
    assert [each.masks for each in network.eval()(images(), SIZES)] == [None, None]


def test_norms_stand_in_the_pyramid_and_the_heads_only_where_asked_for() -> None:
    def norms(config: DetectionConfig) -> int:
        network = build(config, seed=0)
        assert isinstance(network, DetectionNetwork)
        parts = (network.pyramid, network.proposals, network.stages)
        return sum(isinstance(module, nn.BatchNorm2d) for part in parts for module in part.modules())

    assert norms(TINY) == 0
    assert norms(replace(TINY, norm=True)) == 8 + 2
    assert norms(replace(TINY, norm=True, box_head="4conv1fc")) == 8 + 4 + 2


def test_boxes_that_hold_their_last_pixel_move_as_ours_which_end_behind_it() -> None:
    # mmdetection 1 writes x2 for our x2 - 1: sides are one longer than the difference, centres half a pixel before ours
    boxes = torch.tensor([[3.0, 4.0, 50.0, 31.0], [10.0, 7.0, 11.0, 90.0]], dtype=torch.float64)
    deltas = torch.tensor([[0.3, -0.2, 0.4, 0.1], [-0.5, 0.1, 0.6, -0.3]], dtype=torch.float64)
    inside = boxes - torch.tensor([0.0, 0.0, 1.0, 1.0])
    sides = inside[:, 2:] - inside[:, :2] + 1
    centres = (inside[:, :2] + inside[:, 2:]) / 2 + deltas[:, :2] * torch.tensor([0.1, 0.1]) * sides
    grown = sides * (deltas[:, 2:] * torch.tensor([0.2, 0.2])).exp()
    expected = torch.cat([centres - grown / 2 + 0.5, centres + grown / 2 - 0.5], 1)
    stage = build(TINY, seed=0).stages.in_order()[0]
    found = stage.coder.decode_single(deltas, boxes)
    torch.testing.assert_close(found - torch.tensor([0.0, 0.0, 1.0, 1.0]), expected)


def test_half_of_the_sampled_anchors_are_objects_at_most_and_two_thresholds_tell_which() -> None:
    proposals = build(TINY, seed=0).proposals
    sampler, matcher = proposals.fg_bg_sampler, proposals.proposal_matcher
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (32, 0.5)
    assert (matcher.high_threshold, matcher.low_threshold, matcher.allow_low_quality_matches) == (0.7, 0.3, True)
    assert (proposals.nms_thresh, proposals.score_thresh) == (0.7, 0.0)
    assert proposals.train().pre_nms_top_n() == proposals.post_nms_top_n() == 60
    assert proposals.eval().pre_nms_top_n() == proposals.post_nms_top_n() == 40
