"""The one softmax map of SNL and GC against its definition."""

import math

import brute_force
import pytest
import torch

from nlprobe.errors import NlprobeError
from nlprobe.stats import single_map_statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
def test_agrees_with_the_definition(device: torch.device, dtype: torch.dtype, scale: float) -> None:
    logits = (scale * torch.randn(2, 3, 50)).to(dtype).to(device)
    entropy, n_eff = single_map_statistics(logits)
    maps = torch.softmax(logits.double().cpu(), -1)
    for image in range(2):
        for head in range(3):
            one = maps[image, head].unsqueeze(0)
            assert entropy[image, head].item() == pytest.approx(brute_force.entropy(one), rel=1e-9)
            assert n_eff[image, head].item() == pytest.approx(brute_force.n_eff(one), rel=1e-9)


def test_an_even_map_has_entropy_one_and_a_peaked_one_zero() -> None:
    assert [x.item() for x in single_map_statistics(torch.zeros(7))] == pytest.approx([1, 7])
    assert [x.item() for x in single_map_statistics(1e4 * torch.eye(7)[0])] == pytest.approx([0, 1])


def test_one_position_has_no_entropy() -> None:
    entropy, n_eff = single_map_statistics(torch.tensor([3.0]))
    assert math.isnan(entropy)
    assert n_eff == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_logits_are_refused_by_name(bad: float) -> None:
    with pytest.raises(NlprobeError, match="`logits`"):
        single_map_statistics(torch.tensor([1.0, bad]))
