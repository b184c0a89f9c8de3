"""What is frozen stays to the last bit, and inserted blocks are never frozen."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from nlprobe.blocks import NonLocalConfig
from nlprobe.errors import ConfigError
from nlprobe.models import Insertion, VideoConfig, build
from nlprobe.training.freezing import freeze, hold

CPU = torch.device("cpu")
BLOCK = "layer2.0.after_add."


def changed(make_run, **settings: object) -> set[str]:
    """Names of the weights and buffers that two epochs change."""
    engine = make_run(epochs=2, **settings).engine(CPU)
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    engine.train()
    return {name for name, value in engine.model.state_dict().items() if not torch.equal(value, before[name])}


def test_nothing_is_frozen_without_a_word(make_run) -> None:
    found = changed(make_run)
    assert {"conv1.weight", "bn1.running_mean", "layer4.0.bn2.weight", "fc.bias"} <= found
    assert any(name.startswith(BLOCK) and name.endswith("weight") for name in found)


def test_frozen_stages_keep_their_weights_and_statistics(make_run) -> None:
    found = changed(make_run, frozen=["c1", "c2"])
    assert not any(name.startswith(("conv1.", "bn1.", "layer1.")) for name in found)
    assert {"layer2.0.conv1.weight", "layer2.0.bn1.running_mean", "fc.weight"} <= found


def test_a_block_inserted_into_a_frozen_stage_is_trained(make_run) -> None:
    found = changed(make_run, frozen=["c3"])
    assert {name for name in found if name.startswith("layer2.")} == {n for n in found if n.startswith(BLOCK)}
    assert any(name.startswith(BLOCK) and name.endswith("weight") for name in found)
    assert any(name.startswith(BLOCK) and name.endswith("running_mean") for name in found)


def test_frozen_norms_are_those_of_the_trunk(make_run) -> None:
    found = changed(make_run, batch_norm="frozen")
    assert not any(".bn" in name or name.startswith("bn1") or "downsample.1" in name for name in found)
    assert {"conv1.weight", "layer2.0.downsample.0.weight", "fc.weight"} <= found
    assert any(name.startswith(BLOCK) and name.endswith("running_mean") for name in found)


def test_a_network_inside_another_is_found(make_run) -> None:
    config = replace(make_run().config, insertions=(Insertion(NonLocalConfig(), "c4", blocks=(0,)),))
    detector = nn.ModuleDict({"backbone": build(config, seed=0), "head": nn.BatchNorm2d(4)})
    still = freeze(detector, ("c1",), norms=True)
    assert detector["head"] not in still
    detector.train()
    hold(still)
    assert not detector["backbone"].bn1.training
    assert not detector["backbone"].layer4[0].bn1.training
    assert detector["head"].training
    assert not detector["backbone"].conv1.weight.requires_grad
    assert detector["backbone"].layer1[0].conv1.weight.requires_grad
    assert not detector["backbone"].layer1[0].bn1.weight.requires_grad


def test_all_of_a_deep_stem_is_frozen(make_run) -> None:
    network = build(replace(make_run().config, stem="deep"), seed=0)
    still = freeze(network, ("c1",), norms=False)
    assert still == [network.bn1, network.bn2, network.bn3]
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if not name.startswith(("layer", "fc"))}


def test_a_network_for_clips_is_frozen_by_the_same_stages(make_run) -> None:
    config = make_run().config
    network = build(VideoConfig(backbone=replace(config, classes=0)), seed=0)
    still = freeze(network, ("c1", "c2"), norms=False)
    assert network.bn1 in still
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if name.startswith(("conv1.", "bn1.", "layer1."))}


def test_an_unknown_stage_or_no_residual_network_is_an_error(make_run) -> None:
    with pytest.raises(ConfigError, match=r"no stage `c6` to freeze\nknown|no stage `c6` to freeze\ndid you mean"):
        make_run(frozen=["c6"]).engine(CPU)
    with pytest.raises(ConfigError, match="no residual network inside"):
        freeze(nn.Linear(2, 2), (), norms=True)
    assert freeze(nn.Linear(2, 2), (), norms=False) == []
