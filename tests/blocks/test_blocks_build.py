"""Blocks from configurations as they stand in files, and what is said to settings that are wrong."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from nlprobe.blocks import (
    CBAM,
    AsymmetricPyramid,
    AsymmetricPyramidConfig,
    CBAMConfig,
    ChannelAttention,
    ChannelAttentionConfig,
    ContextBlock,
    ContextConfig,
    CrissCross,
    CrissCrossConfig,
    Disentangled,
    DisentangledConfig,
    GatherExcite,
    GatherExciteConfig,
    GloRe,
    GloReConfig,
    NonLocal,
    NonLocalConfig,
    ObjectContext,
    ObjectContextConfig,
    PointWise,
    PointWiseConfig,
    PositionAttention,
    PositionAttentionConfig,
    SqueezeExcitation,
    SqueezeExcitationConfig,
    block_config,
    build_block,
)
from nlprobe.blocks.settings import BlockConfig
from nlprobe.errors import ConfigError

BUILT = [
    (NonLocalConfig("gaussian"), NonLocal),
    (ContextConfig.snl(), ContextBlock),
    (CrissCrossConfig(recurrence=3), CrissCross),
    (PointWiseConfig(5, 7), PointWise),
    (DisentangledConfig.scene_parsing(), Disentangled),
    (PositionAttentionConfig(4), PositionAttention),
    (ChannelAttentionConfig(False), ChannelAttention),
    (ObjectContextConfig.original(), ObjectContext),
    (AsymmetricPyramidConfig(pyramid=(1, 2)), AsymmetricPyramid),
    (SqueezeExcitationConfig(4, bias=False), SqueezeExcitation),
    (CBAMConfig.timm(), CBAM),
    (GatherExciteConfig("theta_plus", size=(6, 5), reduction=4), GatherExcite),
    (GloReConfig(2, normalise=True), GloRe),
]


@pytest.mark.parametrize(("config", "kind"), BUILT, ids=[config.block for config, _ in BUILT])
def test_a_configuration_survives_json_and_builds_its_block(config: BlockConfig, kind: type[nn.Module]) -> None:
    settings = json.loads(json.dumps(config.as_dict()))
    assert block_config(settings) == config
    for given in (config, settings):
        block = build_block(config.block, 16, 2, given)
        assert isinstance(block, kind)
        assert block.config == config
        assert block(torch.randn(2, 16, 6, 5)).shape == (2, 16, 6, 5)


def test_a_block_that_pools_over_images_is_not_built_for_videos() -> None:
    with pytest.raises(ConfigError, match="`asymmetric_pyramid` pools over images, not over 3 dimensions"):
        build_block("asymmetric_pyramid", 8, 3, {})
    with pytest.raises(ConfigError, match="`cbam` convolves over images, not over 3 dimensions"):
        build_block("cbam", 8, 3, {})
    with pytest.raises(ConfigError, match="`gather_excite` gathers over images, not over 1 dimensions"):
        build_block("gather_excite", 8, 1, {})


def test_a_block_must_be_known_and_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown block: `non-local`\ndid you mean `non_local`\?"):
        block_config({"block": "non-local"})
    with pytest.raises(ConfigError, match="do not say which block"):
        block_config({"reduction": 2})
    with pytest.raises(ConfigError, match="unknown block: `squeeze`"):
        build_block("squeeze", 8, 2, NonLocalConfig())
    with pytest.raises(ConfigError, match="settings of the block `context` given for `non_local`"):
        build_block("non_local", 8, 2, ContextConfig())
    with pytest.raises(ConfigError, match="settings of the block `context` given to `non_local`"):
        NonLocalConfig.from_dict(ContextConfig().as_dict())


def test_an_unknown_key_comes_with_the_closest_known_one() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown setting of the block `non_local`: `subsample`\ndid you mean `sub_sample`\?"
    ):
        block_config({"block": "non_local", "subsample": "none"})


def test_scale_and_temperature_belong_to_the_softmax_modes() -> None:
    for settings in ({"scale": "inv_sqrt"}, {"temperature": 0.5}):
        for instantiation in ("dot_product", "concat"):
            with pytest.raises(ConfigError, match=f"`{instantiation}` has no softmax"):
                NonLocalConfig.from_dict({"instantiation": instantiation, **settings})


WRONG = {
    'NonLocalConfig(instantiation="softmax")': "unknown value for `instantiation` of the block `non_local`: `softmax`",
    'NonLocalConfig(scale="sqr")': "did you mean `sqrt`",
    'NonLocalConfig(sub_sample="pool")': "unknown value for `sub_sample`",
    'NonLocalConfig(norm="layer")': "unknown value for `norm`",
    "NonLocalConfig(reduction=0)": "`reduction` of the block `non_local` is `0`",
    "NonLocalConfig(reduction=0.5)": "it must be an integer of at least 1",
    'NonLocalConfig(bias="false")': "`bias` of the block `non_local` is `'false'`\nit must be true or false",
    'NonLocalConfig(temperature="1")': "it must be a number above 0",
    "NonLocalConfig(temperature=0)": "it must be a number above 0",
    'NonLocalConfig(temperature=float("nan"))': "it must be a number above 0",
    'ContextConfig(pooling="max")': "unknown value for `pooling` of the block `context`: `max`",
    'ContextConfig(transform="mlp")': "known: `linear`, `bottleneck`",
    'ContextConfig(norm="instance")': "unknown value for `norm`",
    'ContextConfig(fusion="mul")': "unknown value for `fusion`",
    "ContextConfig(reduction=True)": "it must be an integer of at least 1",
    "DisentangledConfig(temperature=0)": "`temperature` of the block `disentangled` is `0`",
    'DisentangledConfig(whitening="channel")': "unknown value for `whitening` of the block `disentangled`: `channel`",
    'DisentangledConfig(zero_init="no")': "`zero_init` of the block `disentangled` is `'no'`",
    "PositionAttentionConfig(reduction=0)": "`reduction` of the block `position_attention` is `0`",
    'ChannelAttentionConfig(zero_init="no")': "`zero_init` of the block `channel_attention`",
    "ObjectContextConfig(dropout=1)": "`dropout` of the block `object_context` is `1`\nit must be at least 0 and",
    'ObjectContextConfig(activation="gelu")': "unknown value for `activation`",
    "AsymmetricPyramidConfig(pyramid=())": "`pyramid` of the block `asymmetric_pyramid` is `()`\ngive one or more",
    "AsymmetricPyramidConfig(pyramid=(1, 0))": "`pyramid` of the block `asymmetric_pyramid` is `0`",
    "AsymmetricFusionConfig(low_channels=0)": "`low_channels` of the block `asymmetric_fusion` is `0`",
    'PointWiseConfig(branches="distribut")': "did you mean `distribute`",
    'PointWiseConfig(fusion="scale")': "unknown value for `fusion` of the block `point_wise`: `scale`",
    "PointWiseConfig(mask_height=0)": "`mask_height` of the block `point_wise` is `0`",
    'CrissCrossConfig(zero_init="no")': "`zero_init` of the block `criss_cross` is `'no'`",
    "SqueezeExcitationConfig(reduction=0)": "`reduction` of the block `squeeze_excitation` is `0`",
    'SqueezeExcitationConfig(bias="no")': "`bias` of the block `squeeze_excitation` is `'no'`",
    'CBAMConfig(order="max")': "unknown value for `order` of the block `cbam`: `max`",
    "CBAMConfig(kernel_size=4)": "`kernel_size` of the block `cbam` is `4`\nit must be odd",
    "CBAMConfig(momentum=0)": "`momentum` of the block `cbam` is `0`",
    'GatherExciteConfig("plus")': "unknown value for `variant` of the block `gather_excite`: `plus`",
    "GatherExciteConfig(extent=3)": "`extent` of the block `gather_excite` is `3`\nuse `global`, 2, 4 or 8",
    "GatherExciteConfig(extent=True)": "`extent` of the block `gather_excite` is `True`",
    'GatherExciteConfig("theta", size=(14, 0))': "`size` of the block `gather_excite` is `0`",
    'GatherExciteConfig("theta", size=14)': "`size` is `14`\ngive height and width",
    "GloReConfig(reduction=0)": "`reduction` of the block `glore` is `0`",
    'GloReConfig(normalise="no")': "`normalise` of the block `glore` is `'no'`",
    'PairwiseAttention("softmax")': "unknown instantiation `softmax`",
}


def test_values_that_a_setting_cannot_take_are_refused_in_words() -> None:
    """In a process without the run-time type checks of the tests, which would refuse first."""
    program = f"""
import json
from nlprobe.blocks import *
from nlprobe.errors import ConfigError
said = []
for expression in {list(WRONG)!r}:
    try:
        eval(expression)
    except ConfigError as error:
        said.append(str(error))
    else:
        said.append("nothing")
print(json.dumps(said))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for (expression, expected), said in zip(WRONG.items(), json.loads(done.stdout), strict=True):
        assert expected in said, expression
