"""Adapters for attention in Hugging Face `transformers`, by qualified names: the package is not imported."""

from nlprobe.probe.adapters.attention_module import AttentionModule

TRANSFORMERS_ADAPTERS = (
    AttentionModule(
        "transformers.ViTAttention",
        ("transformers.models.vit.modeling_vit.ViTAttention",),
        heads="num_attention_heads",
        projection="o_proj",
    ),
)
