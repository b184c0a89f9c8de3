"""One adapter for each kind of attention; an adapter says where queries, keys, values, scale and output are."""

from nlprobe.probe.adapters.asymmetric import AsymmetricAdapter
from nlprobe.probe.adapters.attention_module import AttentionModule, Call
from nlprobe.probe.adapters.context import ContextAdapter, SqueezeExcitationAdapter
from nlprobe.probe.adapters.criss_cross import CrissCrossAdapter
from nlprobe.probe.adapters.disentangled import DisentangledAdapter
from nlprobe.probe.adapters.dual import ChannelAttentionAdapter, PositionAttentionAdapter
from nlprobe.probe.adapters.gates import CBAMAdapter, GatherExciteAdapter
from nlprobe.probe.adapters.glore import GloReAdapter
from nlprobe.probe.adapters.non_local import NonLocalAdapter
from nlprobe.probe.adapters.object_context import ObjectContextAdapter
from nlprobe.probe.adapters.point_wise import PointWiseAdapter
from nlprobe.probe.adapters.protocol import (
    Adapter,
    Capture,
    CrossCapture,
    Deliver,
    MaplessCapture,
    PairwiseCapture,
    SingleMapCapture,
)
from nlprobe.probe.adapters.timm_attention import TIMM_ADAPTERS
from nlprobe.probe.adapters.torch_attention import TORCH_ADAPTERS
from nlprobe.probe.adapters.transformers_attention import TRANSFORMERS_ADAPTERS

ADAPTERS: tuple[Adapter, ...] = (
    NonLocalAdapter(),
    ContextAdapter(),
    CrissCrossAdapter(),
    DisentangledAdapter(),
    PositionAttentionAdapter(),
    ChannelAttentionAdapter(),
    ObjectContextAdapter(),
    AsymmetricAdapter(),
    PointWiseAdapter(),
    SqueezeExcitationAdapter(),
    CBAMAdapter(),
    GatherExciteAdapter(),
    GloReAdapter(),
    *TORCH_ADAPTERS,
    *TIMM_ADAPTERS,
    *TRANSFORMERS_ADAPTERS,
)
"""Tried in order; the first that matches a module takes it."""

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AttentionModule",
    "CBAMAdapter",
    "Call",
    "Capture",
    "ContextAdapter",
    "CrissCrossAdapter",
    "CrossCapture",
    "Deliver",
    "GatherExciteAdapter",
    "GloReAdapter",
    "MaplessCapture",
    "NonLocalAdapter",
    "PairwiseCapture",
    "PointWiseAdapter",
    "SingleMapCapture",
    "SqueezeExcitationAdapter",
]
