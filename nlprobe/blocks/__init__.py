"""Attention and context blocks: the non-local block in four instantiations, global context, and others of the field."""

from nlprobe.blocks.attention import INSTANTIATIONS, SOFTMAX_INSTANTIATIONS, PairwiseAttention
from nlprobe.blocks.build import block_config, build_block
from nlprobe.blocks.context import ContextBlock, ContextConfig
from nlprobe.blocks.criss_cross import CrissCross, CrissCrossAttention, CrissCrossConfig
from nlprobe.blocks.non_local import NonLocal, NonLocalConfig
from nlprobe.blocks.places import PLACES
from nlprobe.blocks.rows import to_map, to_rows

__all__ = [
    "INSTANTIATIONS",
    "PLACES",
    "SOFTMAX_INSTANTIATIONS",
    "ContextBlock",
    "ContextConfig",
    "CrissCross",
    "CrissCrossAttention",
    "CrissCrossConfig",
    "NonLocal",
    "NonLocalConfig",
    "PairwiseAttention",
    "block_config",
    "build_block",
    "to_map",
    "to_rows",
]
