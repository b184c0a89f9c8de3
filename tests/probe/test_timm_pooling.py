"""timm's class tokens, latents and pools against the weights of their own written-out paths, in float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from attention_reference import WrittenOutPath, assert_attention, assert_windows
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.attention_pool2d import AttentionPool2d, RotAttentionPool2d
from timm.models.cait import ClassAttn
from timm.models.crossvit import CrossAttention
from timm.models.volo import ClassAttention
from timm_models import B, pictures, run, seeded
from torch import Tensor, nn

import nlprobe

QUANTITIES = {"input", "key", "query", "prod", "att", "output"}


def tokens(count: int = 9, channels: int = 16) -> Tensor:
    return torch.randn(B, count, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("cls", [ClassAttn, ClassAttention, CrossAttention], ids=["cait", "volo", "crossvit"])
def test_a_class_token_is_one_query_over_all_positions(cls: type[nn.Module]) -> None:
    module = seeded(cls(16, num_heads=2, qkv_bias=True))
    expected = WrittenOutPath(module, "").of(module, tokens())
    probe = run(module, tokens())
    assert set(probe.audit()[0].errors) == {"A·V", "W_o"}
    assert set(probe.frame().query("quantity != 'key'")["n_queries"]) == {1}
    parts = {part: expected[part].unsqueeze(1) for part in ("weights", "query", "key")}
    rows = {"x": expected["x"][:, None, :1], "output": expected["output"].unsqueeze(1)}
    assert_windows(probe.frame(), site=".", **parts, **rows)


@pytest.mark.parametrize(
    "settings",
    [{}, {"latent_len": 3, "pool_type": ""}, {"latent_len": 3, "latent_dim": 8, "qk_norm": True}, {"out_features": 0}],
    ids=["one", "three", "narrow", "without projection"],
)
def test_latents_are_the_queries_and_their_own_input(settings: dict[str, object]) -> None:
    module = seeded(AttentionPoolLatent(16, num_heads=2, **settings))
    projected: list[Tensor] = []
    handle = module.proj.register_forward_hook(lambda _, args, result: projected.append(result))
    expected = WrittenOutPath(module, "").of(module, tokens())
    handle.remove()
    probe = run(module, tokens())
    assert set(probe.audit()[0].errors) == {"A·V", "W_o"}
    parts = {part: expected[part].unsqueeze(1) for part in ("weights", "query", "key")}
    latents = module.latent.detach().expand(B, -1, -1)
    assert_windows(probe.frame(), site=".", x=latents[:, None], output=projected[0][:, None], **parts)
    assert set(probe.frame()["positions"]) == {"all"}


POOLS: dict[str, Callable[[], nn.Module]] = {
    "learnt places": partial(AttentionPool2d, 16, feat_size=(3, 4), num_heads=2, out_features=8),
    "separate maps": partial(AttentionPool2d, 16, feat_size=(3, 4), num_heads=2, qkv_separate=True, pool_type=""),
    "class token": partial(AttentionPool2d, 16, feat_size=(3, 4), num_heads=2, class_token=True),
    "rotary": partial(RotAttentionPool2d, 16, ref_feat_size=(3, 4), num_heads=2),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_over_a_feature_map_have_their_first_row_as_prefix(name: str) -> None:
    module = seeded(POOLS[name]())
    x = pictures(3, 16, 4)
    ends: dict[str, Tensor] = {}
    first = module.q if module.qkv is None else module.qkv
    handles = [
        first.register_forward_hook(lambda _, args, result: ends.__setitem__("x", args[0])),
        module.proj.register_forward_hook(lambda _, args, result: ends.__setitem__("output", result)),
    ]
    expected = WrittenOutPath(module, "").of(module, x)
    for handle in handles:
        handle.remove()
    probe = run(module, x)
    assert set(probe.audit()[0].errors) == {"A·V", "W_o"}
    assert set(probe.frame()["quantity"]) == QUANTITIES
    assert probe.sites[0].prefix == 1
    for positions, rows in (("all", slice(None)), ("no_prefix", slice(1, None))):
        parts = {part: expected[part] for part in ("weights", "query", "key")}
        assert_attention(probe.frame(), site=".", positions=positions, rows=rows, **parts, **ends)


def test_a_pool_is_drawn_on_its_feature_map() -> None:
    module = seeded(AttentionPool2d(16, feat_size=(3, 4), num_heads=2))
    x = pictures(3, 16, 4)
    expected = WrittenOutPath(module, "").of(module, x[:1])["weights"]
    drawn = nlprobe.attention_map(module, x[:1], [(2, 1)], head=1)
    assert torch.allclose(torch.from_numpy(drawn.maps[0]), expected[0, 1, 1 + 2 * 4 + 1, 1:].view(3, 4))


def test_a_pool_that_stops_before_its_projection_has_no_output() -> None:
    module = seeded(AttentionPool2d(16, feat_size=(3, 4), num_heads=2))
    probe = run(module, pictures(3, 16, 4), pre_logits=True)
    assert set(probe.frame()["quantity"]) == QUANTITIES - {"output"}
    assert any(note.startswith("output:") for note in probe.audit()[0].not_counted)
