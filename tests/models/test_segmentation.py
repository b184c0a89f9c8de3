"""Networks for semantic segmentation: their layers written out, their settings, and what they share."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nlprobe.blocks import ContextConfig, NonLocalConfig, PointWiseConfig
from nlprobe.errors import ConfigError
from nlprobe.models import Insertion, ResNetConfig, SegmentationConfig, build, config_from_dict

TRUNK = ResNetConfig(layers=(1, 1, 1, 1), block="basic", width=4, stem="deep", output_stride=8, classes=0)
TINY = SegmentationConfig(backbone=TRUNK, channels=8, auxiliary=6, classes=5, align_corners=False)


def layer(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """3x3 convolution, batch norm and ReLU from the weights alone."""
    x = F.conv2d(x, state[f"{name}.conv.weight"], padding=1)
    mean, variance = state[f"{name}.norm.running_mean"], state[f"{name}.norm.running_var"]
    return F.relu(F.batch_norm(x, mean, variance, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"]))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("concatenate", [True, False])
def test_the_head_is_the_written_out_one(align_corners: bool, concatenate: bool) -> None:
    config = replace(TINY, align_corners=align_corners, concatenate=concatenate, context=ContextConfig.snl())
    network = build(config, seed=0).double().eval()
    images = torch.randn(2, 3, 33, 41, dtype=torch.float64)
    state = network.state_dict()
    with torch.no_grad():
        c5 = network.backbone.features(images)["c5"]
        x = network.head.context(layer(c5, state, "head.reduce"))
        x = layer(x, state, "head.smooth")
        if concatenate:
            x = layer(torch.cat([c5, x], 1), state, "head.fuse")
        coarse = F.conv2d(x, state["head.classifier.conv.weight"], state["head.classifier.conv.bias"])
        expected = F.interpolate(coarse, (33, 41), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(network(images), expected)


def test_training_gives_the_auxiliary_scores_too_and_gradients_everywhere() -> None:
    network = build(replace(TINY, context=NonLocalConfig(zero_init=False)), seed=0)
    found = network(torch.randn(2, 3, 32, 48))
    assert set(found) == {"scores", "auxiliary"}
    assert all(scores.shape == (2, 5, 32, 48) for scores in found.values())
    sum(scores.square().sum() for scores in found.values()).backward()
    # the key's bias cancels in the softmax
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == set()
    assert build(replace(TINY, auxiliary=0), seed=0).auxiliary is None
    assert network.eval()(torch.randn(1, 3, 32, 48)).shape == (1, 5, 32, 48)


@pytest.mark.parametrize(
    "head, outputs",
    [("dual_attention", {"scores", "position", "channel", "auxiliary"}), ("asymmetric", {"scores", "auxiliary"})],
)
def test_other_heads_are_trained_by_all_their_scores_and_give_one(head: str, outputs: set[str]) -> None:
    network = build(replace(TINY, head=head), seed=0)
    images = torch.randn(2, 3, 64, 48)
    found = network(images)
    assert set(found) == outputs
    sum(scores.square().sum() for scores in found.values()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    assert network.eval()(images).shape == (2, 5, 64, 48)
    for site in network.sites():
        network.get_submodule(site)


def test_danet_scores_the_sum_of_its_branches() -> None:
    network = build(replace(TINY, head="dual_attention"), seed=0).double().eval()
    head, features = network.head, network.backbone.features(torch.randn(1, 3, 32, 32).double())
    with torch.no_grad():
        branches = [
            getattr(head, f"{name}_smooth")(getattr(head, name)(getattr(head, f"{name}_reduce")(features["c5"])))
            for name in ("position", "channel")
        ]
        found = head(features)
        torch.testing.assert_close(found["scores"], head.classifier(branches[0] + branches[1]))
        torch.testing.assert_close(found["position"], head.position_classifier(branches[0]))
        torch.testing.assert_close(found["channel"], head.channel_classifier(branches[1]))


def test_ann_fuses_c4_with_c5() -> None:
    network = build(replace(TINY, head="asymmetric"), seed=0).double().eval()
    head, features = network.head, network.backbone.features(torch.randn(1, 3, 32, 32).double())
    with torch.no_grad():
        fused = head.fusion(features["c4"], features["c5"])
        torch.testing.assert_close(head(features)["scores"], head.classifier(head.context(head.reduce(fused))))


def test_psanet_lays_its_attention_beside_c5() -> None:
    context = PointWiseConfig(mask_height=5, mask_width=7, alignment="parity", border=True)
    network = build(replace(TINY, head="point_wise", context=context), seed=0).double().eval()
    head, features = network.head, network.backbone.features(torch.randn(1, 3, 40, 48).double())
    state = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    with torch.no_grad():
        fused = layer(torch.cat([features["c5"], head.context(features["c5"])], 1), state, "head.fuse")
        torch.testing.assert_close(head(features)["scores"], head.classifier(fused))
    assert network.sites() == ["head.context.collect", "head.context.distribute"]
    assert config_from_dict(json.loads(json.dumps(network.config.as_dict()))) == network.config


@pytest.mark.parametrize("context", [None, ContextConfig(), PointWiseConfig(fusion="add")])
def test_psanets_head_takes_point_wise_attention_only(context: object) -> None:
    with pytest.raises(ConfigError, match="the `point_wise` head lays point-wise attention beside c5"):
        replace(TINY, head="point_wise", context=context)


def test_the_auxiliary_head_stands_on_c4() -> None:
    network = build(TINY, seed=0)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Dropout2d):
            module.eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        c4 = network.backbone.features(images)["c4"]
        coarse = network.auxiliary(c4)
        expected = F.interpolate(coarse, (32, 32), mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(images)["auxiliary"], expected)


def test_the_trunk_gives_the_four_stages_and_has_no_classifier() -> None:
    trunk = build(TRUNK, seed=0).eval()
    found = trunk.features(torch.randn(1, 3, 64, 64))
    assert {stage: tuple(x.shape[1:]) for stage, x in found.items()} == {
        "c2": (4, 16, 16),
        "c3": (8, 8, 8),
        "c4": (16, 8, 8),
        "c5": (32, 8, 8),
    }
    assert not [name for name in trunk.state_dict() if name.startswith("fc")]
    with pytest.raises(ConfigError, match="trunk without classifier"):
        trunk(torch.randn(1, 3, 64, 64))


def test_networks_of_one_seed_share_what_they_have_in_common() -> None:
    plain = build(TINY, seed=3).state_dict()
    for context in (NonLocalConfig(), ContextConfig.gc(4)):
        state = build(replace(TINY, context=context), seed=3).state_dict()
        for name in plain:
            if not name.startswith("auxiliary"):
                assert torch.equal(state[name], plain[name]), name


def test_sites_are_those_of_the_backbone_and_the_head() -> None:
    gc = Insertion(ContextConfig.gc(4), "c4")
    config = replace(TINY, context=NonLocalConfig()).with_insertions((gc,))
    assert build(config, seed=0).sites() == ["backbone.layer3.0:after_1x1", "head.context"]


@pytest.mark.parametrize("context", [None, NonLocalConfig(output_bias=False), ContextConfig.gc(4)])
def test_configurations_survive_json(context) -> None:
    config = replace(TINY, context=context).with_insertions((Insertion(ContextConfig.gc(4), "c3"),))
    assert config_from_dict(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    "change, message",
    [
        ({"head": "fnc"}, "unknown head of a segmentation network: `fnc`"),
        ({"backbone": ResNetConfig()}, "has a classifier of 1000 classes"),
        ({"classes": 0}, "0 classes"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"auxiliary": -1}, "-1 in the auxiliary head"),
        ({"head": "dual_attention", "context": ContextConfig.gc()}, "has its own context operators"),
    ],
)
def test_settings_that_make_no_network_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"chanels": 8}, "unknown setting of a segmentation network: `chanels`"),
        ({"classes": 2.5}, "`classes` of a segmentation network cannot be `2.5`"),
        ({"architecture": "resnet", "channels": 3}, "channels"),
    ],
)
def test_descriptions_that_are_not_understood_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict({"architecture": "segmentation", **settings})
