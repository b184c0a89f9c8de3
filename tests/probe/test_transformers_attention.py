"""Hugging Face models against the attention weights that they return when asked for them."""

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
import transformers
from attention_reference import assert_attention, column, expected_maps
from torch import Tensor, nn

import nlprobe
from nlprobe.probe import Probe

COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VISION = COMMON | {"image_size": 32, "patch_size": 8}
TEXT = COMMON | {"vocab_size": 50, "max_position_embeddings": 64}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build().double().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def pictures() -> Tensor:
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tokens(n: int = 9) -> Tensor:
    return torch.randint(3, 50, (2, n), generator=torch.Generator().manual_seed(2))


def vision(kind: str, **more) -> Callable[[], nn.Module]:
    config = getattr(transformers, f"{kind}Config")(**(VISION | more))
    return lambda: getattr(transformers, f"{kind}Model")(config)


def text(kind: str, **more) -> Callable[[], nn.Module]:
    config = getattr(transformers, f"{kind}Config")(**(TEXT | more))
    return lambda: getattr(transformers, f"{kind}Model")(config)


IMAGE_MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ViT": (vision("ViT"), 1),
    "DeiT": (vision("DeiT"), 2),
    "Dinov2": (vision("Dinov2", mlp_ratio=2), 1),
    "Dinov2WithRegisters": (vision("Dinov2WithRegisters", mlp_ratio=2, num_register_tokens=3), 4),
    "CLIPVision": (vision("CLIPVision"), 1),
}
TEXT_MODELS = {
    "Bert": text("Bert"),
    "Roberta": text("Roberta"),
    "DistilBert": text("DistilBert", dim=32, n_layers=2, n_heads=4, hidden_dim=48),
    "Albert": text("Albert", embedding_size=16),
}
CAUSAL_MODELS = {
    "Llama": text("Llama", num_key_value_heads=2),
    "Mistral": text("Mistral", num_key_value_heads=2, sliding_window=4),
    "GPT2": text("GPT2", n_embd=32, n_layer=2, n_head=4),
}


def eager_weights(model: nn.Module, **inputs: Tensor) -> tuple[Tensor, ...]:
    asked = copy.deepcopy(model)
    asked.set_attn_implementation("eager")
    with torch.no_grad():
        return asked(**inputs, output_attentions=True).attentions


def run(model: nn.Module, **inputs: Tensor) -> Probe:
    with torch.no_grad(), nlprobe.probe(model) as probe:
        model(**inputs)
    return probe


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_models_give_what_their_own_weights_give(name: str, implementation: str) -> None:
    build, prefix = IMAGE_MODELS[name]
    model = seeded(build)
    weights = eager_weights(model, pixel_values=pictures())
    model.set_attn_implementation(implementation)
    probe = run(model, pixel_values=pictures())
    assert len(probe.sites) == len(weights) == 2
    assert {audit.status for audit in probe.audit()} == {"passed"}
    for site, expected in zip(probe.sites, weights, strict=True):
        assert site.prefix == prefix
        for positions, rows in (("all", slice(None)), ("no_prefix", slice(prefix, None))):
            assert_attention(probe.frame(), expected, site=site.name, positions=positions, rows=rows)
    assert set(probe.frame()["quantity"]) == {"input", "key", "query", "prod", "att", "output"}


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_models_give_what_their_own_weights_give(name: str) -> None:
    model = seeded(TEXT_MODELS[name])
    weights = eager_weights(model, input_ids=tokens())
    probe = run(model, input_ids=tokens())
    assert {audit.status for audit in probe.audit()} == {"passed"}
    if name == "Albert":
        assert len(probe.sites) == 1
        calls = [(probe.sites[0].name, call) for call in range(2)]
    else:
        calls = [(site.name, 0) for site in probe.sites]
    for (site, call), expected in zip(calls, weights, strict=True):
        assert_attention(probe.frame(), expected, site=site, call=call)
    assert "output" in set(probe.frame()["quantity"])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", [*TEXT_MODELS, *CAUSAL_MODELS])
def test_padded_texts_are_measured_without_their_padding(name: str, side: str) -> None:
    model = seeded((TEXT_MODELS | CAUSAL_MODELS)[name])
    mask = torch.ones(2, 9, dtype=torch.int64)
    rows = slice(0, 5) if side == "right" else slice(4, 9)
    mask[1, 5:] = 0
    if side == "left":
        mask = mask.flip(1)
    inputs = {"input_ids": tokens(), "attention_mask": mask}
    weights = eager_weights(model, **inputs)
    probe = run(model, **inputs)
    site = probe.sites[0].name
    one = probe.frame().query("image == '1'").assign(image="0")
    support = weights[0][1:2] > 0
    assert_attention(one, weights[0][1:2], site=site, positions="valid", rows=rows, support=support)


@pytest.mark.parametrize("name", CAUSAL_MODELS)
def test_causal_models_have_flat_maps_beside_and_keys_once(name: str) -> None:
    model = seeded(CAUSAL_MODELS[name])
    weights = eager_weights(model, input_ids=tokens())
    probe = run(model, input_ids=tokens())
    frame = probe.frame()
    for site, expected in zip(probe.sites, weights, strict=True):
        assert_attention(frame, expected, site=site.name, support=expected[:, :1] > 0)
    keys = frame.query("quantity == 'key'")["head"].nunique()
    assert keys == (4 if name == "GPT2" else 2)
    assert frame.query("quantity == 'att' and head == '0'")["flat"].between(0.05, 0.4).all()


