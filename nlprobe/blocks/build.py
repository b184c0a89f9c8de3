"""Blocks from their configuration, as it stands in a checkpoint or a file."""

from collections.abc import Mapping
from typing import Any

from nlprobe.blocks.context import ContextBlock, ContextConfig
from nlprobe.blocks.non_local import NonLocal, NonLocalConfig
from nlprobe.blocks.settings import unknown
from nlprobe.errors import ConfigError

CONFIGS: dict[str, type[NonLocalConfig] | type[ContextConfig]] = {
    NonLocalConfig.block: NonLocalConfig,
    ContextConfig.block: ContextConfig,
}


def block_config(settings: Mapping[str, Any]) -> NonLocalConfig | ContextConfig:
    """The configuration that `as_dict` wrote; which block it is for stands under `block`.

    Raises:
        ConfigError: no or an unknown `block`, an unknown key, a value that the setting cannot take.
    """
    if "block" not in settings:
        raise ConfigError("a block's settings do not say which block", f"add `block`: {' or '.join(CONFIGS)}")
    if settings["block"] not in CONFIGS:
        raise unknown("block", settings["block"], CONFIGS)
    return CONFIGS[settings["block"]].from_dict(settings)


def build_block(
    kind: str, channels: int, dimension: int, config: NonLocalConfig | ContextConfig | Mapping[str, Any]
) -> NonLocal | ContextBlock:
    """A new block.

    Args:
        kind: "non_local" or "context".
        channels: C of the feature map.
        dimension: Its spatial dimensions; a context block takes any.
        config: The block's settings, as its configuration class or as `as_dict` writes them.

    Raises:
        ConfigError: an unknown kind, or settings of another kind.
    """
    if kind not in CONFIGS:
        raise unknown("block", kind, CONFIGS)
    if isinstance(config, Mapping):
        config = CONFIGS[kind].from_dict(config)
    if config.block != kind:
        raise ConfigError(
            f"settings of the block `{config.block}` given for `{kind}`", f"pass a {CONFIGS[kind].__name__}"
        )
    if isinstance(config, NonLocalConfig):
        return NonLocal(channels, dimension, config)
    return ContextBlock(channels, config)
