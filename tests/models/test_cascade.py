"""Heads and their cascade, in either mode, held to what is written out here; and what the stages sample."""

import math
from dataclasses import replace

import pytest
import torch
from models.detection_reference import SIZES, TINY, box_head, images, mask_head, moved, overlap, truths
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, roi_align

from nlprobe.models import DetectionConfig, DetectionNetwork, build
from nlprobe.models.cascade import CASCADE, SINGLE, next_proposals
from nlprobe.models.sampling import Objects, Sampled, objects_of, sample

CASCADED = replace(TINY, cascade=True, class_agnostic=True, score_threshold=0.0)
KINDS = {
    "one stage": replace(CASCADED, cascade=False, class_agnostic=False),
    "one stage, class-agnostic": replace(CASCADED, cascade=False),
    "cascade": CASCADED,
    "cascade, by class": replace(CASCADED, class_agnostic=False),
    "cascade, 4conv1fc with norms": replace(CASCADED, box_head="4conv1fc", norm=True, masks=False),
}
DEVIATIONS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


def network(config: DetectionConfig) -> DetectionNetwork:
    """In float64 and evaluation mode, with heads whose outputs differ enough to be told apart."""
    made = build(config, seed=7).double().eval()
    with torch.random.fork_rng():
        torch.manual_seed(8)
        for stage in made.stages.in_order():
            nn.init.normal_(stage.box.classes.weight, std=0.5)
            nn.init.constant_(stage.box.classes.bias[:1], 20)  # most boxes are background before anything
            nn.init.normal_(stage.box.boxes.weight, std=0.3)
            for module in stage.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.running_mean, 0.0, 0.1)
    return made


