"""The configuration of a residual network."""

import json
from dataclasses import replace
from typing import Any

import pytest

from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.errors import ConfigError
from nlprobe.models import ARCHITECTURES, Insertion, ResNetConfig


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_survives_a_trip_through_json(name: str) -> None:
    config = replace(
        ARCHITECTURES[name],
        insertions=(Insertion(NonLocalConfig(), "c4", (-1,), "after_add"), Insertion(ContextConfig.gc(), "c5")),
    )
    assert ResNetConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_settings_that_are_left_out_take_their_default() -> None:
    assert ResNetConfig.from_dict({"architecture": "resnet"}) == ARCHITECTURES["resnet50"]


def test_a_misspelt_setting_is_an_error_with_the_close_match() -> None:
    with pytest.raises(ConfigError, match=r"`widht`(.|\n)*`width`"):
        ResNetConfig.from_dict({"architecture": "resnet", "widht": 16})


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"layers": (3, 4, 6)}, "does not name four stages"),
        ({"layers": (3, 0, 6, 3)}, "`layers` is 0"),
        ({"classes": -1}, "`classes` is -1"),
        ({"width": -1}, "`width` is -1"),
        ({"block": "botleneck"}, "`bottleneck`"),
        ({"block": "basic", "groups": 32}, "a basic block has no groups"),
        ({"stem": "depe"}, "`deep`"),
        ({"output_stride": 4}, "`output_stride` is 4"),
        ({"dilate_first": True}, "`dilate_first` without any dilation"),
    ],
)
def test_numbers_that_make_no_network_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ResNetConfig.from_dict(settings)


@pytest.mark.parametrize("value", ["16", 16.0, True, None])
def test_a_value_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="`width` of a residual network cannot be"):
        ResNetConfig.from_dict({"width": value})


def test_two_blocks_at_one_site_are_refused() -> None:
    block = Insertion(NonLocalConfig(), "c4", (-2,), "after_add")
    other = Insertion(ContextConfig.gc(), "c4", "all", "after_add")
    with pytest.raises(ConfigError, match=r"two blocks at the site `layer3\.4:after_add`"):
        ResNetConfig(insertions=(block, other))


def test_two_places_of_one_residual_block_are_two_sites() -> None:
    config = ResNetConfig(
        insertions=(
            Insertion(NonLocalConfig(), "c4", (-2,), "after_block"),
            Insertion(ContextConfig.gc(), "c4", (-2,), "after_1x1"),
            Insertion(ContextConfig.gc(), "c3", (0,), "after_add"),
        )
    )
    assert config.sites() == ["layer2.0:after_add", "layer3.4:after_1x1", "layer3.4:after_block"]


def test_channels_follow_width_and_kind() -> None:
    assert [ARCHITECTURES["resnet50"].channels(stage) for stage in ("c2", "c5")] == [256, 2048]
    assert [ARCHITECTURES["resnet18"].channels(stage) for stage in ("c2", "c5")] == [64, 512]


def test_the_stem_and_the_dilation_survive_a_trip_through_json() -> None:
    config = replace(ARCHITECTURES["resnet101"], stem="deep", output_stride=8, dilate_first=True)
    assert ResNetConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    "output_stride, dilate_first, expected",
    [
        (32, False, {"c2": (1, 1, 1), "c3": (2, 1, 1), "c4": (2, 1, 1), "c5": (2, 1, 1)}),
        (16, False, {"c2": (1, 1, 1), "c3": (2, 1, 1), "c4": (2, 1, 1), "c5": (1, 1, 2)}),
        (8, False, {"c2": (1, 1, 1), "c3": (2, 1, 1), "c4": (1, 1, 2), "c5": (1, 2, 4)}),
        (8, True, {"c2": (1, 1, 1), "c3": (2, 1, 1), "c4": (1, 2, 2), "c5": (1, 4, 4)}),
    ],
)
def test_strides_become_dilations(
    output_stride: int, dilate_first: bool, expected: dict[str, tuple[int, int, int]]
) -> None:
    config = ResNetConfig(output_stride=output_stride, dilate_first=dilate_first)
    samplings = {stage: config.sampling(stage) for stage in expected}
    found = {stage: (each.stride, each.first_dilation, each.dilation) for stage, each in samplings.items()}
    assert found == expected
