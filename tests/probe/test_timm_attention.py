"""timm's models against the attention weights that their own written-out path computes, in float64."""

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from attention_reference import assert_attention, column, expected_maps
from probe_reference import brute_avg_dist
from timm.layers import GlobalContext, NonLocalAttn
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_rel import RelPosBias
from timm.models.vision_transformer_relpos import RelPosAttention
from timm_models import B, pictures, run, seeded
from torch import Tensor, nn

import nlprobe
from nlprobe.errors import ConfigError


def written_out(model: nn.Module, path: str, *args, **kwargs) -> dict[str, Tensor]:
    """The weights of one module on its written-out path, with what enters and leaves it."""
    module = model.get_submodule(path)
    seen: dict[str, Tensor] = {}

    def note(name: str, value: Tensor) -> None:
        seen[name] = value

    fused = module.fused_attn
    module.fused_attn = False
    handles = [
        module.attn_drop.register_forward_hook(lambda _, inputs, result: note("weights", inputs[0])),
        module.register_forward_hook(
            lambda _, inputs, result: (note("x", inputs[0]), note("output", result))[2:] or None
        ),
    ]
    with torch.no_grad():
        model(*args, **kwargs)
    for handle in handles:
        handle.remove()
    module.fused_attn = fused
    return seen


TINY = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}
PLAIN: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", **TINY, patch_size=8), 1),
    "registers": (lambda: timm.create_model("vit_tiny_patch16_224", **TINY, patch_size=8, reg_tokens=3), 4),
    "no class token": (
        lambda: timm.create_model("vit_tiny_patch16_224", **TINY, patch_size=8, class_token=False, global_pool="avg"),
        0,
    ),
    "query and key norm": (lambda: timm.create_model("vit_tiny_patch16_224", **TINY, patch_size=8, qk_norm=True), 1),
    "scaled output": (
        lambda: timm.create_model("vit_tiny_patch16_224", **TINY, patch_size=8, scale_attn_norm=True),
        1,
    ),
    "eva": (lambda: timm.create_model("eva02_tiny_patch14_224", **TINY, patch_size=8), 1),
    "beit": (lambda: timm.create_model("beit_base_patch16_224", **TINY, patch_size=8), 1),
}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
@pytest.mark.parametrize("name", PLAIN)
def test_transformers_give_what_their_written_out_path_gives(name: str, fused: bool) -> None:
    build, prefix = PLAIN[name]
    model = seeded(build())
    path = "blocks.1.attn"
    expected = written_out(model, path, pictures())
    for block in model.blocks:
        block.attn.fused_attn = fused
    probe = run(model, pictures())
    assert [site.name for site in probe.sites] == ["blocks.0.attn", "blocks.1.attn"]
    assert {audit.status for audit in probe.audit()} == {"passed"}
    assert probe.sites[0].prefix == prefix
    choices = [("all", slice(None))] + ([("no_prefix", slice(prefix, None))] if prefix else [])
    for positions, rows in choices:
        assert_attention(
            probe.frame(),
            expected["weights"],
            site=path,
            x=expected["x"],
            output=expected["output"],
            positions=positions,
            rows=rows,
        )
    assert set(probe.frame()["quantity"]) == {"input", "key", "query", "prod", "att", "output"}


@pytest.mark.parametrize("kind", ["causal", "mask"])
def test_masks_given_to_an_attention_module_are_those_of_its_map(kind: str) -> None:
    module = seeded(Attention(32, num_heads=4, qkv_bias=True))
    x = torch.randn(B, 7, 32, dtype=torch.float64)
    settings = {"is_causal": True} if kind == "causal" else {"attn_mask": torch.rand(B, 1, 7, 7) > 0.3}
    if kind == "mask":
        settings["attn_mask"][..., 0] = True
    expected = written_out(module, "", x, **settings)
    support = expected["weights"][:, :1] > 0
    assert_attention(run(module, x, **settings).frame(), expected["weights"], site=".", x=x, support=support)


def test_rotary_attention_measures_grouped_keys_once() -> None:
    module = seeded(AttentionRope(32, num_heads=4, num_kv_heads=2, qkv_fused=False, num_prefix_tokens=1))
    x = torch.randn(B, 10, 32, dtype=torch.float64)
    rope = torch.randn(9, 16, dtype=torch.float64)
    expected = written_out(module, "", x, rope)
    frame = run(module, x, rope).frame()
    assert_attention(frame, expected["weights"], site=".", x=x, output=expected["output"])
    assert sorted(frame.query("quantity == 'key'")["head"].unique()) == ["0", "1"]


WINDOWED = {
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        embed_dim=16,
        depths=(2,),
        num_heads=(4,),
        window_size=4,
        num_classes=3,
    ),
    "swin v2": lambda: timm.create_model(
        "swinv2_tiny_window8_256", img_size=32, embed_dim=16, depths=(2,), num_heads=(4,), window_size=4, num_classes=3
    ),
}


