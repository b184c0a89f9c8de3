"""Where activations are read."""

import pytest
import torch
import torchvision
from torch import nn

from nlprobe.activations import modules_at, residual_blocks, transforms
from nlprobe.blocks import ContextBlock, ContextConfig
from nlprobe.errors import ConfigError
from nlprobe.models import build


def test_residual_blocks_are_those_of_the_stages_and_not_their_parts() -> None:
    model = build("miniature-imagenet/resnet-gc-all")
    found = residual_blocks(model, ("c3", "c4"))
    assert [reading.name for reading in found] == ["layer2.0", "layer2.1", "layer3.0", "layer3.1"]
    assert [reading.module for reading in found] == [*model.layer2, *model.layer3]
    assert {reading.what for reading in found} == {"block output"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenet/resnet50-gc-all", [f"layer3.{at}" for at in range(6)]),
        ("miniature-cityscapes/resnet", ["backbone.layer3.0"]),
    ],
)
def test_the_paper_has_the_six_blocks_of_c4_and_backbones_theirs(name: str, expected: list[str]) -> None:
    with torch.device("meta"):
        model = build(name)
    assert [reading.name for reading in residual_blocks(model)] == expected


def test_other_libraries_residual_networks_have_the_same_names() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    assert [reading.module for reading in residual_blocks(model, ("c4",))] == list(model.layer3)


def test_networks_without_stages_are_refused_with_the_way_around() -> None:
    with pytest.raises(ConfigError, match=r"`Sequential` has no residual blocks in `layer3`\n.*--at"):
        residual_blocks(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match="`c9` is no stage"):
        residual_blocks(build("miniature-imagenet/resnet"), ("c9",))


def test_transforms_are_added_or_become_gates() -> None:
    added = ContextBlock(4, ContextConfig.gc(2))
    scaled = ContextBlock(4, ContextConfig.se_with_ln(2))
    model = nn.Sequential(added, scaled, build("miniature-imagenet/resnet-se").layer2[0].after_1x1)
    one, two, three = transforms(model)
    assert [one.what, two.what, three.what] == ["transform", "gate", "gate"]
    assert [one.module, two.module] == [added.transform, scaled.transform]
    t = torch.tensor([-1.0, 2.0])
    assert torch.equal(one.read(t), t)
    assert torch.equal(two.read(t), torch.sigmoid(t))
    assert torch.equal(three.read(t), torch.sigmoid(t))


def test_transforms_are_chosen_by_their_site() -> None:
    model = build("miniature-imagenet/resnet-gc-all")
    assert [reading.name for reading in transforms(model, ["layer3*", "layer2.0:after_1x1"])] == [
        *("layer2.0:after_1x1", "layer3.0:after_1x1", "layer3.1:after_1x1")
    ]
    with pytest.raises(ConfigError, match="matches `layer9"):
        transforms(model, ["layer9*"])
    with pytest.raises(ConfigError, match="no transform to read"):
        transforms(build("miniature-imagenet/resnet-nl"))


def test_gates_and_transforms_of_other_libraries_are_what_they_multiply_and_add() -> None:
    timm = pytest.importorskip("timm.layers")
    x = torch.randn(2, 16, 3, 3)
    seen: dict[str, torch.Tensor] = {}
    for block in (
        timm.SEModule(16),
        timm.GlobalContext(16, fuse_add=False, fuse_scale=True),
        timm.GlobalContext(16, fuse_add=True, fuse_scale=False),
        torchvision.ops.SqueezeExcitation(16, 4),
    ):
        model = nn.Sequential(block)
        (reading,) = transforms(model)
        handle = reading.module.register_forward_hook(lambda _, __, output: seen.update(found=output))
        z = model(x)
        handle.remove()
        expected = x + seen["found"] if reading.what == "transform" else x * seen["found"]
        assert torch.allclose(z, expected, atol=1e-6)
    both = nn.Sequential(timm.GlobalContext(16, fuse_add=True, fuse_scale=True))
    assert [(reading.name, reading.what) for reading in transforms(both)] == [
        ("0.gate", "gate"),
        ("0.mlp_add", "transform"),
    ]


def test_modules_are_found_by_path_or_glob_and_misspelt_ones_answered() -> None:
    model = build("miniature-imagenet/resnet")
    assert [reading.name for reading in modules_at(model, ["layer3.*.conv1", "fc"])] == [
        *("layer3.0.conv1", "layer3.1.conv1", "fc")
    ]
    with pytest.raises(
        ConfigError, match=r"no module is called or matches `layer3.0.conv9`\ndid you mean `layer3.0.conv"
    ):
        modules_at(model, ["layer3.0.conv9"])


def test_compiled_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match="is compiled"):
        residual_blocks(Compiled())


class Compiled(nn.Module):
    """What `torch.compile` makes of a network, as far as it matters here, without its seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._orig_mod = build("miniature-imagenet/resnet")
