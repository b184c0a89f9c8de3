"""Attention that a forward computes by functions, in classes that nobody knows."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attention_reference import assert_attention, column
from probe_reference import brute_avg_dist
from torch import Tensor, nn

import nlprobe
from nlprobe.blocks import NonLocal
from nlprobe.errors import CaptureError, ConfigError
from nlprobe.probe import Probe

B, N, C, H = 2, 6, 16, 4
D = C // H
VISIBLE = torch.rand(B, 1, N, N, generator=torch.Generator().manual_seed(4)) > 0.3
VISIBLE[..., 0] = True
BIAS = torch.randn(1, H, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """Projections by head, and a function that makes A·V (b, h, n, d) of queries, keys and values."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.qkv, self.proj, self.function = nn.Linear(C, 3 * C), nn.Linear(C, C), function

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, H, D)).permute(2, 0, 3, 1, 4)
        return self.proj(self.function(query, key, value).transpose(1, 2).flatten(2))


def masked_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.matmul(q, k.transpose(-2, -1))
    logits *= D**-0.5
    logits += BIAS
    logits.masked_fill_(~VISIBLE, float("-inf"))
    return torch.matmul(logits.softmax(-1), v)


def in_one_dimension(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.reshape(B * H, N, D) for t in (q, k, v))
    logits = torch.baddbmm(BIAS.expand(B, -1, -1, -1).reshape(B * H, N, N), q, k.mT, alpha=D**-0.5)
    return torch.bmm(F.softmax(logits, dim=2), v).view(B, H, N, D)


def keys_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax(k @ q.mT / math.sqrt(D), dim=-2)  # (b, h, m, n): one column for each query
    return (v.mT @ weights).mT


def transposed_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax(q @ k.mT / math.sqrt(D), dim=-1)
    return (v.mT @ weights.transpose(2, 3)).mT


def one_key_for_all_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.einsum("bhnd,bmd->bhnm", q, k[:, 0]) / math.sqrt(D)
    return torch.einsum("bhnm,bhmd->bhnd", F.softmax(logits, -1), v)


def positions_before_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * D**-0.5
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(dim=3), v).transpose(1, 2)


def capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.tanh(q @ k.mT / math.sqrt(D) / 2) * 2
    return logits.softmax(-1) @ v


def partly_overwritten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = q @ k.mT / math.sqrt(D)
    logits[..., 1:, 1:] += BIAS[..., 1:, 1:]
    return logits.softmax(-1) @ v


SCALED = 1 / math.sqrt(D)


def plain(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT * SCALED


FORMS: dict[str, tuple[Forward, Callable[[Tensor, Tensor], Tensor]]] = {
    "fused": (F.scaled_dot_product_attention, plain),
    "fused, own scale": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
        lambda q, k: q @ k.mT * 0.3,
    ),
    "fused, mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=VISIBLE),
        lambda q, k: plain(q, k).masked_fill(~VISIBLE, -torch.inf),
    ),
    "fused, causal": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k: plain(q, k).masked_fill(torch.ones(N, N).triu(1).bool(), -torch.inf),
    ),
    "fused, bias": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, BIAS), lambda q, k: plain(q, k) + BIAS),
    "written out": (lambda q, k, v: (q @ k.transpose(-2, -1) * SCALED).softmax(dim=-1) @ v, plain),
    "scaled query": (lambda q, k, v: F.softmax((q * SCALED) @ k.mT, -1) @ v, plain),
    "dropout module": (lambda q, k, v: F.dropout(plain(q, k).softmax(-1), 0.1, training=False) @ v, plain),
    "wider softmax": (lambda q, k, v: F.softmax(plain(q, k), -1, dtype=torch.float64).to(q.dtype) @ v, plain),
    "where": (
        lambda q, k, v: torch.where(VISIBLE, plain(q, k), -1e9).softmax(-1) @ v,
        lambda q, k: plain(q, k).masked_fill(~VISIBLE, -torch.inf),
    ),
    "in place": (masked_in_place, lambda q, k: (plain(q, k) + BIAS).masked_fill(~VISIBLE, -torch.inf)),
    "heads in the batch": (in_one_dimension, lambda q, k: plain(q, k) + BIAS),
    "keys first": (keys_first, plain),
    "transposed weights": (transposed_weights, plain),
    "one key for all heads": (one_key_for_all_heads, lambda q, k: plain(q, k[:, :1])),
    "positions before heads": (positions_before_heads, plain),
    "partly overwritten": (
        partly_overwritten,
        lambda q, k: plain(q, k) + F.pad(BIAS[..., 1:, 1:], (1, 0, 1, 0)),
    ),
    "capped": (capped, lambda q, k: torch.tanh(plain(q, k) / 2) * 2),
}


