"""Adapters for attention in timm, by qualified names: timm itself is not imported."""

from torch import nn

from nlprobe.probe.adapters.attention_module import AttentionModule
from nlprobe.probe.adapters.refused import RefusedAttention
from nlprobe.probe.adapters.timm_global_context import TimmGlobalContext
from nlprobe.probe.adapters.timm_non_local import TimmNonLocal
from nlprobe.probe.adapters.timm_pooling import AttentionPool2d, ClassAttention, LatentPool
from nlprobe.probe.adapters.timm_windows import (
    HaloAttention,
    LocallyGroupedAttention,
    MaskUnitAttention,
    NestAttention,
)
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
    "timm.models.vision_transformer_relpos.RelPosAttention",
)
_WINDOWS = (
    "timm.models.swin_transformer.WindowAttention",
    "timm.models.swin_transformer_v2.WindowAttention",
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention",
    "timm.models.davit.WindowAttention",
    "timm.models.gcvit.WindowAttentionGlobal",
    "timm.models.tiny_vit.Attention",
    "timm.models.tnt.Attention",
)

_REFUSED = (
    RefusedAttention(
        ("timm.models.cait.TalkingHeadAttn", "timm.models.efficientformer_v2.Attention2d"),
        "mixes the heads' weights after the softmax (talking heads)",
    ),
    RefusedAttention(("timm.models.convit.GPSA",), "mixes two softmax maps and renormalises the sum"),
    RefusedAttention(("timm.layers.diff_attention.DiffAttention",), "subtracts one softmax map from another"),
    RefusedAttention(
        ("timm.models.volo.OutlookAttention",),
        "predicts weights within small neighbourhoods without keys, and adds the overlapping neighbourhoods up",
    ),
    RefusedAttention(
        (
            "timm.models.xcit.XCA",
            "timm.models.davit.ChannelAttention",
            "timm.models.davit.ChannelAttentionV2",
            "timm.models.edgenext.CrossCovarianceAttn",
        ),
        "attends from channel to channel, so its maps have no positions",
    ),
    RefusedAttention(
        ("timm.models.coat.FactorAttnConvRelPosEnc", "timm.models.mobilevit.LinearSelfAttention"),
        "is linear attention, which has no map from position to position",
    ),
    RefusedAttention(
        ("timm.layers.lambda_layer.LambdaLayer",),
        "turns the context into linear maps (lambdas), and has no map from position to position",
    ),
    RefusedAttention(("timm.models.csatv2.SpatialTransformerBlock",), "attends from image to image of a batch"),
)

TIMM_ADAPTERS = (
    AttentionModule("timm.Attention", _ATTENTION, projection="proj", key_groups="num_kv_groups", where=_straight),
    AttentionModule("timm.Attention", _ATTENTION, key_groups="num_kv_groups"),
    AttentionModule("timm.WindowAttention", _WINDOWS, projection="proj", windows=True, hidden_below=SWIN_HIDDEN),
    AttentionModule(
        "timm.AttentionCl", ("timm.models.maxxvit.AttentionCl",), layout="b h w c", projection="proj", windows=True
    ),
    AttentionModule(
        "timm.Attention2d", ("timm.models.maxxvit.Attention2d",), layout="b c h w", projection="proj", windows=True
    ),
    AttentionModule(
        "timm.sam.Attention",
        ("timm.models.vision_transformer_sam.Attention",),
        layout="b h w c",
        projection="proj",
        windows=True,
    ),
    AttentionModule(
        "timm.reduced attention",
        ("timm.models.pvt_v2.Attention", "timm.models.twins.GlobalSubSampleAttn"),
        projection="proj",
        cross=True,
    ),
    AttentionModule(
        "timm.BottleneckAttn", ("timm.layers.bottleneck_attn.BottleneckAttn",), layout="b c h w", projection="pool"
    ),
    LocallyGroupedAttention(),
    MaskUnitAttention(),
    NestAttention(),
    HaloAttention(),
    ClassAttention(),
    LatentPool(),
    AttentionPool2d(),
    TimmNonLocal(),
    TimmGlobalContext(),
    *_REFUSED,
)
