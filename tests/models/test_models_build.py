"""Building networks by name and from a seed."""

from dataclasses import replace

import pytest
import torch

from nlprobe.blocks import NonLocalConfig
from nlprobe.errors import ConfigError
from nlprobe.models import Insertion, ResNetConfig, build, config_from_dict, entry

SMALL = ResNetConfig(layers=(1, 1, 1, 1), width=8, classes=4)


def test_a_seed_fixes_every_weight() -> None:
    config = replace(SMALL, insertions=(Insertion(NonLocalConfig(), "c4"),))
    first, second, third = (build(config, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], third["conv1.weight"])


def test_the_global_random_state_is_left_as_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build(SMALL, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_without_a_seed_the_global_random_state_decides() -> None:
    torch.manual_seed(2)
    first = build(SMALL)
    torch.manual_seed(2)
    second = build(SMALL)
    third = build(SMALL)
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert not torch.equal(first.conv1.weight, third.conv1.weight)


def test_networks_that_differ_in_their_blocks_share_the_trunk_of_a_seed() -> None:
    plain = build("miniature-imagenet/resnet", seed=0).state_dict()
    for variant in ("nl", "nl-c3", "gc-all", "avg-add"):
        other = build(f"miniature-imagenet/resnet-{variant}", seed=0).state_dict()
        assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_an_unknown_name_comes_with_close_matches() -> None:
    with pytest.raises(ConfigError, match="did you mean `coco/resnet50-nl`, `imagenet/resnet50-nl`"):
        build("resnet50-nl")
    with pytest.raises(ConfigError, match="`imagenet/resnet50-nl-dot`"):
        build("imagenet/resnet50-nl-dott")
    with pytest.raises(ConfigError, match="`nlprobe zoo` lists them"):
        build("xyz")


def test_a_description_names_its_architecture() -> None:
    config = entry("imagenet/resnet50-gc").config
    assert config_from_dict(config.as_dict()) == config
    with pytest.raises(ConfigError, match=r"`resnett`(.|\n)*`resnet`"):
        config_from_dict({"architecture": "resnett"})
    with pytest.raises(ConfigError, match="architecture"):
        config_from_dict({"layers": [1, 1, 1, 1]})
