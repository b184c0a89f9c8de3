"""Probes that share out the batches of a data set, and one that takes in what the others have."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nlprobe
from nlprobe.blocks import NonLocal, NonLocalConfig
from nlprobe.errors import CaptureError
from nlprobe.probe import Probe


class Own(nn.Module):
    """Attention that nobody described."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).mT
        return F.scaled_dot_product_attention(rows, rows, rows)


class Twice(nn.Module):
    """A block that runs twice in a forward call."""

    def __init__(self) -> None:
        super().__init__()
        self.block = NonLocal(8, config=NonLocalConfig(zero_init=False))
        self.own = Own()

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.own(self.block(self.block(x)))
        return rows


def network() -> nn.Module:
    torch.manual_seed(0)
    return Twice().eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 8, 5, 4, generator=generator) for count in (3, 2, 3, 1)]


def show(probe: Probe, model: nn.Module, number: int) -> None:
    images = batches()[number]
    with probe.images([f"{number}-{place}" for place in range(len(images))]), torch.no_grad():
        model(images)


def everything(probe: Probe) -> tuple[str, dict, dict, list]:
    means = {
        site: {name: mean.tolist() for name, mean in found.items()} for site, found in sorted(probe.centres().items())
    }
    return probe.frame().to_csv(), probe.energy(), means, [audit.as_dict() for audit in probe.audit()]


@pytest.fixture
def whole() -> tuple[str, dict, dict, list]:
    model = network()
    with nlprobe.probe(model) as probe:
        for number in range(4):
            show(probe, model, number)
    return everything(probe)


@pytest.mark.parametrize("first_alone", [True, False])
def test_two_probes_have_together_the_bits_of_one(whole, first_alone: bool) -> None:
    """Also where the one that takes in the other's has not yet seen a batch itself, nor found its sites."""
    models = network(), network()
    own = (0, 2) if first_alone else (2,)
    with nlprobe.probe(models[0]) as first, nlprobe.probe(models[1]) as second:
        for number in range(4):
            if number in own:
                show(first, models[0], number)
            else:
                show(second, models[1], number)
                first.absorb(second.take())
    assert everything(first) == whole


def test_what_was_taken_is_gone() -> None:
    model = network()
    with nlprobe.probe(model) as probe:
        show(probe, model, 0)
        probe.take()
        show(probe, model, 1)
    assert list(probe.frame()["image"].unique()) == ["1-0", "1-1"]
    assert {audit.calls for audit in probe.audit()} == {2, 1}
    assert {audit.status for audit in probe.audit()} == {"not seen"}


def test_a_probe_whose_batches_all_went_elsewhere_was_not_forgotten() -> None:
    with nlprobe.probe(NonLocal(8)) as idle:
        idle.take()
    assert idle.frame().empty


def test_the_first_call_of_each_probe_is_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    model = NonLocal(8, config=NonLocalConfig(zero_init=False)).eval()
    with nlprobe.probe(model) as first:
        show(first, model, 0)
    good = first.state()
    forward = NonLocal.forward
    monkeypatch.setattr(NonLocal, "forward", lambda self, x: forward(self, x) + 0.1 * x)
    with nlprobe.probe(model) as second:
        second.absorb(good)
        assert [audit.status for audit in second.audit()] == ["passed"]
        with pytest.raises(CaptureError, match="is off by"):
            show(second, model, 1)
    assert [audit.status for audit in second.audit()] == ["failed"]