def model_of(function: Forward) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(C, C), Attention(function)).double().eval()


def run(model: nn.Module, x: Tensor, **settings) -> Probe:
    with torch.no_grad(), nlprobe.probe(model, **settings) as probe:
        model(x)
    return probe


def images() -> Tensor:
    return torch.randn(B, N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS)
def test_functional_attention_is_found_and_measured(form: str) -> None:
    function, logits = FORMS[form]
    model, x = model_of(function), images()
    heads_merged = form == "heads in the batch"
    own = nlprobe.AttentionModule("own", (Attention,), heads="heads")
    model[1].heads = H
    probe = run(model, x, adapters=[own] if heads_merged else [])
    assert [site.name for site in probe.sites] == ["1"]
    assert probe.sites[0].block == ("own" if heads_merged else "functional")
    with torch.no_grad():
        rows = model[0](x)
        query, key, _ = model[1].qkv(rows).unflatten(2, (3, H, D)).permute(2, 0, 3, 1, 4)
        expected = logits(query, key)
    support = torch.isfinite(expected)
    if form == "one key for all heads":
        key = key[:, :1]
    assert_attention(
        probe.frame(),
        expected.softmax(-1),
        site="1",
        query=query,
        key=key,
        x=rows,
        support=support if not bool(support.all()) else None,
    )


def test_logits_of_unknown_origin_are_measured_without_queries_and_keys_and_said_to_be() -> None:
    class Synthesizer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[..., :1] * torch.arange(N)).softmax(-1) @ x

    probe = run(Synthesizer(), images())
    assert set(probe.frame()["quantity"]) == {"input", "att"}
    assert any("key, query and prod" in reason for reason in probe.audit()[0].not_counted)
    weights = (images()[..., :1] * torch.arange(N)).softmax(-1).unsqueeze(1)
    assert_attention(probe.frame(), weights, site=".", x=images())


def test_heads_in_the_batch_of_an_unknown_class_are_refused_with_the_remedy() -> None:
    with pytest.raises(CaptureError, match="8 sets for 2 images"):
        run(model_of(in_one_dimension), images())


def test_the_output_of_an_unknown_class_is_absent_and_said_to_be() -> None:
    probe = run(model_of(F.scaled_dot_product_attention), images())
    assert "output" not in set(probe.frame()["quantity"])
    assert any(reason.startswith("output:") for reason in probe.audit()[0].not_counted)


def test_a_description_in_one_line_adds_the_output() -> None:
    model, x = model_of(F.scaled_dot_product_attention), images()
    own = nlprobe.AttentionModule("own", (Attention,), projection="proj")
    probe = run(model, x, adapters=[own])
    with torch.no_grad():
        output = model(x)
    assert probe.sites[0].block == "own"
    assert "W_o" in probe.audit()[0].errors
    assert column(probe.frame(), "output", site="1")["avg_dist"] == pytest.approx(brute_avg_dist(output[0]), rel=1e-9)


def test_later_calls_are_measured_too_and_expected() -> None:
    model, x = model_of(F.scaled_dot_product_attention), images()
    with torch.no_grad(), nlprobe.probe(model) as probe:
        model(x)
        model(x)
    assert len(probe.frame()["image"].unique()) == 2 * B
    assert (probe.audit()[0].expected_calls, probe.audit()[0].calls) == (2, 2)
    with torch.no_grad(), nlprobe.probe(model):
        model(x)
        model[1].forward = lambda rows: rows
        with pytest.raises(CaptureError, match="ran without an attention product"):
            model(x)


def test_several_products_of_one_module_are_calls_of_one_site() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x) + F.scaled_dot_product_attention(x, -x, x)

    probe = run(Twice(), images())
    att = probe.frame().query("quantity == 'att'")
    assert sorted(att["call"].unique()) == [0, 1]
    assert "input" not in set(probe.frame()["quantity"])


def test_a_model_without_attention_is_refused_after_its_first_call() -> None:
    with pytest.raises(CaptureError, match="no attention was seen"):
        run(nn.Linear(C, C).double(), images())


def test_weights_that_are_changed_after_the_softmax_are_refused_with_what_changed_them() -> None:
    def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.tanh(plain(q, k).softmax(-1)) @ v

    own = nlprobe.AttentionModule("own", (Attention,))
    with pytest.raises(CaptureError, match="go through `tanh`"):
        run(model_of(mixed), images(), adapters=[own])