@pytest.mark.parametrize("block", [0, 1], ids=["in place", "shifted"])
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_are_sets_of_their_own(name: str, block: int) -> None:
    model = seeded(WINDOWED[name]())
    path = f"layers.0.blocks.{block}.attn"
    module = model.get_submodule(path)
    seen: list[Tensor] = []
    handle = module.attn_drop.register_forward_hook(lambda _, inputs, result: seen.append(inputs[0]))
    fused, module.fused_attn = getattr(module, "fused_attn", False), False
    with torch.no_grad():
        model(pictures())
    module.fused_attn = fused
    handle.remove()
    weights = seen[0].unflatten(0, (B, 4))
    probe = run(model, pictures())
    assert {audit.status for audit in probe.audit()} == {"passed"}
    for image in range(B):
        for head in range(4):
            values = [expected_maps(weights[image, w, head], weights[image, w, head] > 1e-30) for w in range(4)]
            record = column(probe.frame(), "att", site=path, head=str(head), image=image)
            for key in ("avg_dist", "entropy", "n_eff", "shared"):
                expected = torch.tensor([value[key] for value in values]).nanmean()
                assert record[key] == pytest.approx(float(expected), rel=1e-6), key
    flat = probe.frame().query("quantity == 'att' and site == @path")["flat"]
    assert flat.notna().all() == (block == 1) or flat[probe.frame()["head"] != "avg"].notna().all() == (block == 1)


def test_padding_of_windows_is_left_out() -> None:
    model = seeded(
        timm.create_model(
            "swin_tiny_patch4_window7_224",
            img_size=40,
            embed_dim=16,
            depths=(2,),
            num_heads=(4,),
            window_size=4,
            num_classes=3,
            strict_img_size=False,
        )
    )
    probe = run(model, pictures(40))
    assert set(probe.frame()["positions"]) == {"valid"}
    assert set(probe.frame()["groups"]) == {9}


def test_a_non_local_block_is_measured_with_its_norm() -> None:
    block = seeded(NonLocalAttn(16))
    nn.init.uniform_(block.norm.weight)
    x = pictures(6, 16)
    with torch.no_grad():
        query, key = block.t(x).flatten(2).mT, block.p(x).flatten(2).mT
        weights = (query @ key.mT * 16**-0.5).softmax(-1)
        output = (block(x) - x).flatten(2).mT
    probe = run(block, x)
    assert probe.sites[0].block == "timm.NonLocalAttn"
    rows = x.flatten(2).mT
    assert_attention(
        probe.frame(),
        weights.unsqueeze(1),
        site=".",
        query=query.unsqueeze(1),
        key=key.unsqueeze(1),
        x=rows,
        output=output,
    )
    assert set(probe.audit()[0].errors) == {"A·V", "W_z", "x + W_z·A·V"}
    update = column(probe.frame(), "output", site=".")["update"]
    assert update == pytest.approx(float(output[0].norm() / rows[0].norm()), rel=1e-9)


FUSIONS = {"scale": (True, False), "add": (False, True), "scale and add": (True, True)}


