"""The configuration of a network with other blocks at some of its sites."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nlprobe.blocks.settings import BlockConfig
from nlprobe.errors import ConfigError
from nlprobe.models.config import LAYERS, ResNetConfig
from nlprobe.models.insertion import STAGES, Insertion
from nlprobe.models.video_config import VideoConfig


def with_blocks(config: Any, blocks: Mapping[str, BlockConfig]) -> Any:
    """A configuration with other blocks at some sites.

    Args:
        config: Of a residual network, or of one that has a `backbone`, and perhaps a `context` in its head.
        blocks: The new blocks by site.

    Raises:
        ConfigError: a site that the configuration does not have.
    """
    unknown = [site for site in blocks if site not in config.sites()]
    if unknown:
        raise ConfigError(f"the network has no site `{unknown[0]}`", f"its sites are {', '.join(config.sites())}")
    if not hasattr(config, "backbone"):
        return replace(config, insertions=_insertions(config, blocks))
    prefix = "" if isinstance(config, VideoConfig) else "backbone."
    inner = {site.removeprefix(prefix): block for site, block in blocks.items() if site.startswith(prefix)}
    changed = replace(config, backbone=replace(config.backbone, insertions=_insertions(config.backbone, inner)))
    head = [site for site in blocks if not site.startswith(prefix)]
    if head == ["head.context"] and getattr(config, "context", None) is not None:
        changed = replace(changed, context=blocks["head.context"])
    elif head:
        raise ConfigError(f"`{head[0]}` is no place for another block", "leave the site out (--site)")
    return changed


def _insertions(config: ResNetConfig, blocks: Mapping[str, BlockConfig]) -> tuple[Insertion, ...]:
    """Every insertion with the blocks that it keeps, and one for each new block; in the order of the network."""
    found: list[tuple[tuple[int, int], Insertion]] = []
    for insertion in config.insertions:
        stage, layer = STAGES.index(insertion.stage), LAYERS[insertion.stage]
        by_block: dict[BlockConfig, list[int]] = {}
        for index in config.indices(insertion):
            block = blocks.get(f"{layer}.{index}:{insertion.place}", insertion.block)
            by_block.setdefault(block, []).append(index)
        for block, indices in by_block.items():
            places = insertion.blocks if len(by_block) == 1 else tuple(indices)
            found.append(((stage, indices[0]), replace(insertion, block=block, blocks=places)))
    return tuple(insertion for _, insertion in sorted(found, key=lambda each: each[0]))