def test_decoding_one_token_measures_one_query_of_every_head() -> None:
    model = seeded(CAUSAL_MODELS["Llama"])
    argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with torch.no_grad():
        past = model(input_ids=tokens(), use_cache=True)[argument]
        with nlprobe.probe(model) as probe:
            model(input_ids=tokens()[:, :1], **{argument: past})
    att = probe.frame().query("quantity == 'att' and head != 'avg'")
    assert set(att["n_queries"]) == {1}
    assert set(att["n_keys"]) == {10}
    assert att["head"].nunique() == 4


def test_t5_has_self_and_cross_attention_with_position_biases() -> None:
    config = transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    model = seeded(lambda: transformers.T5Model(config))
    probe = run(model, input_ids=tokens(), decoder_input_ids=tokens(5))
    counts = probe.frame().query("quantity == 'att' and head == '0'").groupby("site")[["n_queries", "n_keys"]].first()
    assert sorted(counts.itertuples(index=False, name=None)) == [(5, 5), (5, 9), (9, 9)]
    assert {audit.status for audit in probe.audit()} == {"passed"}
    asked = copy.deepcopy(model)
    asked.set_attn_implementation("eager")
    with torch.no_grad():
        found = asked(input_ids=tokens(), decoder_input_ids=tokens(5), output_attentions=True)
    names = {tuple(row): name for name, row in counts.iterrows()}
    assert_attention(probe.frame(), found.encoder_attentions[0], site=names[(9, 9)])
    assert_attention(probe.frame(), found.cross_attentions[0], site=names[(5, 9)])
    causal = found.decoder_attentions[0]
    assert_attention(probe.frame(), causal, site=names[(5, 5)], support=causal[:, :1] > 0)


def test_detr_has_three_kinds_of_attention_and_padded_pictures() -> None:
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=7,
    )
    model = seeded(lambda: transformers.DetrModel(config))
    mask = torch.ones(2, 32, 32, dtype=torch.int64)
    mask[1, :, 16:] = 0
    inputs = {"pixel_values": pictures(), "pixel_mask": mask}
    probe = run(model, **inputs)
    assert {audit.status for audit in probe.audit()} == {"passed"}
    att = probe.frame().query("quantity == 'att' and head == '0' and image == '1'").set_index("site")
    sizes = {name: (row.n_queries, row.n_keys, row.positions) for name, row in att.iterrows()}
    keys = att["n_keys"].max()
    encoder = next(value for name, value in sizes.items() if "encoder" in name.split("."))
    assert encoder == (keys // 2, keys, "valid")
    assert (7, 7, "all") in sizes.values()
    assert (7, keys, "all") in sizes.values()


def test_swins_windows_are_sets_and_their_padding_is_left_out() -> None:
    config = transformers.SwinConfig(
        image_size=40, patch_size=4, embed_dim=16, depths=[2], num_heads=[4], window_size=4, mlp_ratio=2.0
    )
    model = seeded(lambda: transformers.SwinModel(config))
    images = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    probe = run(model, pixel_values=images)
    assert set(probe.frame()["groups"]) == {9}
    assert set(probe.frame()["positions"]) == {"valid"}
    assert {audit.status for audit in probe.audit()} == {"passed"}
    weights = eager_weights(model, pixel_values=images)
    # the library returns the weights of the last block of a stage, whose windows are shifted by two
    site = "encoder.layers.0.blocks.1.attention"
    record = column(probe.frame(), "att", site=site, head="1", positions="valid")
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[:10, :10] = True
    windows = inside.roll((-2, -2), (0, 1)).view(3, 4, 3, 4).transpose(1, 2).reshape(9, 16)
    values = [expected_maps(weights[0].unflatten(0, (2, 9))[0, at, 1][windows[at]])["avg_dist"] for at in range(9)]
    assert record["avg_dist"] == pytest.approx(sum(values) / 9, rel=1e-6)


def test_half_precision_and_training_are_said_in_the_audit() -> None:
    model = seeded(IMAGE_MODELS["ViT"][0]).bfloat16()
    assert run(model, pixel_values=pictures().bfloat16()).audit()[0].tolerance == 2e-2
    config = transformers.ViTConfig(**VISION, attention_probs_dropout_prob=0.3)
    training = seeded(lambda: transformers.ViTModel(config)).train()
    assert {audit.status for audit in run(training, pixel_values=pictures()).audit()} == {"unverified"}


def test_a_custom_kernel_is_refused_with_the_remedy() -> None:
    def kernel(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):  # type: ignore[no-untyped-def]
        mixed = value + 0 * key + 0 * query
        return mixed.transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("kernel_of_ones_own", kernel)
    model = seeded(IMAGE_MODELS["ViT"][0])
    model.set_attn_implementation("kernel_of_ones_own")
    with pytest.raises(nlprobe.CaptureError, match="ran without an attention product"):
        run(model, pixel_values=pictures())


def test_the_output_is_the_same_with_and_without_a_probe() -> None:
    model = seeded(TEXT_MODELS["Bert"])
    with torch.no_grad():
        expected = model(input_ids=tokens()).last_hidden_state
        with nlprobe.probe(model):
            found = model(input_ids=tokens()).last_hidden_state
    assert torch.equal(found, expected)
