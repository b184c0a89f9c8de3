import pytest
import timm
import torch
import torchvision
from torch import nn

from nlprobe.probe.positions import ImageBatch, prefix_tokens


def test_class_tokens_are_counted_as_the_models_own_classes_say() -> None:
    vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 16)
    assert prefix_tokens(vit, "encoder.layers.encoder_layer_0.self_attention") == 1
    registers = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, reg_tokens=4)
    assert prefix_tokens(registers, "blocks.0.attn") == 5
    pooled = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, class_token=False, global_pool="avg")
    assert prefix_tokens(pooled, "blocks.0.attn") == 0
    assert prefix_tokens(nn.Sequential(vit), "0.encoder.layers.encoder_layer_0.self_attention") == 1
    assert prefix_tokens(nn.Linear(2, 2), "") == 0
    assert prefix_tokens(timm.create_model("pit_ti_distilled_224"), "transformers.0.blocks.0.attn") == 2
    assert prefix_tokens(timm.create_model("crossvit_tiny_240"), "blocks.0.blocks.0.0.attn") == 1
    assert prefix_tokens(timm.create_model("volo_d1_224"), "network.2.0.attn") == 0


@pytest.mark.parametrize(
    ("size", "count", "grid"),
    [
        ((224, 224), 196, (14, 14)),
        ((32, 64), 32, (4, 8)),
        ((64, 32), 32, (8, 4)),
        ((480, 640), 30 * 40, (30, 40)),
        ((100, 133), 7 * 9, (7, 9)),
        ((224, 224), 100, (10, 10)),
        ((224, 224), 7, (7,)),
        ((224, 224), 1, (1, 1)),
        ((), 12, (12,)),
        ((8, 32, 32), 12, (12,)),
    ],
)
def test_the_grid_covers_the_image_with_square_cells(size: tuple[int, ...], count: int, grid: tuple[int, ...]) -> None:
    assert ImageBatch(2, size).grid(count) == grid


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((torch.zeros(3, 3, 8, 6),), {}, ImageBatch(3, (8, 6))),
        ((torch.zeros(2, 3, 4, 8, 6),), {}, ImageBatch(2, (4, 8, 6))),
        ((), {"pixel_values": torch.zeros(3, 3, 8, 6)}, ImageBatch(3, (8, 6))),
        (({"input_ids": torch.zeros(3, 7, dtype=torch.int64)},), {}, ImageBatch(3)),
        ((torch.zeros(3, 7, 5),), {}, ImageBatch(3)),
        (([torch.zeros(3, 8, 6)],), {}, ImageBatch()),
        (("text",), {"flag": True}, ImageBatch()),
        ((torch.tensor(1.0),), {}, ImageBatch()),
    ],
)
def test_the_batch_is_read_from_the_first_tensor(args: tuple, kwargs: dict, expected: ImageBatch) -> None:
    assert ImageBatch.of(args, kwargs) == expected