def test_a_known_class_that_computes_no_attention_is_refused() -> None:
    own = nlprobe.AttentionModule("own", (Attention,))
    with pytest.raises(CaptureError, match="ran without an attention product"):
        run(model_of(lambda q, k, v: v), images(), adapters=[own])


def test_a_site_that_is_found_can_be_chosen_by_name_and_a_misspelt_one_is_refused() -> None:
    model = nn.Sequential(Attention(F.scaled_dot_product_attention), Attention(F.scaled_dot_product_attention))
    model = model.double().eval()
    assert [site.name for site in run(model, images(), sites="1").sites] == ["1"]
    with pytest.raises(ConfigError, match="no site is called or matches `layer`"):
        run(model, images(), sites="layer")


def test_the_models_output_is_the_same_with_and_without_a_probe() -> None:
    for function, _ in FORMS.values():
        model, x = model_of(function), images()
        with torch.no_grad():
            expected = model(x)
            with nlprobe.probe(model, adapters=[nlprobe.AttentionModule("own", (Attention,), heads="heads")]):
                assert torch.equal(model(x), expected)


def test_gradients_flow_through_a_probed_model() -> None:
    model, x = model_of(F.scaled_dot_product_attention), images()
    with nlprobe.probe(model):
        model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_rectangle_of_causal_attention_is_renormalised_and_another_is_refused() -> None:
    model, x = model_of(FORMS["fused, causal"][0]), images()
    probe = run(model, x, rectangle=(slice(3, 6), slice(0, 4)))
    with torch.no_grad():
        query, key, _ = model[1].qkv(model[0](x)).unflatten(2, (3, H, D)).permute(2, 0, 3, 1, 4)
        weights = plain(query, key)[:, :, 3:6, :4].softmax(-1)
    rows = model[0](x).detach()[:, 3:6]
    assert_attention(
        probe.frame(), weights, site="1", query=query[:, :, 3:6], key=key[:, :, :4], x=rows, positions="rectangle"
    )
    with pytest.raises(ConfigError, match="does not see every key"):
        run(model, x, rectangle=(slice(2, 6), slice(0, 4)))
    with pytest.raises(ConfigError, match="do not lie within"):
        run(model, x, rectangle=(slice(2, 9), slice(0, 4)))


def test_a_library_block_inside_is_not_taken_for_its_parents_attention() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = NonLocal(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)

    probe = run(Parent().eval(), torch.randn(2, 8, 4, 4))
    assert [site.name for site in probe.sites] == ["block"]


def test_a_probe_goes_on_from_its_saved_state_with_what_it_has_found() -> None:
    model, x = model_of(F.scaled_dot_product_attention), images()
    with torch.no_grad(), nlprobe.probe(model) as whole:
        model(x)
        model(x)
    with torch.no_grad(), nlprobe.probe(model) as first:
        model(x)
    with torch.no_grad(), nlprobe.probe(model) as second:
        second.absorb(first.state())
        model(x)
    assert second.frame().equals(whole.frame())
    with nlprobe.probe(model) as finished:
        finished.absorb(whole.state())
    assert [site.name for site in finished.sites] == ["1"]
    assert finished.frame().equals(whole.frame())


class WithLayers(nn.Module):
    """Softmax and dropout as layers, as much code has them, and perhaps a convolution that mixes the heads' weights."""

    def __init__(self, *, talking: bool) -> None:
        super().__init__()
        self.qkv, self.softmax, self.dropout = nn.Linear(C, 3 * C), nn.Softmax(-1), nn.Dropout(0.1)
        self.mix = nn.Conv2d(H, H, 1) if talking else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(2, (3, H, D)).permute(2, 0, 3, 1, 4)
        return (self.mix(self.dropout(self.softmax(query @ key.mT))) @ value).transpose(1, 2).flatten(2)


def test_softmax_and_dropout_may_be_layers() -> None:
    module = WithLayers(talking=False).double().eval()
    x = images()
    query, key, _ = module.qkv(x).unflatten(2, (3, H, D)).permute(2, 0, 3, 1, 4).detach()
    frame = run(nn.Sequential(module), x).frame()
    assert_attention(frame, (query @ key.mT).softmax(-1), site="0", query=query, key=key, x=x)


def test_attention_that_cannot_be_read_is_not_passed_over_beside_others() -> None:
    model = nn.Sequential(WithLayers(talking=False), WithLayers(talking=True)).double().eval()
    with pytest.raises(CaptureError, match=r"`1` .* go through `conv2d` before they meet the values"):
        run(model, images())
    with torch.no_grad(), nlprobe.probe(model, "0") as probe:
        model(images())
    assert [site.name for site in probe.sites] == ["0"]