def pooled(levels: list[Tensor], boxes: Tensor, image: int, side: int) -> Tensor:
    """Each box from its level, found by its area, one at a time."""
    found = []
    for box in boxes:
        area = float((box[2] - box[0]) * (box[3] - box[1]))
        level = min(max(math.floor(math.log2(math.sqrt(area) / TINY.finest_box + 1e-12)), 0), 3) if area else 0
        region = torch.cat([torch.tensor([float(image)], dtype=box.dtype), box])[None]
        found.append(roi_align(levels[level], region, side, 0.25 / 2**level, 2))
    return torch.cat(found)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_what_is_found_is_the_mean_of_the_stages_at_the_boxes_of_the_last(config: DetectionConfig) -> None:
    made = network(config)
    shown = images().double()
    state, deviations = made.state_dict(), DEVIATIONS if config.cascade else DEVIATIONS[:1]
    with torch.no_grad():
        levels = made.levels(shown)
        proposals, _ = made.proposals(ImageList(shown, SIZES), dict(enumerate(levels)))
        for image, found in enumerate(made(shown, SIZES)):
            boxes, total = proposals[image], torch.zeros(())
            for number, deviation in enumerate(deviations):
                logits, deltas = box_head(state, f"stages.{number}.box", pooled(levels, boxes, image, 7))
                total = total + logits
                assert not logits.argmax(1).all()
                if number + 1 < len(deviations):
                    best = logits[:, 1:].argmax(1) + 1
                    column = torch.zeros_like(best) if config.class_agnostic else best
                    boxes = torch.stack(
                        [
                            moved(box, delta[own], deviation, SIZES[image])
                            for box, delta, own in zip(boxes, deltas, column.tolist(), strict=True)
                        ]
                    )
            scores = (total / len(deviations)).softmax(1)
            candidates, labels = [], []
            for box, delta in zip(boxes, deltas, strict=True):
                for label in range(1, 6):
                    own = delta[0 if config.class_agnostic else label]
                    candidates.append(moved(box, own, deviations[-1], SIZES[image]))
                    labels.append(label - 1)
            corners, classes, sure = torch.stack(candidates), torch.tensor(labels), scores[:, 1:].flatten()
            large = torch.where(((corners[:, 2:] - corners[:, :2]) >= 1e-2).all(1))[0]
            kept = large[batched_nms(corners[large], sure[large], classes[large], 0.5)[:10]]
            torch.testing.assert_close(found.boxes, corners[kept])
            torch.testing.assert_close(found.scores, sure[kept])
            assert torch.equal(found.labels, classes[kept])
            if config.masks:
                wanted = torch.zeros(())
                for number in range(len(deviations)):
                    logits = mask_head(state, f"stages.{number}.mask", pooled(levels, found.boxes, image, 14))
                    wanted = wanted + logits[torch.arange(len(kept)), found.labels + 1].sigmoid() / len(deviations)
                torch.testing.assert_close(found.masks, wanted)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_the_losses_are_the_written_out_ones_of_what_each_stage_samples(config: DetectionConfig) -> None:
    made = network(config)
    shown = images().double()
    objects = objects_of(truths(), torch.empty(0, dtype=torch.float64), 5, masks=True)
    state, stages = made.state_dict(), CASCADE if config.cascade else SINGLE
    with torch.no_grad():
        levels = made.levels(shown)
        proposals, _ = made.proposals(ImageList(shown, SIZES), dict(enumerate(levels)))
        torch.manual_seed(9)
        found = made._losses(levels[:4], list(proposals), SIZES, objects)
        torch.manual_seed(9)
        for number, (stage, deviations) in enumerate(zip(stages, DEVIATIONS, strict=False)):
            drawn = [sample(boxes, own, stage.overlap, 24) for boxes, own in zip(proposals, objects, strict=True)]
            count = sum(len(each.boxes) for each in drawn)
            classes, boxes, masks, proposals = [], [], [], []
            for image, (each, own) in enumerate(zip(drawn, objects, strict=True)):
                logits, deltas = box_head(state, f"stages.{number}.box", pooled(levels, each.boxes, image, 7))
                classes += [-row.log_softmax(0)[label] for row, label in zip(logits, each.labels, strict=True)]
                best = torch.where(each.labels > 0, each.labels, logits[:, 1:].argmax(1) + 1)
                column = torch.zeros_like(best) if config.class_agnostic else best
                following = []
                for index, box in enumerate(each.boxes):
                    delta = deltas[index, column[index]]
                    if not each.given[index]:
                        following.append(moved(box, delta, deviations, SIZES[image]))
                    if each.labels[index]:
                        other = own.boxes[each.matched[index]]
                        sides, wanted = box[2:] - box[:2], other[2:] - other[:2]
                        shift = ((other[2:] + other[:2]) - (box[2:] + box[:2])) / 2 / sides
                        numbers = torch.cat([shift, (wanted / sides).log()]) / torch.tensor(deviations)
                        gap = (delta - numbers).abs()
                        boxes += [torch.where(gap < 1, gap**2 / 2, gap - 0.5).sum()]
                        if config.masks:
                            region = torch.cat([torch.zeros(1), box])[None]
                            cut = roi_align(own.masks[each.matched[index]][None, None].double(), region, 28)[0, 0]
                            seen = pooled(levels, box[None], image, 14)
                            logit = mask_head(state, f"stages.{number}.mask", seen)[0, each.labels[index]]
                            sure = logit.sigmoid()
                            masks += [-(cut * sure.log() + (1 - cut) * (1 - sure).log()).mean()]
                proposals.append(torch.stack(following))
            ending = f"_{number + 1}" if config.cascade else ""
            assert boxes, "no proposal was an object's"
            torch.testing.assert_close(found.pop(f"classes{ending}"), stage.weight * torch.stack(classes).mean())
            torch.testing.assert_close(found.pop(f"boxes{ending}"), stage.weight * torch.stack(boxes).sum() / count)
            if config.masks:
                expected = stage.weight * torch.stack(masks).mean()
                torch.testing.assert_close(found.pop(f"masks{ending}"), expected, rtol=1e-6, atol=0)
    assert found == {}


