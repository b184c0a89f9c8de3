"""Adapters for attention in timm, by qualified names: timm itself is not imported."""

from torch import nn

from nlprobe.probe.adapters.attention_module import AttentionModule
from nlprobe.probe.adapters.torch_attention import SWIN_HIDDEN


def _straight(module: nn.Module) -> bool:
    """Whether nothing lies between A·V and `proj`."""
    return isinstance(getattr(module, "norm", None), nn.Identity) and getattr(module, "gate", None) is None


_ATTENTION = ("timm.layers.attention.Attention", "timm.layers.attention.AttentionRope", "timm.models.eva.EvaAttention")

TIMM_ADAPTERS = (
    AttentionModule("timm.Attention", _ATTENTION, projection="proj", where=_straight),
    AttentionModule("timm.Attention", _ATTENTION),
    AttentionModule(
        "timm.WindowAttention",
        ("timm.models.swin_transformer.WindowAttention", "timm.models.swin_transformer_v2.WindowAttention"),
        projection="proj",
        windows=True,
        hidden_below=SWIN_HIDDEN,
    ),
)
