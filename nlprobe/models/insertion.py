"""Where attention blocks are inserted into a residual network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlprobe.blocks import PLACES, block_config
from nlprobe.blocks.settings import BlockConfig, unknown
from nlprobe.errors import ConfigError

STAGES = ("c2", "c3", "c4", "c5")


@dataclass(frozen=True)
class Insertion:
    """One kind of attention block, and the residual blocks of a stage that get one each.

    Args:
        block: What is inserted.
        stage: `c2`, `c3`, `c4` or `c5`, which are torchvision's `layer1` to `layer4`.
        blocks: `all`, or 0-based indices within the stage; negative ones count from the end, so that (-2,) with
            `after_add` or `after_block` is the paper's "right before the last residual block".
        place: `after_1x1` (after the last norm, before the add), `after_add` (before the ReLU) or `after_block`.

    Raises:
        ConfigError: a stage, place or index list that is not one of these.
    """

    block: BlockConfig
    stage: str
    blocks: str | tuple[int, ...] = "all"
    place: str = "after_1x1"

    def __post_init__(self) -> None:
        if not isinstance(self.block, BlockConfig):
            raise ConfigError(
                f"`block` must be the configuration of a block, such as a NonLocalConfig, not "
                f"`{type(self.block).__name__}`",
                "for settings read from JSON use Insertion.from_dict",
            )
        for what, value, known in (("stage", self.stage, STAGES), ("place", self.place, PLACES)):
            if value not in known:
                raise unknown(f"{what} of a residual network", value, known)
        if self.blocks == "all":
            return
        indices_given = isinstance(self.blocks, tuple) and len(self.blocks) > 0
        if not indices_given or not all(type(index) is int for index in self.blocks):
            raise ConfigError(
                f"`blocks` of an insertion cannot be `{self.blocks!r}`",
                "give `all` or a tuple of indices such as (-2,)",
            )

    def indices(self, count: int) -> tuple[int, ...]:
        """The 0-based indices in a stage of `count` residual blocks, in ascending order.

        Raises:
            ConfigError: an index outside of the stage, or one block named twice.
        """
        if isinstance(self.blocks, str):
            return tuple(range(count))
        for index in self.blocks:
            if not -count <= index < count:
                raise ConfigError(
                    f"stage `{self.stage}` has {count} residual blocks, so there is no block `{index}`",
                    f"use an index from {-count} to {count - 1}",
                )
        indices = sorted(index % count for index in self.blocks)
        if len(set(indices)) < len(indices):
            raise ConfigError(
                f"`blocks={self.blocks}` names a residual block of `{self.stage}` twice: the stage has {count}",
                "name every block once",
            )
        return tuple(indices)

    def as_dict(self) -> dict[str, Any]:
        """A description that JSON can hold."""
        return {
            "block": self.block.as_dict(),
            "stage": self.stage,
            "blocks": self.blocks if isinstance(self.blocks, str) else list(self.blocks),
            "place": self.place,
        }

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Insertion":
        """The insertion that `as_dict` described.

        Raises:
            ConfigError: a key or value that is not understood, or one that is missing.
        """
        settings = dict(settings)
        known = ("block", "stage", "blocks", "place")
        for key in settings:
            if key not in known:
                raise unknown("setting of an insertion", key, known)
        for key in ("block", "stage"):
            if key not in settings:
                raise ConfigError(f"an insertion without `{key}`", f"give {', '.join(f'`{each}`' for each in known)}")
        block = block_config(settings.pop("block"))
        if isinstance(settings.get("blocks"), list):
            settings["blocks"] = tuple(settings["blocks"])
        return cls(block=block, **settings)