@pytest.mark.parametrize("attention", [True, False], ids=["attention", "average"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_global_context_has_one_map_and_says_its_fusion(fusion: str, attention: bool) -> None:
    scale, add = FUSIONS[fusion]
    block = seeded(GlobalContext(16, use_attn=attention, fuse_add=add, fuse_scale=scale))
    x = pictures(6, 16)
    probe = run(block, x)
    assert probe.sites[0].settings == {"pooling": "attention" if attention else "average", "fusion": fusion}
    assert probe.audit()[0].status == "passed"
    assert set(probe.audit()[0].errors) == {"A·V", "fusion"}
    with torch.no_grad():
        logits = block.conv_attn(x).flatten(2) if attention else x.new_zeros(B, 1, 36)
        output = (block(x) - x).flatten(2).mT
    rows = x.flatten(2).mT
    for image in range(B):
        record = column(probe.frame(), "att", site=".", head="0", image=image)
        expected = expected_maps(logits[image].softmax(-1))
        assert record["by_construction"]
        assert record["avg_dist"] == 0
        assert record["entropy"] == pytest.approx(expected["entropy"], rel=1e-9)
        assert record["n_eff"] == pytest.approx(expected["n_eff"], rel=1e-9)
        inputs = column(probe.frame(), "input", site=".", image=image)
        assert inputs["avg_dist"] == pytest.approx(brute_avg_dist(rows[image]), rel=1e-9)
        found = column(probe.frame(), "output", site=".", image=image)
        assert bool(found["by_construction"]) is not scale
        assert found["avg_dist"] == pytest.approx(brute_avg_dist(output[image]), rel=1e-9, abs=1e-12)
        assert found["update"] == pytest.approx(float(output[image].norm() / rows[image].norm()), rel=1e-9)


@pytest.mark.parametrize("part", ["conv_attn", "gate", "mlp_add"])
def test_a_falsified_global_context_is_caught(part: str) -> None:
    block = seeded(GlobalContext(16, fuse_add=True))

    def half(_: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        return result * 0.5

    with torch.no_grad(), nlprobe.probe(block) as probe:
        handle = block.get_submodule(part).register_forward_hook(half)  # after the probe's own hook
        with pytest.raises(nlprobe.CaptureError, match="is off"):
            block(pictures(6, 16))
        handle.remove()
        block(pictures(6, 16))
    assert probe.audit()[0].calls == 1


def test_relative_positions_are_a_bias_and_no_mask() -> None:
    bias = partial(RelPosBias, window_size=(4, 4))
    module = seeded(RelPosAttention(32, num_heads=4, rel_pos_cls=bias))
    nn.init.normal_(module.rel_pos.relative_position_bias_table)
    x = torch.randn(B, 16, 32, dtype=torch.float64)
    expected = written_out(module, "", x)
    probe = run(module, x)
    assert_attention(probe.frame(), expected["weights"], site=".", x=x, output=expected["output"])
    assert probe.audit()[0].masks == ["bias"]
    assert set(probe.audit()[0].errors) == {"A·V", "W_o"}


def test_pictures_that_are_dealt_out_to_several_sets_are_one_image_each() -> None:
    model = seeded(timm.create_model("mobilevit_xxs"))
    probe = run(model, pictures(64))
    assert set(probe.frame()["image"]) == {"0", "1"}
    assert set(probe.frame().query("quantity == 'att'")["groups"]) == {4}
    with pytest.raises(ConfigError, match="attends within windows"):
        nlprobe.attention_map(model, pictures(64)[:1], [(0, 0)], site=probe.sites[0].name)


def test_heads_in_the_batch_of_a_described_class_are_not_taken_for_sets() -> None:
    class HeadsInFront(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            heads = x.flatten(2).mT.unflatten(2, (2, 8)).transpose(1, 2).flatten(0, 1)  # (b·h, n, d)
            mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads)
            return mixed.unflatten(0, (-1, 2)).transpose(2, 3).reshape(x.shape)

    described = nlprobe.AttentionModule("own", (HeadsInFront,), layout="b c h w")
    model = HeadsInFront()
    with pytest.raises(nlprobe.CaptureError, match="4 sets for 2 images"), nlprobe.probe(model, adapters=[described]):
        model(pictures(4, 16))


def test_a_falsified_scale_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    module = seeded(Attention(32, num_heads=4))
    x = torch.randn(B, 7, 32, dtype=torch.float64)
    module.proj.register_forward_hook(lambda _, args, result: result * 1.01)
    with pytest.raises(nlprobe.CaptureError, match="`W_o` is off"):
        run(module, x)


EXPLORED: dict[str, set[str] | str] = {
    "pvt_v2_b0": {"timm.reduced attention"},
    "twins_svt_small": {"timm.LocallyGroupedAttn", "timm.reduced attention"},
    "maxvit_nano_rw_256": {"timm.AttentionCl"},
    "coatnet_nano_rw_224": {"timm.Attention2d"},
    "davit_tiny": "attends from channel to channel",
    "levit_128s": {"functional"},
    "xcit_nano_12_p16_224": "attends from channel to channel",
    "mvitv2_tiny": {"functional"},
    "mobilevit_xxs": {"timm.Attention"},
    "gcresnet33ts": {"timm.GlobalContext"},
    "botnet26t_256": {"timm.BottleneckAttn"},
    "efficientvit_m0": "4 sets for 1 images",
    "gcvit_xxtiny": {"timm.WindowAttention"},
    "hiera_tiny_224": {"timm.MaskUnitAttention"},
    "nest_tiny_jx": {"timm.nest.Attention"},
    "halonet26t": {"timm.HaloAttn"},
    "resnet50_clip": {"timm.AttentionPool2d"},
    "crossvit_tiny_240": {"timm.Attention", "timm.ClassAttn"},
    "volo_d1_224": "adds the overlapping neighbourhoods up",
    "convit_tiny": "mixes two softmax maps",
    "coat_tiny": "is linear attention",
    "repvit_m1": "no attention was seen",
    "cait_xxs24_224": "talking heads",
}
"""The blocks that a family's attention is read as, or the words with which it is refused."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPLORED)
def test_families_are_measured_or_refused_in_words(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    side = model.default_cfg["input_size"][-1]
    image = torch.randn(1, 3, side, side)
    expected = EXPLORED[name]
    if isinstance(expected, str):
        with pytest.raises(nlprobe.CaptureError, match=expected):
            run(model, image)
        return
    probe = run(model, image)
    assert {site.block for site in probe.sites} == expected
    assert {audit.status for audit in probe.audit()} == {"passed"}
