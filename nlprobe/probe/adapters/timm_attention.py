"""Adapters for attention in timm, by qualified names: timm itself is not imported."""

from torch import nn

from nlprobe.probe.adapters.attention_module import AttentionModule
from nlprobe.probe.adapters.timm_global_context import TimmGlobalContext
from nlprobe.probe.adapters.torch_attention import SWIN_HIDDEN


def _straight(module: nn.Module) -> bool:
    """Whether nothing lies between A·V and `proj`."""
    norm = getattr(module, "norm", None)
    return (norm is None or isinstance(norm, nn.Identity)) and getattr(module, "gate", None) is None


_ATTENTION = (
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.models.eva.EvaAttention",
    "timm.models.beit.Attention",
)
_WINDOWS = (
    "timm.models.swin_transformer.WindowAttention",
    "timm.models.swin_transformer_v2.WindowAttention",
    "timm.models.davit.WindowAttention",
)

TIMM_ADAPTERS = (
    AttentionModule("timm.Attention", _ATTENTION, projection="proj", key_groups="num_kv_groups", where=_straight),
    AttentionModule("timm.Attention", _ATTENTION, key_groups="num_kv_groups"),
    AttentionModule("timm.WindowAttention", _WINDOWS, projection="proj", windows=True, hidden_below=SWIN_HIDDEN),
    AttentionModule(
        "timm.AttentionCl", ("timm.models.maxxvit.AttentionCl",), layout="b h w c", projection="proj", windows=True
    ),
    AttentionModule("timm.Attention2d", ("timm.models.maxxvit.Attention2d",), layout="b c h w", windows=True),
    AttentionModule(
        "timm.sam.Attention", ("timm.models.vision_transformer_sam.Attention",), layout="b h w c", windows=True
    ),
    AttentionModule(
        "timm.reduced attention",
        ("timm.models.pvt_v2.Attention", "timm.models.twins.GlobalSubSampleAttn"),
        projection="proj",
        cross=True,
    ),
    AttentionModule("timm.BottleneckAttn", ("timm.layers.bottleneck_attn.BottleneckAttn",), layout="b c h w"),
    AttentionModule("timm.LocallyGroupedAttn", ("timm.models.twins.LocallyGroupedAttn",), windows=True),
    AttentionModule(
        "timm.NonLocalAttn",
        ("timm.layers.non_local_attn.NonLocalAttn",),
        output="norm",
        layout="b c h w",
        residual=True,
        settings=("scale",),
    ),
    TimmGlobalContext(),
)
