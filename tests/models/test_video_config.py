"""The configuration of a network for clips."""

import json
from dataclasses import replace
from typing import Any

import pytest

from nlprobe.blocks import ContextConfig, NonLocalConfig
from nlprobe.errors import ConfigError
from nlprobe.models import ARCHITECTURES, Insertion, ResNetConfig, VideoConfig, config_from_dict

SMALL = VideoConfig(backbone=ResNetConfig(layers=(1, 1, 2, 1), block="basic", width=8, classes=0), classes=6)


def test_it_survives_a_trip_through_json() -> None:
    insertions = (Insertion(NonLocalConfig(), "c4", (-1,), "after_block"), Insertion(ContextConfig.gc(4), "c5"))
    config = replace(SMALL.with_insertions(insertions), temporal=(5, 1, 3, 3, 1), dropout=0.25)
    config = replace(config, kernels=((1,), (3,), (3, 1), (1,)), stem_stride=2, halve=True, pad_pool=False)
    described = json.loads(json.dumps(config.as_dict()))
    assert described["architecture"] == "video"
    assert VideoConfig.from_dict(described) == config_from_dict(described) == config
    assert config.insertions == insertions
    assert config.frames("c4") == (3, 1)
    assert config.sites() == ["layer3.1:after_block", "layer4.0:after_1x1"]


def test_the_default_is_slow_only_on_resnet_50() -> None:
    assert VideoConfig.from_dict({}) == VideoConfig()
    assert VideoConfig().backbone.layers == (3, 4, 6, 3)
    assert [VideoConfig().frames(stage) for stage in ("c2", "c3", "c4", "c5")] == [
        (1,) * 3,
        (1,) * 4,
        (3,) * 6,
        (3,) * 3,
    ]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"backbone": ARCHITECTURES["resnet50"].as_dict()}, "has a classifier of 1000 classes\nset its `classes` to 0"),
        ({"backbone": {"stem": "deep", "classes": 0}}, "a deep stem"),
        ({"backbone": {"output_stride": 8, "classes": 0}}, "an output stride of 8"),
        ({"temporal": (1, 1, 3, 3)}, r"`temporal` of a video network is \(1, 1, 3, 3\)\ngive five odd numbers"),
        ({"temporal": (1, 1, 1, 2, 3)}, "give five odd numbers"),
        ({"temporal": (1, 1, 1, -1, 3)}, "give five odd numbers"),
        (
            {"kernels": ((1, 1, 1), (1,))},
            "`kernels` of a video network is .*\ngive a tuple for each stage, of 3, 4, 6, 3",
        ),
        ({"kernels": ((1,) * 3, (1,) * 4, (2,) * 6, (1,) * 3)}, "give odd numbers of frames"),
        ({"stem_stride": 0}, "use 1 or more"),
        ({"dropout": 1.0}, "dropout is at least 0 and below 1"),
        ({"classes": 0}, "classes are 1 or more"),
        ({"temporel": [1, 1, 1, 1, 1]}, r"`temporel`(.|\n)*`temporal`"),
        ({"dropout": "half"}, "`dropout` of a video network cannot be"),
        ({"backbone": {"widht": 8}}, r"`widht`(.|\n)*`width`"),
    ],
)
def test_numbers_that_make_no_network_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VideoConfig.from_dict(settings)
