import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from attention_reference import assert_attention, column, expected_flat, expected_logit_std, expected_maps
from torch import Tensor, nn

import nlprobe
from nlprobe.errors import CaptureError
from nlprobe.probe import Probe

B, N, C, H = 3, 6, 16, 4


def projected(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys by head, written out: (b, h, n, d)."""
    if module.in_proj_weight is not None:
        weight_q, weight_k, _ = module.in_proj_weight.chunk(3)
    else:
        weight_q, weight_k = module.q_proj_weight, module.k_proj_weight
    bias_q, bias_k, _ = module.in_proj_bias.chunk(3)
    heads = module.num_heads
    return tuple(
        F.linear(rows, weight, bias).unflatten(2, (heads, -1)).transpose(1, 2)
        for rows, weight, bias in ((query, weight_q, bias_q), (key, weight_k, bias_k))
    )


def attention(**settings) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(C, H, batch_first=True, dtype=torch.float64, **settings).eval()
    nn.init.normal_(module.in_proj_bias)
    if module.in_proj_weight is not None:
        nn.init.normal_(module.in_proj_weight, std=0.5)
    return module


def images(n: int = N, c: int = C, seed: int = 1) -> Tensor:
    return torch.randn(B, n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def probed(module: nn.Module, *args: Tensor, **kwargs) -> Probe:
    with torch.no_grad(), nlprobe.probe(module) as probe:
        module(*args, **kwargs)
    return probe


CAUSAL = torch.ones(N, N, dtype=torch.bool).triu(1)
PADDING = torch.zeros(B, N, dtype=torch.bool)
PADDING[1, 4:] = True
PADDING[2, 2:] = True
MASKS: dict[str, dict] = {
    "no mask": {},
    "causal": {"attn_mask": CAUSAL},
    "causal hint": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(N).double(), "is_causal": True},
    "bias": {"attn_mask": torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(5))},
    "bias by head": {
        "attn_mask": torch.randn(B * H, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    },
}


@pytest.mark.parametrize("need_weights", [False, True], ids=["fused", "written out"])
@pytest.mark.parametrize("mask", MASKS)
def test_multihead_attention_gives_what_its_own_weights_give(mask: str, need_weights: bool) -> None:
    module, x = attention(), images()
    settings = MASKS[mask]
    if need_weights:
        settings = {name: value for name, value in settings.items() if name != "is_causal"}
    with torch.no_grad():
        plain = {name: value for name, value in settings.items() if name != "is_causal"}
        output, weights = module(x, x, x, average_attn_weights=False, **plain)
    query, key = projected(module, x, x)
    support = ~CAUSAL[None, None] if mask.startswith("causal") else None
    frame = probed(module, x, x, x, need_weights=need_weights, **settings).frame()
    assert_attention(frame, weights, site=".", query=query, key=key, x=x, output=output, support=support)
    record = column(frame, "att", site=".", head="1", image=2)
    product = column(frame, "prod", site=".", head="1", image=2)
    bias = settings.get("attn_mask")
    if mask.startswith("causal"):
        assert record["flat"] == pytest.approx(expected_flat(~CAUSAL), rel=1e-9)
    elif bias is not None:
        assert math.isnan(record["flat"])
    logits = (query[2, 1] @ key[2, 1].T / math.sqrt(C // H)).detach()
    if mask.startswith("bias"):
        logits = logits + (bias if bias.dim() == 2 else bias.unflatten(0, (B, H))[2, 1])
    seen = ~CAUSAL if mask.startswith("causal") else None
    assert product["logit_std"] == pytest.approx(expected_logit_std(logits, seen), rel=1e-9)
    assert math.isnan(product["pairwise"]) == (mask != "no mask")


@pytest.mark.parametrize("need_weights", [False, True], ids=["fused", "written out"])
def test_padding_leaves_queries_out_and_keys_never(need_weights: bool) -> None:
    module, x = attention(), images()
    with torch.no_grad():
        output, weights = module(x, x, x, key_padding_mask=PADDING, average_attn_weights=False)
    query, key = projected(module, x, x)
    frame = probed(module, x, x, x, key_padding_mask=PADDING, need_weights=need_weights).frame()
    assert set(frame["positions"]) == {"valid"}
    for image, length in enumerate((6, 4, 2)):
        part = frame[frame["image"] == str(image)].assign(image="0")
        one = slice(image, image + 1)
        assert_attention(
            part,
            weights[one],
            site=".",
            query=query[one],
            key=key[one],
            x=x[one],
            output=output[one],
            support=~PADDING[one, None, None],
            positions="valid",
            rows=slice(0, length),
        )
        assert set(part.loc[part["quantity"] == "att", "n_queries"]) == {length}
        assert set(part.loc[part["quantity"] == "att", "n_keys"]) == {N}


def test_cross_attention_has_its_own_number_of_keys() -> None:
    module, x, source = attention(kdim=10, vdim=12), images(), images(9, 10, seed=2)
    values = images(9, 12, seed=3)
    with torch.no_grad():
        output, weights = module(x, source, values, average_attn_weights=False)
    query, key = projected(module, x, source)
    frame = probed(module, x, source, values).frame()
    assert_attention(frame, weights, site=".", query=query, key=key, x=x, output=output)
    assert set(frame.loc[frame["quantity"] == "att", "n_keys"]) == {9}


def test_as_many_keys_as_queries_in_cross_attention_are_not_taken_for_padding() -> None:
    module, x, source = attention(), images(), images(seed=2)
    frame = probed(module, x, source, source, key_padding_mask=PADDING).frame()
    assert set(frame["positions"]) == {"all"}


def test_sequences_first_are_the_same_attention() -> None:
    first, x = attention(), images()
    second = copy.deepcopy(first)
    second.batch_first = False
    moved = x.transpose(0, 1)
    expected, found = probed(first, x, x, x).frame(), probed(second, moved, moved, moved).frame()
    torch.testing.assert_close(torch.tensor(found["avg_dist"]), torch.tensor(expected["avg_dist"]))


def test_added_keys_are_measured_like_any_other() -> None:
    module, x = attention(add_bias_kv=True, add_zero_attn=True), images()
    with torch.no_grad():
        output, weights = module(x, x, x, average_attn_weights=False)
    assert weights.shape[-1] == N + 2
    assert_attention(probed(module, x, x, x, need_weights=False).frame(), weights, site=".", x=x, output=output)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_fast_path_of_the_encoder_is_measured_and_not_skipped(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(C, H, 32, batch_first=True, norm_first=norm_first, dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x = images()
    with torch.no_grad():
        encoder.use_nested_tensor = False  # a warning of torch's own
        plain = encoder(x, src_key_padding_mask=PADDING)
        encoder.use_nested_tensor = not norm_first
        with nlprobe.probe(encoder) as probe:
            found = encoder(x, src_key_padding_mask=PADDING)
            encoder(x, src_key_padding_mask=PADDING)
    assert [site.name for site in probe.sites] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert {audit.status for audit in probe.audit()} == {"passed"}
    kept = ~PADDING
    torch.testing.assert_close(found[kept], plain[kept])
    first = encoder.layers[0]
    inner = first.norm1(x) if norm_first else x
    with torch.no_grad():
        _, weights = first.self_attn(inner, inner, inner, key_padding_mask=PADDING, average_attn_weights=False)
    part = probe.frame().query("site == 'layers.0.self_attn' and image == '1'").assign(image="0")
    support = kept[1:2, None, None]
    assert_attention(
        part, weights[1:2], site="layers.0.self_attn", support=support, positions="valid", rows=slice(0, 4)
    )


def test_a_whole_transformer_has_self_and_cross_attention() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(C, H, 1, 1, 32, batch_first=True, dtype=torch.float64).eval()
    probe = probed(model, images(7), images(5))
    counts = probe.frame().query("quantity == 'att'").groupby("site")[["n_queries", "n_keys"]].first()
    assert counts.loc["encoder.layers.0.self_attn"].tolist() == [7, 7]
    assert counts.loc["decoder.layers.0.self_attn"].tolist() == [5, 5]
    assert counts.loc["decoder.layers.0.multihead_attn"].tolist() == [5, 7]


def test_dropout_in_training_is_said_to_be_unverified() -> None:
    module, x = attention(dropout=0.5).train(), images()
    probe = probed(module, x, x, x, need_weights=False)
    assert probe.audit()[0].status == "unverified"
    with torch.no_grad():
        _, weights = module.eval()(x, x, x, average_attn_weights=False)
    record = column(probe.frame(), "att", site=".", head="0")
    assert_attention(probe.frame(), weights, site=".")
    assert record["n_queries"] == N


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_and_audited_at_its_own_tolerance(dtype: torch.dtype) -> None:
    module, x = attention().to(dtype), images().to(dtype)
    probe = probed(module, x, x, x, need_weights=False)
    assert probe.audit()[0].tolerance == 2e-2
    assert probe.audit()[0].status == "passed"


def test_autocast_around_the_model_is_measured() -> None:
    module, x = attention().float(), images().float()
    with torch.autocast("cpu", torch.bfloat16):
        probe = probed(module, x, x, x, need_weights=False)
    assert probe.audit()[0].tolerance == 2e-2


TWISTS: dict[str, Callable[[Tensor, nn.MultiheadAttention], Tensor]] = {
    "other scale": lambda y, module: y * 1.01,
    "shifted output": lambda y, module: y + 0.01,
    "another order": lambda y, module: y.flip(1),
}


@pytest.mark.parametrize("twist", TWISTS)
def test_an_output_that_is_not_w_o_of_the_attention_is_caught(twist: str) -> None:
    module, x = attention(), images()
    module.register_forward_hook(lambda one, args, result: (TWISTS[twist](result[0], one), result[1]))
    with pytest.raises(CaptureError, match="`W_o` is off"):
        probed(module, x, x, x)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_nothing_is_left_behind_on_success_and_on_exceptions() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(C, H, 32, batch_first=True), 1).eval()
    probed(encoder, images().float())
    assert hooks_of(encoder) == 0
    with pytest.raises(AssertionError, match="embedding dimension"), nlprobe.probe(encoder):
        encoder(torch.randn(2, 5, 3))
    assert hooks_of(encoder) == 0
    assert torch.overrides._get_current_function_mode() is None


def test_torchvision_vit_has_a_class_token_and_a_grid() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    seen = {}
    block = model.encoder.layers[1].self_attention
    handle = block.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    probe = probed(model, x)
    handle.remove()
    rows = seen["x"]
    with torch.no_grad():
        output, weights = block(rows, rows, rows, average_attn_weights=False)
    query, key = projected(block, rows, rows)
    site = "encoder.layers.encoder_layer_1.self_attention"
    for positions, chosen in (("all", slice(None)), ("no_prefix", slice(1, None))):
        assert_attention(
            probe.frame(),
            weights,
            site=site,
            query=query,
            key=key,
            x=rows,
            output=output,
            positions=positions,
            rows=chosen,
        )
    maps = nlprobe.attention_map(model, x[0], [(3, 30)], site=site, head=2)
    assert maps.grid == (4, 4)
    torch.testing.assert_close(torch.tensor(maps.maps[0]).flatten(), weights[0, 2, 1 + 3, 1:], rtol=1e-9, atol=0)


def swin_windows(x: Tensor, window: int, shift: int) -> Tensor:
    """(b, h, w, c) → (b · windows, window², c), written out position by position."""
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    rows = []
    for image in padded:
        for top in range(0, padded.shape[1], window):
            for left in range(0, padded.shape[2], window):
                rows.append(
                    torch.stack(
                        [
                            image[(top + dy + shift) % padded.shape[1], (left + dx + shift) % padded.shape[2]]
                            for dy in range(window)
                            for dx in range(window)
                        ]
                    )
                )
    return torch.stack(rows)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 12), (7, 10)], ids=["whole windows", "padded"])
@pytest.mark.parametrize("version", [1, 2])
def test_swin_windows_are_sets_of_their_own(version: int, size: tuple[int, int], shift: int) -> None:
    torch.manual_seed(0)
    swin = torchvision.models.swin_transformer
    kind = swin.ShiftedWindowAttention if version == 1 else swin.ShiftedWindowAttentionV2
    module = kind(C, [4, 4], [shift, shift], H).double().eval()
    x = torch.randn(2, *size, C, dtype=torch.float64)
    probe = probed(module, x)
    windows = swin_windows(x, 4, shift)
    with torch.no_grad():
        bias = module.qkv.bias.clone()
        if version == 2:
            bias[C : 2 * C] = 0
        query, key, _ = F.linear(windows, module.qkv.weight, bias).unflatten(2, (3, H, -1)).permute(2, 0, 3, 1, 4)
        if version == 2:
            query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
            scale = module.logit_scale.clamp(max=math.log(100.0)).exp()
        else:
            scale = 1 / math.sqrt(C // H)
        logits = query @ key.mT * scale + module.get_relative_position_bias()
        inside = swin_windows(torch.ones(2, *size, 1, dtype=torch.float64), 4, shift)[..., 0] > 0
        regions = torch.zeros(1, -(-size[0] // 4) * 4, -(-size[1] // 4) * 4, 1, dtype=torch.float64)
        if shift:
            for axis, length in ((1, regions.shape[1]), (2, regions.shape[2])):
                wrapped = torch.arange(length).roll(-shift) >= 0
                wrapped = torch.zeros(length)
                wrapped[-4:-shift], wrapped[-shift:] = 1, 2
                regions = regions + (3 ** (axis - 1)) * wrapped.roll(shift).view(1, -1, 1, 1).transpose(1, axis)
        region = swin_windows(regions.expand(2, -1, -1, -1), 4, shift)[..., 0]
        support = region[:, None, :, None] == region[:, None, None, :]
        weights = logits.masked_fill(~support, -torch.inf).softmax(-1)
    per_image = len(windows) // 2
    frame = probe.frame()
    assert set(frame["groups"]) == {per_image}
    assert set(frame["positions"]) == ({"all"} if bool(inside.all()) else {"valid"})
    record = column(frame, "att", site=".", head="1", image=1, positions=frame["positions"].iloc[0])
    values = [
        expected_maps(weights[w, 1][inside[w]], support[w, 0][inside[w]]) for w in range(per_image, 2 * per_image)
    ]
    for name in ("avg_dist", "entropy", "n_eff", "shared"):
        expected = torch.tensor([value[name] for value in values]).nanmean()
        assert record[name] == pytest.approx(float(expected), rel=1e-6), name
