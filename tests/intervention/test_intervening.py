"""Replaced maps against the written-out formula in float64, and against the numbers that `stats` gives for them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nlprobe
from nlprobe.blocks import ContextBlock, ContextConfig, NonLocal, NonLocalConfig
from nlprobe.errors import CaptureError, ConfigError
from nlprobe.intervention import INTERVENTIONS, intervene

INSTANTIATIONS = ("gaussian", "embedded_gaussian", "dot_product", "concat")


def non_local(instantiation: str = "embedded_gaussian", sub_sample: str = "none") -> nn.Sequential:
    """A network of one block whose map is far from flat."""
    torch.manual_seed(1)
    config = NonLocalConfig(instantiation=instantiation, sub_sample=sub_sample, zero_init=False)  # type: ignore[arg-type]
    block = NonLocal(8, 2, config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.7)
    assert isinstance(block.norm, nn.BatchNorm1d)
    block.norm.running_mean.normal_()  # type: ignore[union-attr]
    block.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return nn.Sequential(block).double().eval()


def images(count: int = 3, size: tuple[int, int] = (4, 6)) -> Tensor:
    return torch.randn(count, 8, *size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def the_map(block: NonLocal, query: Tensor, key: Tensor) -> Tensor:
    """ω of section 3.1, all of it."""
    if block.config.instantiation in ("gaussian", "embedded_gaussian"):
        return (query @ key.mT * block.attention.logit_scale).softmax(-1)
    if block.config.instantiation == "dot_product":
        return query @ key.mT / key.shape[1]
    a, b = query @ block.attention.weight_query, key @ block.attention.weight_key
    return F.relu(a.unsqueeze(2) + b.unsqueeze(1)) / key.shape[1]


def written_out(block: NonLocal, x: Tensor, replaced: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """z of a block whose map is what `replaced` makes of (map, query, key), as a matrix."""
    rows = x.flatten(2).mT
    source = F.max_pool2d(x, 2).flatten(2).mT if block.config.sub_sample == "pool_then_project" else rows
    query = rows if block.query is None else block.query(rows)
    key = source if block.key is None else block.key(source)
    context = replaced(the_map(block, query, key), query, key) @ block.value(source)
    update = block.norm(block.output(context).flatten(0, 1)).view(rows.shape)
    return x + update.mT.unflatten(2, x.shape[2:])


def mean_of(weights: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return weights.mean(1, keepdim=True).expand_as(weights)


def uniform_of(weights: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return torch.full_like(weights, 1 / weights.shape[2])


def before_of(weights: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return torch.cat([weights[:1], weights[:-1]])


@pytest.mark.parametrize("sub_sample", ["none", "pool_then_project"])
@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
@pytest.mark.parametrize(("kind", "replaced"), [("mean", mean_of), ("uniform", uniform_of), ("other-image", before_of)])
def test_a_block_computes_with_the_written_out_map(
    kind: str, replaced: Callable[[Tensor, Tensor, Tensor], Tensor], instantiation: str, sub_sample: str
) -> None:
    model, x = non_local(instantiation, sub_sample), images()
    with intervene(model, kind), torch.no_grad():
        found = model(x)
    torch.testing.assert_close(found, written_out(model[0], x, replaced), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("instantiation", ["gaussian", "embedded_gaussian", "dot_product"])
def test_the_two_parts_of_the_logits_make_the_maps_of_their_own(instantiation: str) -> None:
    model, x = non_local(instantiation), images()
    block = model[0]
    for kind, part in (
        ("unary", lambda query: query.mean(1, keepdim=True).expand_as(query)),
        ("pairwise", lambda query: query - query.mean(1, keepdim=True)),
    ):
        with intervene(model, kind), torch.no_grad():
            found = model(x)
        expected = written_out(block, x, lambda _, query, key, part=part: the_map(block, part(query), key))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_shuffled_queries_have_each_others_maps_and_none_its_own() -> None:
    model, x = non_local(), images()
    with intervene(model, "shuffled", seed=3), torch.no_grad():
        found = model(x)
        updates = (written_out(model[0], x, lambda weights, *_: weights) - x).flatten(2).mT
    for got, own in zip((found - x).flatten(2).mT, updates, strict=True):
        apart = (got[:, None] - own).norm(dim=2)
        nearest = apart.argmin(1)
        assert float(apart.gather(1, nearest[:, None]).max()) < 1e-9
        assert sorted(nearest.tolist()) == list(range(len(own)))
        assert not bool((nearest == torch.arange(len(own))).any())


def test_a_block_that_is_off_leaves_its_input_alone() -> None:
    model, x = non_local(), images()
    with intervene(model, "off") as off, torch.no_grad():
        assert torch.equal(model(x), x)
    np.testing.assert_allclose(off.changes()["0"], 1)


@pytest.mark.parametrize("instantiation", INSTANTIATIONS)
def test_the_change_by_the_mean_map_is_the_mean_map_error_of_stats(instantiation: str) -> None:
    model, x = non_local(instantiation), images()
    with nlprobe.probe(model) as probe, torch.no_grad():
        model(x)
    with intervene(model, "mean") as intervention, torch.no_grad():
        model(x)
    records = probe.frame().query("quantity == 'output'")
    np.testing.assert_allclose(intervention.changes()["0"], records["mean_map_error"], rtol=1e-8)


@pytest.mark.parametrize("kind", [kind for kind in INTERVENTIONS if kind != "off"])
def test_batches_of_any_size_give_the_same(kind: str) -> None:
    model, x = non_local(), images(5)
    with intervene(model, kind) as whole, torch.no_grad():
        expected = model(x)
    with intervene(model, kind) as parts, torch.no_grad():
        found = torch.cat([model(x[:1]), model(x[1:3]), model(x[3:])])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(parts.changes()["0"], whole.changes()["0"], rtol=1e-8)


def test_two_sites_are_each_changed_on_the_input_that_they_get() -> None:
    model, x = nn.Sequential(non_local()[0], non_local("dot_product")[0]).eval(), images()
    with intervene(model, "mean") as intervention, torch.no_grad():
        model(x)
        between = written_out(model[0], x, mean_of)
    assert list(intervention.changes()) == ["0", "1"]
    own = written_out(model[1], between, lambda weights, *_: weights) - between
    mean = written_out(model[1], between, mean_of) - between
    expected = (mean - own).flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1)
    np.testing.assert_allclose(intervention.changes()["1"], expected.detach().numpy(), rtol=1e-8)


def context_block(pooling: str = "attention") -> nn.Sequential:
    torch.manual_seed(2)
    block = ContextBlock(8, ContextConfig(pooling=pooling, reduction=2, zero_init=False))  # type: ignore[arg-type]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.7)
    return nn.Sequential(block).double().eval()


def test_a_context_block_has_nothing_for_the_mean_map_to_change_and_pools_evenly_with_a_uniform_one() -> None:
    model, x = context_block(), images()
    plain = model(x)
    for kind in ("mean", "shuffled", "unary"):
        with intervene(model, kind) as unchanged, torch.no_grad():
            assert torch.equal(model(x), plain)
        assert unchanged.changes()["0"].tolist() == [0.0] * 3
    with intervene(model, "uniform"), torch.no_grad():
        found = model(x)
    expected = x + model[0].transform(x.mean((2, 3)))[..., None, None]
    torch.testing.assert_close(found, expected)
    with intervene(model, "other-image"), torch.no_grad():
        found = model(x)
    weights = model[0].mask(x.flatten(2).mT).softmax(1)
    pooled = (x.flatten(2) @ torch.cat([weights[:1], weights[:-1]])).squeeze(2)
    torch.testing.assert_close(found, x + model[0].transform(pooled)[..., None, None])


def test_average_pooling_has_no_map_to_replace_and_can_only_be_off() -> None:
    model, x = context_block("average"), images()
    with pytest.raises(ConfigError, match="has no map that `uniform` could replace"), intervene(model, "uniform"):
        model(x)
    with intervene(model, "off"), torch.no_grad():
        assert torch.equal(model(x), x)


class Attention(nn.Module):
    """Heads, written by hand around the fused function, with a bias or causal mask on request."""

    def __init__(self, causal: bool = False, bias: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.causal, self.bias = causal, bias
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)

    def parts(self, x: Tensor) -> list[Tensor]:
        return [part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)]

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(*self.parts(x), attn_mask=self.bias, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


def tokens(count: int = 3, length: int = 7) -> Tensor:
    return torch.randn(count, length, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def test_chosen_heads_of_a_functional_product_are_replaced_and_no_others() -> None:
    model, x = nn.Sequential(Attention()).double().eval(), tokens()
    with intervene(model, "mean", heads=[1]), torch.no_grad():
        found = model(x)
    query, key, value = model[0].parts(x)
    weights = (query @ key.mT / 2).softmax(-1)
    weights[:, 1] = weights[:, 1].mean(1, keepdim=True)
    torch.testing.assert_close(found, model[0].out((weights @ value).transpose(1, 2).flatten(2)))
    with pytest.raises(ConfigError, match="has the heads 0 to 1"), intervene(model, "mean", heads=[2]):
        model(x)


def test_a_uniform_map_keeps_to_the_keys_that_a_query_may_see() -> None:
    model, x = nn.Sequential(Attention(causal=True)).double().eval(), tokens()
    with intervene(model, "uniform"), torch.no_grad():
        found = model(x)
    value = model[0].parts(x)[2]
    counts = torch.arange(1, 8, dtype=torch.float64)
    context = value.cumsum(2) / counts[:, None]
    torch.testing.assert_close(found, model[0].out(context.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kind", ["mean", "shuffled"])
def test_causal_maps_are_not_shown_the_future(kind: str) -> None:
    model = nn.Sequential(Attention(causal=True)).double().eval()
    with pytest.raises(ConfigError, match="is causal"), intervene(model, kind):
        model(tokens())


def test_the_maps_of_another_image_meet_the_bias_of_ones_own() -> None:
    bias = torch.randn(1, 2, 7, 7, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    model, x = nn.Sequential(Attention(bias=bias)).double().eval(), tokens()
    with intervene(model, "other-image"), torch.no_grad():
        found = model(x)
    query, key, value = model[0].parts(x)
    weights = (query @ key.mT / 2 + bias).softmax(-1)
    context = torch.cat([weights[:1], weights[:-1]]) @ value
    torch.testing.assert_close(found, model[0].out(context.transpose(1, 2).flatten(2)))
    for kind in ("unary", "pairwise"):
        with pytest.raises(ConfigError, match="do not split"), intervene(model, kind):
            model(x)


def test_concatenation_has_no_unary_part() -> None:
    with pytest.raises(ConfigError, match="concatenation"), intervene(model := non_local("concat"), "unary"):
        model(images())


@pytest.mark.parametrize("kind", INTERVENTIONS)
def test_the_model_is_untouched_afterwards_and_after_an_error(kind: str) -> None:
    model, x = non_local(), images()
    before = model(x)
    with intervene(model, kind), torch.no_grad():
        model(x)
    with pytest.raises(ConfigError, match="got an input of shape"), intervene(model, kind):
        model(x[:, :4])
    assert torch.equal(model(x), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_model_in_training_mode_is_refused() -> None:
    model = non_local().train()
    with pytest.raises((ConfigError, CaptureError), match=r"training mode|off by"), intervene(model, "mean"):
        model(images())


def test_a_block_that_gives_something_else_the_second_time_is_refused() -> None:
    class Restless(NonLocal):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) * (1 + 0.01 * self.calls)

    torch.manual_seed(0)
    model = nn.Sequential(Restless(8, 2, NonLocalConfig(zero_init=False))).double().eval()
    with pytest.raises(CaptureError), intervene(model, "mean"):
        model(images())


def test_images_of_different_sizes_cannot_swap_maps() -> None:
    model = non_local()
    with intervene(model, "other-image"), torch.no_grad():
        model(images(1))
        with pytest.raises(ConfigError, match="24 and 12 queries"):
            model(images(1, (3, 4)))


def test_unknown_interventions_come_with_close_matches() -> None:
    with pytest.raises(ConfigError, match="`means`"):
        intervene(non_local(), "means")


def test_multihead_attention_of_torch_is_replaced_in_either_layout() -> None:
    for batch_first in (True, False):
        torch.manual_seed(4)
        attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        model = Calls(attention).double().eval()
        x = tokens() if batch_first else tokens().transpose(0, 1)
        with nlprobe.probe(model) as probe, torch.no_grad():
            model(tokens())
        with intervene(model, "mean") as intervention, torch.no_grad():
            found = model(tokens())
        query, key, value = (
            part.unflatten(2, (2, 4)).transpose(1, 2)
            for part in F.linear(tokens(), attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        )
        weights = (query @ key.mT / math.sqrt(4)).softmax(-1).mean(2, keepdim=True).expand(-1, -1, 7, -1)
        expected = attention.out_proj((weights @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(found, expected)
        records = probe.frame().query("quantity == 'output'")
        np.testing.assert_allclose(intervention.changes()["attention"], records["mean_map_error"], rtol=1e-8)
        assert x.shape[-1] == 8


class Calls(nn.Module):
    """Self-attention on (B, N, C) whatever the layout of the module inside."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        rows = x if self.attention.batch_first else x.transpose(0, 1)
        out = self.attention(rows, rows, rows, need_weights=False)[0]
        return out if self.attention.batch_first else out.transpose(0, 1)
