"""Blocks from their configuration, as it stands in a checkpoint or a file."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from nlprobe.blocks.asymmetric import AsymmetricPyramid, AsymmetricPyramidConfig
from nlprobe.blocks.cbam import CBAM, CBAMConfig
from nlprobe.blocks.context import ContextBlock, ContextConfig
from nlprobe.blocks.criss_cross import CrissCross, CrissCrossConfig
from nlprobe.blocks.disentangled import Disentangled, DisentangledConfig
from nlprobe.blocks.dual import ChannelAttention, ChannelAttentionConfig, PositionAttention, PositionAttentionConfig
from nlprobe.blocks.gather_excite import GatherExcite, GatherExciteConfig
from nlprobe.blocks.glore import GloRe, GloReConfig
from nlprobe.blocks.non_local import NonLocal, NonLocalConfig
from nlprobe.blocks.object_context import ObjectContext, ObjectContextConfig
from nlprobe.blocks.point_wise import PointWise, PointWiseConfig
from nlprobe.blocks.settings import BlockConfig, unknown
from nlprobe.blocks.squeeze_excitation import SqueezeExcitation, SqueezeExcitationConfig
from nlprobe.errors import ConfigError

Make = Callable[[int, int, Any], nn.Module]
"""From channels, spatial dimensions and settings to a block."""


def _of_images(block: Callable[[int, Any], nn.Module], does: str = "pools over") -> Make:
    """How a block is made that takes maps of two dimensions only, because it `does` something to images."""

    def make(channels: int, dimension: int, config: BlockConfig) -> nn.Module:
        if dimension != 2:
            raise ConfigError(f"`{config.block}` {does} images, not over {dimension} dimensions", "take another block")
        return block(channels, config)

    return make


_BLOCKS: dict[str, tuple[type[BlockConfig], Make]] = {
    NonLocalConfig.block: (NonLocalConfig, NonLocal),
    ContextConfig.block: (ContextConfig, lambda channels, dimension, config: ContextBlock(channels, config)),
    CrissCrossConfig.block: (CrissCrossConfig, CrissCross),
    DisentangledConfig.block: (DisentangledConfig, lambda channels, _, config: Disentangled(channels, config)),
    PositionAttentionConfig.block: (
        PositionAttentionConfig,
        lambda channels, _, config: PositionAttention(channels, config),
    ),
    ChannelAttentionConfig.block: (
        ChannelAttentionConfig,
        lambda channels, _, config: ChannelAttention(channels, config),
    ),
    ObjectContextConfig.block: (ObjectContextConfig, lambda channels, _, config: ObjectContext(channels, config)),
    PointWiseConfig.block: (PointWiseConfig, PointWise),
    AsymmetricPyramidConfig.block: (AsymmetricPyramidConfig, _of_images(AsymmetricPyramid)),
    SqueezeExcitationConfig.block: (
        SqueezeExcitationConfig,
        lambda channels, _, config: SqueezeExcitation(channels, config),
    ),
    CBAMConfig.block: (CBAMConfig, _of_images(CBAM, "convolves over")),
    GatherExciteConfig.block: (GatherExciteConfig, _of_images(GatherExcite, "gathers over")),
    GloReConfig.block: (GloReConfig, lambda channels, _, config: GloRe(channels, config)),
}

CONFIGS: dict[str, type[BlockConfig]] = {name: config for name, (config, _) in _BLOCKS.items()}
"""The class of settings by the name of the block; each block takes one feature map and gives one of the same shape."""


def block_config(settings: Mapping[str, Any]) -> BlockConfig:
    """The configuration that `as_dict` wrote; which block it is for stands under `block`.

    Raises:
        ConfigError: no or an unknown `block`, an unknown key, a value that the setting cannot take.
    """
    if "block" not in settings:
        raise ConfigError("a block's settings do not say which block", f"add `block`: {' or '.join(CONFIGS)}")
    if settings["block"] not in CONFIGS:
        raise unknown("block", settings["block"], CONFIGS)
    return CONFIGS[settings["block"]].from_dict(settings)


def build_block(kind: str, channels: int, dimension: int, config: BlockConfig | Mapping[str, Any]) -> nn.Module:
    """A new block.

    Args:
        kind: The block's name, such as "non_local" or "context".
        channels: C of the feature map.
        dimension: Its spatial dimensions; some blocks take any.
        config: The block's settings, as its configuration class or as `as_dict` writes them.

    Raises:
        ConfigError: an unknown kind, settings of another kind, or a map of other dimensions than the block takes.
    """
    if kind not in _BLOCKS:
        raise unknown("block", kind, _BLOCKS)
    known, make = _BLOCKS[kind]
    if isinstance(config, Mapping):
        config = known.from_dict(config)
    if config.block != kind:
        raise ConfigError(f"settings of the block `{config.block}` given for `{kind}`", f"pass a {known.__name__}")
    return make(channels, dimension, config)
