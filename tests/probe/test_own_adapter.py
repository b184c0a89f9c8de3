"""An adapter of one's own, for attention that is computed where no torch function can be seen."""

import pytest
import torch
from attention_reference import assert_attention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import nlprobe
from nlprobe.errors import CaptureError
from nlprobe.probe import Adapter, PairwiseCapture

B, N, C = 2, 6, 8


class Kernel(nn.Module):
    """Attention of one head in NumPy, which stands for any custom kernel."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (each.detach().numpy() for each in (query, key, value))
        logits = q @ k.swapaxes(1, 2) * C**-0.5
        weights = torch.from_numpy(logits).softmax(-1).numpy()
        return torch.from_numpy(weights @ v)


class KernelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.proj = (nn.Linear(C, C) for _ in range(4))
        self.kernel = Kernel()

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.kernel(self.query(x), self.key(x), self.value(x)))


class KernelAdapter:
    """Reads q, k, v and A·V at the kernel, x and the output at the module."""

    def __init__(self, scale: float = C**-0.5) -> None:
        self.scale = scale

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, KernelAttention)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        return "kernel", {"scale": self.scale}

    def attach(self, module: nn.Module, deliver, watch) -> list[RemovableHandle]:
        assert isinstance(module, KernelAttention)
        product: list[Tensor] = []

        def at_kernel(_: nn.Module, args: tuple[Tensor, ...], context: Tensor) -> None:
            product[:] = [each.detach().unsqueeze(1) for each in (*args, context)]

        def at_module(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            query, key, value, context = product
            product.clear()
            deliver(
                PairwiseCapture(
                    x=args[0].detach(),
                    output=output.detach(),
                    query=query,
                    key=key,
                    value=value,
                    context=context,
                    instantiation="embedded_gaussian",
                    scale=self.scale,
                    query_grid=(),
                    key_grid=(),
                    projected=True,
                    residual=False,
                )
            )

        return [module.kernel.register_forward_hook(at_kernel), module.register_forward_hook(at_module)]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(C, C), KernelAttention()).double().eval()


def images() -> Tensor:
    return torch.randn(B, N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_an_adapter_of_ones_own_measures_what_its_capture_says(model: nn.Module) -> None:
    assert isinstance(KernelAdapter(), Adapter)
    with torch.no_grad(), nlprobe.probe(model, adapters=[KernelAdapter()]) as probe:
        output = model(images())
    (site,), (audit,) = probe.sites, probe.audit()
    assert (site.name, site.block, site.settings) == ("1", "kernel", {"scale": C**-0.5})
    assert (audit.status, audit.calls) == ("passed", 1)
    with torch.no_grad():
        x = model[0](images())
        query, key = model[1].query(x), model[1].key(x)
    weights = (query @ key.mT * C**-0.5).softmax(-1)
    parts = {"query": query.unsqueeze(1), "key": key.unsqueeze(1), "x": x, "output": output}
    assert_attention(probe.frame(), weights.unsqueeze(1), site="1", **parts)
    assert not model[1]._forward_hooks
    assert not model[1].kernel._forward_hooks


def test_an_adapter_that_tells_another_scale_is_caught(model: nn.Module) -> None:
    with torch.no_grad(), pytest.raises(CaptureError), nlprobe.probe(model, adapters=[KernelAdapter(scale=1.0)]):
        model(images())


def test_without_it_such_attention_is_refused(model: nn.Module) -> None:
    with torch.no_grad(), pytest.raises(CaptureError, match="attention"), nlprobe.probe(model):
        model(images())