def test_the_stages_are_the_papers() -> None:
    assert [(stage.overlap, stage.weight) for stage in CASCADE] == [(0.5, 1.0), (0.6, 0.5), (0.7, 0.25)]
    assert tuple(stage.deviations for stage in CASCADE) == DEVIATIONS
    assert [(stage.overlap, stage.weight, stage.deviations) for stage in SINGLE] == [(0.5, 1.0, DEVIATIONS[0])]


def test_a_cascade_trains_all_its_heads() -> None:
    made = build(replace(CASCADED, norm=True, box_head="4conv1fc"), seed=0)
    losses = made(images(), SIZES, truths())
    assert {f"{part}_{stage}" for part in ("classes", "boxes", "masks") for stage in (1, 2, 3)} < set(losses)
    sum(losses.values()).backward()
    assert [name for name, parameter in made.named_parameters() if parameter.grad is None] == []


def objects() -> Objects:
    return objects_of(truths()[:1], torch.empty(0), 5, masks=False)[0]


def candidates() -> Tensor:
    """Boxes near the objects and anywhere."""
    generator = torch.Generator().manual_seed(4)
    near = objects().boxes.repeat(12, 1) + torch.randn(36, 4, generator=generator) * 6
    corners = torch.rand(30, 2, generator=generator) * 60
    return torch.cat([near, torch.cat([corners, corners + 25], 1)])


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7])
def test_a_proposal_belongs_to_the_object_that_it_overlaps_most_if_by_enough(threshold: float) -> None:
    own = objects()
    drawn = sample(candidates(), own, threshold, 100)
    assert len(drawn.boxes) > 30
    for box, label, matched in zip(drawn.boxes, drawn.labels, drawn.matched, strict=True):
        overlaps = [overlap(box, other) for other in own.boxes]
        best = max(range(3), key=overlaps.__getitem__)
        if overlaps[best] >= threshold:
            assert (int(label), int(matched)) == (int(own.labels[best]), best)
        else:
            assert label == 0


def test_a_quarter_of_what_is_drawn_is_objects_at_most_and_their_own_boxes_are_among_the_candidates() -> None:
    own = objects()
    drawn = sample(candidates(), own, 0.5, 40)
    assert len(drawn.boxes) == 40
    assert len(drawn.positive()) == 10
    everything = sample(candidates(), own, 0.5, 1000)
    assert everything.given.sum() == 3
    assert torch.equal(everything.boxes[everything.given], own.boxes)
    assert torch.equal(everything.labels[everything.given], own.labels)
    torch.manual_seed(0)
    first = sample(candidates(), own, 0.5, 40)
    torch.manual_seed(0)
    assert torch.equal(sample(candidates(), own, 0.5, 40).boxes, first.boxes)


def test_without_objects_all_is_background() -> None:
    nothing = objects_of(truths()[1:], torch.empty(0), 5, masks=False)[0]
    drawn = sample(candidates(), nothing, 0.5, 40)
    assert len(drawn.boxes) == 40
    assert not drawn.labels.any()
    assert not drawn.given.any()


def test_the_next_stages_proposals_carry_no_gradient_and_are_none_of_the_objects_own_boxes() -> None:
    stage = build(CASCADED, seed=0).stages.in_order()[0]
    boxes = candidates()[:6]
    given = torch.tensor([False, True, False, False, True, False])
    drawn = Sampled(boxes, torch.tensor([3, 3, 0, 0, 1, 0]), torch.zeros(6, dtype=torch.int64), given)
    deltas = torch.randn(6, 1, 4, requires_grad=True)
    (found,) = next_proposals(stage, [drawn], torch.randn(6, 6), deltas, [(90, 120)])
    assert not found.requires_grad
    assert found.shape == (4, 4)
    expected = [moved(boxes[i], deltas[i, 0].detach(), DEVIATIONS[0], (90, 120)) for i in (0, 2, 3, 5)]
    torch.testing.assert_close(found, torch.stack(expected))
