"""The networks for clips against a written-out reference, and blocks at every site."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from video_reference import reference_logits

from nlprobe.blocks import (
    PLACES,
    ChannelAttentionConfig,
    ContextConfig,
    DisentangledConfig,
    GloReConfig,
    NonLocal,
    NonLocalConfig,
    ObjectContextConfig,
    PositionAttentionConfig,
    SqueezeExcitationConfig,
)
from nlprobe.blocks.build import CONFIGS
from nlprobe.blocks.settings import BlockConfig
from nlprobe.errors import ConfigError
from nlprobe.models import Insertion, ResNetConfig, VideoConfig, VideoResNet, build, trunk_of

TRUNK = ResNetConfig(layers=(1, 2, 1, 1), width=8, classes=0)
SMALL = VideoConfig(backbone=TRUNK, classes=5)
POOLED = NonLocalConfig(sub_sample="pool_then_project", zero_init=False)


def lively(config: VideoConfig, seed: int = 0) -> VideoResNet:
    """A network in evaluation mode whose norms have statistics and scales of their own."""
    network = build(config, seed=seed).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    nn.init.normal_(network.fc.bias)
    return network


@pytest.mark.parametrize(
    "trunk, temporal",
    [
        (TRUNK, (1, 1, 1, 3, 3)),
        (replace(TRUNK, block="basic"), (1, 1, 1, 3, 3)),
        (replace(TRUNK, groups=4, base_width=16), (5, 3, 1, 5, 1)),
        (replace(TRUNK, block="basic"), (3, 1, 5, 1, 3)),
    ],
)
def test_logits_are_those_of_the_network_written_out_frame_by_frame(
    trunk: ResNetConfig, temporal: tuple[int, ...]
) -> None:
    network = lively(VideoConfig(backbone=trunk, temporal=temporal, classes=5))
    clips = torch.randn(2, 3, 5, 40, 56, dtype=torch.float64)
    with torch.no_grad():
        expected = reference_logits(network.state_dict(), clips, trunk.layers, trunk.groups)
        torch.testing.assert_close(network(clips), expected, rtol=1e-10, atol=1e-12)


def test_slow_only_has_temporal_kernels_in_the_first_convolutions_of_c4_and_c5_alone() -> None:
    with torch.device("meta"):
        network = build(VideoConfig())
    frames = {name: module.kernel_size[0] for name, module in network.named_modules() if isinstance(module, nn.Conv3d)}
    assert {name for name, count in frames.items() if count == 3} == {
        f"layer{stage}.{block}.conv1" for stage, count in ((3, 6), (4, 3)) for block in range(count)
    }
    assert set(frames.values()) == {1, 3}
    strides = {name: module.stride for name, module in network.named_modules() if isinstance(module, nn.Conv3d)}
    assert {stride[0] for stride in strides.values()} == {1}
    assert [name for name, stride in strides.items() if stride[1:] == (2, 2)] == [
        "conv1",
        *(f"layer{stage}.0.{part}" for stage in (2, 3, 4) for part in ("conv2", "downsample.0")),
    ]


def test_every_feature_map_has_as_many_frames_as_the_clip() -> None:
    with torch.no_grad():
        found = build(SMALL, seed=0).features(torch.randn(1, 3, 7, 64, 96))
    assert {stage: tuple(x.shape[1:]) for stage, x in found.items()} == {
        "c2": (32, 7, 16, 24),
        "c3": (64, 7, 8, 12),
        "c4": (128, 7, 4, 6),
        "c5": (256, 7, 2, 3),
    }


def test_the_last_frame_is_seen_from_the_first_only_as_far_as_the_kernels_reach() -> None:
    network = lively(replace(SMALL, temporal=(1, 1, 1, 3, 1))).eval()  # one block of c4: one frame in each direction
    clip = torch.randn(1, 3, 6, 32, 32, dtype=torch.float64)
    other = clip.clone()
    other[:, :, -1] += 1
    with torch.no_grad():
        changed = (network.features(clip)["c5"] - network.features(other)["c5"]).abs().amax((0, 1, 3, 4)) > 0
    assert changed.tolist() == [False] * 4 + [True, True]


def test_dropout_is_between_pooling_and_classifier_while_training() -> None:
    network = build(replace(SMALL, dropout=0.75), seed=0).train()
    seen: list[torch.Tensor] = []
    network.avgpool.register_forward_hook(lambda module, inputs, output: seen.append(output.flatten(1)))
    network.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(torch.randn(2, 3, 4, 32, 32))
    network.eval()(torch.randn(2, 3, 4, 32, 32))
    pooled, dropped, pooled_in_evaluation, kept = seen
    survivors = dropped != 0
    assert 0 < survivors.double().mean() < 0.5
    torch.testing.assert_close(dropped[survivors], 4 * pooled[survivors])
    assert torch.equal(pooled_in_evaluation, kept)


def test_a_seed_draws_the_same_trunk_whatever_is_inserted() -> None:
    insertions = (Insertion(POOLED, "c3", (1,), "after_block"),)
    plain, other = (build(each, seed=4).state_dict() for each in (SMALL, SMALL.with_insertions(insertions)))
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert not torch.equal(plain["conv1.weight"], build(SMALL, seed=5).state_dict()["conv1.weight"])


def test_zero_init_residual_makes_every_branch_start_at_zero() -> None:
    network = build(replace(SMALL, backbone=replace(TRUNK, zero_init_residual=True)), seed=0)
    assert len(list(network.residual_blocks())) == sum(TRUNK.layers)
    assert not any(block.last_norm.weight.any() for block in network.residual_blocks())


def test_the_trunk_of_a_video_network_is_itself() -> None:
    network = build(SMALL, seed=0)
    assert trunk_of(network) is network


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("stage", ["c2", "c3", "c4", "c5"])
def test_a_block_stands_at_its_site_and_is_used(place: str, kind: str, stage: str, device: torch.device) -> None:
    block = NonLocalConfig(zero_init=False)
    trunk = replace(TRUNK, block=kind, insertions=(Insertion(block, stage, (-1,), place),))
    network = build(replace(SMALL, backbone=trunk), seed=0).to(device).eval()
    (site,) = network.sites()
    inserted = network.get_submodule(site.replace(":", "."))
    assert isinstance(inserted, NonLocal)
    assert inserted.dimension == 3
    clips = torch.randn(1, 3, 3, 32, 32, device=device)
    with torch.no_grad():
        before = network(clips)
        inserted.output.weight.mul_(10.0)
        assert not torch.allclose(network(clips), before)


def test_the_three_places_see_branch_sum_and_output() -> None:
    blocks = tuple(Insertion(NonLocalConfig(), "c3", (1,), place) for place in PLACES)
    network = build(SMALL.with_insertions(blocks), seed=0).eval()
    seen: dict[str, torch.Tensor] = {}
    unit = network.layer2[1]
    unit.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0].clone()))
    unit.last_norm.register_forward_hook(lambda module, inputs, output: seen.update(branch=output.clone()))
    for place in PLACES:
        unit.get_submodule(place).register_forward_pre_hook(
            lambda module, inputs, place=place: seen.update({place: inputs[0].clone()})
        )
    with torch.no_grad():
        network(torch.randn(1, 3, 3, 32, 32))
    assert torch.equal(seen["after_1x1"], seen["branch"])
    assert torch.equal(seen["after_add"], seen["branch"] + seen["x"])
    assert torch.equal(seen["after_block"], (seen["branch"] + seen["x"]).relu())


IN_SPACE_AND_TIME: dict[str, BlockConfig] = {
    **{
        instantiation: NonLocalConfig(instantiation, sub_sample="pool_then_project", zero_init=False)
        for instantiation in ("gaussian", "embedded_gaussian", "dot_product", "concat")
    },
    "snl": ContextConfig.snl(),
    "gc": ContextConfig.gc(4),
    "se_with_ln": ContextConfig.se_with_ln(4),
    "squeeze_excitation": SqueezeExcitationConfig(4),
    "disentangled": DisentangledConfig.mmseg(),
    "position_attention": PositionAttentionConfig(),
    "channel_attention": ChannelAttentionConfig(),
    "object_context": ObjectContextConfig(),
    "glore": GloReConfig(zero_init=False),
}
IN_IMAGES_ALONE = ("asymmetric_pyramid", "cbam", "criss_cross", "gather_excite", "point_wise")


@pytest.mark.parametrize("block", IN_SPACE_AND_TIME.values(), ids=list(IN_SPACE_AND_TIME))
def test_blocks_for_clips_get_gradients_throughout(block: BlockConfig) -> None:
    insertions = tuple(Insertion(block, stage, (0,), place) for stage, place in zip(("c3", "c4"), PLACES, strict=False))
    network = build(SMALL.with_insertions(insertions), seed=0)
    network(torch.randn(2, 3, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("kind", IN_IMAGES_ALONE)
def test_blocks_for_pictures_alone_are_refused_in_words(kind: str) -> None:
    config = SMALL.with_insertions((Insertion(CONFIGS[kind](), "c4"),))
    with pytest.raises(ConfigError, match=rf"`{kind}`.*\b3\b"):
        build(config)


def test_every_block_is_known_to_work_on_clips_or_to_be_refused() -> None:
    assert {config.block for config in IN_SPACE_AND_TIME.values()} | set(IN_IMAGES_ALONE) == set(CONFIGS)


def test_keys_are_pooled_in_space_and_not_in_time() -> None:
    network = build(SMALL.with_insertions((Insertion(POOLED, "c3", (1,), "after_block"),)), seed=0)
    sizes: list[tuple[int, ...]] = []
    block = network.get_submodule("layer2.1.after_block")
    block.attention.register_forward_hook(lambda module, inputs, output: sizes.extend(x.shape[1:2] for x in inputs))
    with torch.no_grad():
        network(torch.randn(1, 3, 5, 64, 80))
    assert sizes == [(5 * 8 * 10,), (5 * 4 * 5,), (5 * 4 * 5,)]
