"""Attention and context blocks: non-local, global context, context operators of segmentation, channel gates."""

from nlprobe.blocks.asymmetric import (
    AsymmetricFusion,
    AsymmetricFusionConfig,
    AsymmetricPyramid,
    AsymmetricPyramidConfig,
)
from nlprobe.blocks.attention import INSTANTIATIONS, SOFTMAX_INSTANTIATIONS, PairwiseAttention
from nlprobe.blocks.build import block_config, build_block
from nlprobe.blocks.cbam import CBAM, CBAMConfig, ChannelGate, SpatialGate
from nlprobe.blocks.context import ContextBlock, ContextConfig
from nlprobe.blocks.criss_cross import CrissCross, CrissCrossAttention, CrissCrossConfig
from nlprobe.blocks.disentangled import Disentangled, DisentangledConfig, UnaryTerm
from nlprobe.blocks.dual import ChannelAttention, ChannelAttentionConfig, PositionAttention, PositionAttentionConfig
from nlprobe.blocks.gather_excite import GatherExcite, GatherExciteConfig
from nlprobe.blocks.glore import GloRe, GloReConfig
from nlprobe.blocks.non_local import NonLocal, NonLocalConfig
from nlprobe.blocks.object_context import ObjectContext, ObjectContextConfig
from nlprobe.blocks.places import PLACES
from nlprobe.blocks.point_wise import PointWise, PointWiseBranch, PointWiseConfig, SourceAttention
from nlprobe.blocks.row_transform import RowTransform
from nlprobe.blocks.rows import to_map, to_rows
from nlprobe.blocks.squeeze_excitation import SqueezeExcitation, SqueezeExcitationConfig

__all__ = [
    "CBAM",
    "INSTANTIATIONS",
    "PLACES",
    "SOFTMAX_INSTANTIATIONS",
    "AsymmetricFusion",
    "AsymmetricFusionConfig",
    "AsymmetricPyramid",
    "AsymmetricPyramidConfig",
    "CBAMConfig",
    "ChannelAttention",
    "ChannelAttentionConfig",
    "ChannelGate",
    "ContextBlock",
    "ContextConfig",
    "CrissCross",
    "CrissCrossAttention",
    "CrissCrossConfig",
    "Disentangled",
    "DisentangledConfig",
    "GatherExcite",
    "GatherExciteConfig",
    "GloRe",
    "GloReConfig",
    "NonLocal",
    "NonLocalConfig",
    "ObjectContext",
    "ObjectContextConfig",
    "PairwiseAttention",
    "PointWise",
    "PointWiseBranch",
    "PointWiseConfig",
    "PositionAttention",
    "PositionAttentionConfig",
    "RowTransform",
    "SourceAttention",
    "SpatialGate",
    "SqueezeExcitation",
    "SqueezeExcitationConfig",
    "UnaryTerm",
    "block_config",
    "build_block",
    "to_map",
    "to_rows",
]
