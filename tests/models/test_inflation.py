"""Weights of pictures in networks for clips give, on a video that stands still, what they give of the picture."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from nlprobe.blocks import ContextConfig, NonLocalConfig, SqueezeExcitationConfig
from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.models import Insertion, ResNet, ResNetConfig, VideoConfig, VideoResNet, build, load_backbone
from nlprobe.models.inflation import inflate

TRUNK = ResNetConfig(layers=(1, 1, 2, 1), width=8, classes=0)


def lively(network: nn.Module) -> nn.Module:
    """In evaluation mode, in float64, with statistics and scales as a training leaves them."""
    network = network.double().eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return network


def pair(trunk: ResNetConfig, way: str, temporal: tuple[int, ...] = (1, 1, 1, 3, 3)) -> tuple[nn.Module, VideoResNet]:
    """A network for pictures and the one for clips that begins with its weights."""
    pictures = lively(build(replace(trunk, classes=5), seed=1))
    clips = build(VideoConfig(backbone=trunk, classes=5, temporal=temporal), seed=2).double().eval()
    load_backbone(clips, pictures.state_dict(), inflation=way)
    return pictures, clips


def still(pictures: Tensor, frames: int) -> Tensor:
    return pictures.unsqueeze(2).repeat(1, 1, frames, 1, 1)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("temporal", [(1, 1, 1, 3, 3), (5, 3, 1, 3, 5)])
@pytest.mark.parametrize("frames", [1, 8])
def test_centre_inflation_gives_the_logits_of_the_picture(kind: str, temporal: tuple[int, ...], frames: int) -> None:
    pictures, clips = pair(replace(TRUNK, block=kind), "centre", temporal)
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(clips(still(images, frames)), pictures(images), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temporal, reach", [((1, 1, 1, 3, 3), 3), ((3, 1, 1, 5, 1), 5)])
def test_mean_inflation_agrees_with_the_picture_where_no_kernel_has_reached_over_an_end(
    temporal: tuple[int, ...], reach: int
) -> None:
    pictures, clips = pair(TRUNK, "mean", temporal)
    images = torch.randn(1, 3, 40, 56, dtype=torch.float64)
    frames = 2 * reach + 3
    with torch.no_grad():
        expected = pictures.features(images)["c5"]
        found = clips.features(still(images, frames))["c5"]
    same = [torch.allclose(each, expected, rtol=1e-10, atol=1e-12) for each in found.unbind(2)]
    assert same == [False] * reach + [True] * 3 + [False] * reach


def test_with_mean_inflation_no_frame_of_eight_is_untouched_in_slow_only() -> None:
    trunk = ResNetConfig(layers=(1, 1, 6, 3), block="basic", width=4, classes=0)
    pictures, clips = pair(trunk, "mean")
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = pictures.features(images)["c5"]
        found = clips.features(still(images, 8))["c5"]
    assert not any(torch.allclose(each, expected, rtol=1e-6) for each in found.unbind(2))


BLOCKS = {
    **{
        instantiation: NonLocalConfig(instantiation, sub_sample="pool_then_project")
        for instantiation in ("gaussian", "embedded_gaussian", "dot_product", "concat")
    },
    "snl": ContextConfig.snl(),
    "gc": ContextConfig.gc(4),
    "squeeze_excitation": SqueezeExcitationConfig(4),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=list(BLOCKS))
def test_inserted_blocks_go_over_too_and_see_equal_frames_as_one(block) -> None:
    """Their weights know no dimensions, and means over positions and normalised maps do not change when all repeat."""
    insertions = (Insertion(replace(block), "c3", (0,), "after_block"), Insertion(block, "c4", (-1,), "after_add"))
    pictures, clips = pair(replace(TRUNK, insertions=insertions), "centre")
    images = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(clips(still(images, 5)), pictures(images), rtol=1e-9, atol=1e-12)


def test_blocks_that_the_picture_network_has_not_keep_their_own_weights() -> None:
    insertions = (Insertion(NonLocalConfig(), "c4", "all", "after_block"),)
    config = VideoConfig(backbone=replace(TRUNK, insertions=insertions), classes=5)
    clips, untouched = build(config, seed=0), build(config, seed=0).state_dict()
    weights = build(replace(TRUNK, classes=5), seed=3).state_dict()
    load_backbone(clips, weights, inflation="centre")
    loaded = clips.state_dict()
    inserted = {name for name in loaded if "after_block" in name}
    assert inserted
    assert all(torch.equal(loaded[name], untouched[name]) for name in inserted)
    assert torch.equal(loaded["layer3.1.conv1.weight"].sum(2), weights["layer3.1.conv1.weight"])
    assert torch.equal(loaded["fc.weight"], weights["fc.weight"])


def test_torchvisions_resnet50_goes_over_whole(tmp_path: Path) -> None:
    theirs = lively(torchvision.models.resnet50())
    torch.save(theirs.float().state_dict(), tmp_path / "resnet50.pth")
    clips = build(VideoConfig(classes=7), seed=0).eval()
    with pytest.raises(CheckpointError, match=r"`fc.weight` has the shape \(1000, 2048\)"):
        load_backbone(clips, tmp_path / "resnet50.pth", inflation="centre")
    load_backbone(clips, tmp_path / "resnet50.pth", classifier=False, inflation="centre")
    images = torch.randn(1, 3, 64, 64)
    seen: list[Tensor] = []
    theirs.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    clips.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        theirs(images), clips(still(images, 4))
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=1e-4)


def test_a_file_with_a_deep_stem_is_refused() -> None:
    weights = ResNet(replace(TRUNK, stem="deep", classes=5)).state_dict()
    with pytest.raises(CheckpointError, match="has a deep stem, the network a plain one\ntake weights with a plain"):
        load_backbone(build(VideoConfig(backbone=TRUNK, classes=5)), weights)


def test_weights_of_clips_load_as_they_are(tmp_path: Path) -> None:
    config = VideoConfig(backbone=TRUNK, classes=5)
    first, second = build(config, seed=0), build(config, seed=1)
    save_file(first.state_dict(), tmp_path / "clips.safetensors")
    load_backbone(second, tmp_path / "clips.safetensors")
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_a_kernel_keeps_its_sum_either_way() -> None:
    kernel = {"conv": torch.randn(4, 3, 3, 3, dtype=torch.float64), "bias": torch.randn(4)}
    wanted = {"conv": torch.empty(4, 3, 5, 3, 3)}
    for way in ("mean", "centre"):
        long = inflate(kernel, wanted, way)
        assert long["conv"].shape == (4, 3, 5, 3, 3)
        torch.testing.assert_close(long["conv"].sum(2), kernel["conv"])
        assert long["bias"] is kernel["bias"]
    assert not inflate(kernel, wanted, "centre")["conv"][:, :, [0, 1, 3, 4]].any()


def test_another_way_is_an_error_with_close_matches() -> None:
    with pytest.raises(ConfigError, match="unknown way to inflate weights: `center`\ndid you mean `centre`"):
        inflate({}, {}, "center")
