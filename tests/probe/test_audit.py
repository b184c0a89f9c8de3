"""Every way in which a capture could be silently wrong, and that each is caught."""

import pytest
import torch
from torch import Tensor

import nlprobe
from nlprobe.blocks import ContextBlock, ContextConfig, NonLocal, NonLocalConfig
from nlprobe.blocks.attention import PairwiseAttention
from nlprobe.errors import CaptureError


def block(instantiation: str = "embedded_gaussian", **settings: object) -> NonLocal:
    settings = {"zero_init": False, "norm": "none", "instantiation": instantiation, **settings}
    return NonLocal(16, 2, NonLocalConfig(**settings)).eval()


def probe_once(module: torch.nn.Module, x: Tensor | None = None) -> nlprobe.probe.Probe:
    x = torch.randn(2, 16, 6, 7, generator=torch.Generator().manual_seed(5)) * 3 if x is None else x
    with nlprobe.probe(module) as probe, torch.no_grad():
        module(x)
    return probe


def wrong_scale(self: PairwiseAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT) * 1.1 * self.logit_scale).softmax(-1) @ v


def wrong_axis(self: PairwiseAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT) * self.logit_scale).softmax(-2) @ v


def wrong_key_order(self: PairwiseAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.flip(1).mT) * self.logit_scale).softmax(-1) @ v


def dropped_keys(self: PairwiseAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k[:, 1:].mT) * self.logit_scale).softmax(-1) @ v[:, 1:]


@pytest.mark.parametrize("broken", [wrong_scale, wrong_axis, wrong_key_order, dropped_keys])
def test_a_product_that_is_not_the_stated_one_is_caught(broken, monkeypatch: pytest.MonkeyPatch) -> None:
    module = block()
    assert probe_once(module).audit()[0].status == "passed"
    monkeypatch.setattr(PairwiseAttention, "forward", broken)
    with pytest.raises(CaptureError, match="`A·V` is off by"):
        probe_once(module)


@pytest.mark.parametrize("instantiation", ["gaussian", "dot_product", "concat"])
def test_a_wrong_product_is_caught_in_every_instantiation(instantiation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = block(instantiation)
    assert probe_once(module).audit()[0].status == "passed"
    forward = PairwiseAttention.forward
    monkeypatch.setattr(PairwiseAttention, "forward", lambda self, q, k, v: forward(self, q, k, v.roll(1, 1)))
    with pytest.raises(CaptureError, match="`A·V` is off by"):
        probe_once(module)


def test_keys_dropped_before_the_product_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    module = block()
    call = PairwiseAttention.__call__
    monkeypatch.setattr(
        PairwiseAttention,
        "__call__",
        lambda self, q, k, v: call(self, q, k[:, ::2].contiguous(), v[:, ::2].contiguous()),
    )
    with pytest.raises(CaptureError, match="`key` is off by"):
        probe_once(module)


def test_a_forward_that_bypasses_its_product_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NonLocal, "forward", lambda self, x: x)
    with pytest.raises(CaptureError, match="without calling its attention product"):
        probe_once(block())


def test_a_residual_connection_that_is_scaled_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = NonLocal.forward
    monkeypatch.setattr(NonLocal, "forward", lambda self, x: forward(self, x) + 0.01 * x)
    with pytest.raises(CaptureError, match=r"`x \+ W_z·A·V` is off by"):
        probe_once(block())


def test_a_scale_changed_behind_the_settings_is_caught() -> None:
    module = block(scale="inv_sqrt")
    probe_once(module)
    module.query.register_forward_hook(lambda _, args, out: out * 1.05)
    with pytest.raises(CaptureError, match="`query` is off by"):
        probe_once(module)


@pytest.mark.parametrize("config", [ContextConfig.gc(4), ContextConfig.se_with_ln(4)], ids=["gc", "se"])
def test_a_context_block_that_pools_otherwise_is_caught(config: ContextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ContextBlock(16, config).eval()
    assert probe_once(module).audit()[0].status == "passed"
    module.transform.register_forward_pre_hook(lambda _, args: (args[0] * 1.01,))
    with pytest.raises(CaptureError, match="`A·V` is off by"):
        probe_once(module)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("training", [True, False])
def test_an_honest_block_passes_in_every_precision_and_mode(dtype, tolerance: float, training: bool) -> None:
    module = block(norm="batch").to(dtype).train(training)
    probe = probe_once(module, torch.randn(2, 16, 6, 7).to(dtype))
    audit = probe.audit()[0]
    assert audit.tolerance == tolerance
    assert audit.error <= tolerance
    assert (audit.expected_calls, audit.calls) == (1, 1)
    assert set(audit.errors) == {"query", "key", "value", "W_z", "x + W_z·A·V", "A·V"}


def test_only_the_first_call_is_recomputed() -> None:
    module = block()
    with nlprobe.probe(module) as probe, torch.no_grad():
        module(torch.randn(1, 16, 6, 7))
        first = dict(probe.audit()[0].errors)
        module(torch.randn(1, 16, 6, 7))
    assert probe.audit()[0].errors == first
    assert probe.audit()[0].calls == 2
