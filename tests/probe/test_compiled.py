"""Compiled models: what was compiled runs uncompiled inside a probe, and compiled again after it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nlprobe
from nlprobe.probe import Probe

C, H = 16, 4


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(C, H, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()


def distances(model: nn.Module, x: Tensor) -> Probe:
    with torch.no_grad(), nlprobe.probe(model) as probe:
        model(x)
    return probe


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 6, C, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("called_before", [True, False])
def test_a_compiled_model_is_measured_like_what_was_compiled(x: Tensor, called_before: bool) -> None:
    model = encoder()
    compiled = torch.compile(model, backend="eager")
    if called_before:
        with torch.no_grad():
            compiled(x)
    probe = distances(compiled, x)
    assert [site.name for site in probe.sites] == ["layers.0.self_attn"]
    expected = distances(model, x).frame()
    assert probe.frame()["avg_dist"].tolist() == expected["avg_dist"].tolist()


def test_a_model_that_was_compiled_in_place_is_measured(x: Tensor) -> None:
    model, expected = encoder(), distances(encoder(), x).frame()
    model.layers[0].compile(backend="eager")
    with torch.no_grad():
        model(x)
    assert distances(model, x).frame()["avg_dist"].tolist() == expected["avg_dist"].tolist()


def test_a_compiled_function_inside_a_forward_is_seen(x: Tensor) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    compiled = torch.compile(attend, backend="eager")

    class Model(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return compiled(rows, rows, rows)

    model = Model()
    with torch.no_grad():
        model(x)
    assert [site.name for site in distances(model, x).sites] == ["."]


def test_after_the_probe_the_model_runs_compiled_again(x: Tensor) -> None:
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        def run(*args: Tensor):
            calls.append(1)
            return graph.forward(*args)

        return run

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(C, H, batch_first=True).eval()

        def forward(self, rows: Tensor) -> Tensor:
            return self.attention(rows, rows, rows, need_weights=False)[0]

    compiled = torch.compile(Wrapped(), backend=backend)
    with torch.no_grad():
        compiled(x)
    before = len(calls)
    distances(compiled, x)
    assert len(calls) == before
    with torch.no_grad():
        compiled(x)
    assert len(calls) > before
