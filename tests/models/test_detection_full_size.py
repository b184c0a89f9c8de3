"""The paper's detectors at the paper's size."""

import pytest
import torch
from models.detection_reference import Truth

from nlprobe.models import DetectionNetwork, build

HEIGHT, WIDTH = 800, 1344  # 800x1333, padded


def truth() -> Truth:
    """Objects of many sizes in a picture of 800x1333."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(12, 2, generator=generator) * torch.tensor([900.0, 500.0])
    sides = 10 * 2 ** (torch.arange(12) / 2)[:, None] * torch.tensor([1.0, 0.8])
    boxes = torch.cat([corners, torch.minimum(corners + sides, torch.tensor([1333.0, 800.0]))], 1)
    masks = torch.zeros(12, 800, 1333, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return Truth(boxes, torch.arange(12) * 6, masks)


def picture() -> torch.Tensor:
    images = torch.randn(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    images[..., 1333:] = 0
    return images


@pytest.mark.slow
def test_resnet_50_with_a_non_local_block_sees_4200_positions_and_1050_keys_and_finds_boxes() -> None:
    network = build("coco/resnet50-nl", seed=0).eval()
    assert isinstance(network, DetectionNetwork)
    torch.nn.init.normal_(network.stages.in_order()[0].box.classes.weight, std=0.5, generator=torch.manual_seed(0))
    seen: list[torch.Size] = []
    block = network.get_submodule("backbone.layer3.4.after_add")
    block.attention.register_forward_pre_hook(lambda module, inputs: seen.extend(each.shape for each in inputs))
    levels: list[torch.Tensor] = []
    network.pyramid.register_forward_hook(lambda module, inputs, output: levels.extend(output.values()))
    with torch.no_grad():
        (found,) = network(picture(), [(800, 1333)])
    assert [tuple(level.shape[1:]) for level in levels] == [
        *((256, HEIGHT // stride, WIDTH // stride) for stride in (4, 8, 16, 32)),
        (256, 13, 21),
    ]
    assert seen == [(1, 50 * 84, 512), (1, 25 * 42, 512), (1, 25 * 42, 512)]
    assert len(found) == 100
    assert found.masks.shape == (100, 28, 28)
    assert found.boxes[:, 2].max() <= 1333


@pytest.mark.slow
def test_a_step_at_full_size_moves_everything_but_what_is_frozen() -> None:
    network = build("coco/resnet50-gc-all", seed=0)
    frozen = ("backbone.conv1", "backbone.bn1", "backbone.layer1")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    for module in network.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    losses = network(picture(), [(800, 1333)], [truth()])
    assert set(losses) == {"objectness", "proposals", "classes", "boxes", "masks"}
    assert all(0 < loss < 100 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen)
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.slow
def test_the_strongest_network_runs_and_learns() -> None:
    network = build("coco/resnext101_64x4d-dcn-cascade-4conv1fc-gc-all-r4", seed=0)
    images = picture()[..., :160, :192]
    objects = Truth(torch.tensor([[20.0, 30.0, 120.0, 150.0]]), torch.tensor([79]), torch.ones(1, 160, 192).bool())
    losses = network(images, None, [objects])
    assert len(losses) == 2 + 3 * 3
    sum(losses.values()).backward()
    offsets = [parameter.grad for name, parameter in network.named_parameters() if ".offset." in name]
    assert len(offsets) == 2 * (4 + 23 + 3)
    assert all(gradient.abs().sum() > 0 for gradient in offsets)
    with torch.no_grad():
        (found,) = network.eval()(images)
    assert found.boxes.shape == (len(found), 4)
