"""Sums by class in one pass."""

import numpy as np
import pytest
import torch
from class_reference import class_means
from hypothesis import given
from hypothesis import strategies as st

from nlprobe.errors import NlprobeError
from nlprobe.stats import ClassSums, channel_means


@given(
    n=st.integers(1, 30),
    channels=st.integers(1, 4),
    classes=st.integers(1, 5),
    batch=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_means_by_class_are_those_of_loops_whatever_the_batches(n, channels, classes, batch, seed) -> None:
    generator = np.random.default_rng(seed)
    values = generator.normal(3, 2, (n, channels))
    labels = generator.integers(0, classes, n)
    sums = ClassSums(classes)
    for start in range(0, n, batch):
        part = slice(start, start + batch)
        sums.add(torch.from_numpy(values[part]), torch.from_numpy(labels[part]))
    np.testing.assert_allclose(sums.means, class_means(values, labels.tolist(), classes), rtol=1e-13)
    assert sums.counts.tolist() == [int((labels == k).sum()) for k in range(classes)]
    assert (sums.images, sums.channels) == (n, channels)
    expected = [(values[labels == k] ** 2).sum(0) for k in range(classes)]
    np.testing.assert_allclose(sums.squares, expected, rtol=1e-13)


def test_channels_are_averaged_over_all_positions() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = [[[x[b, c].sum() / 20 for c in range(3)] for b in range(2)]]
    assert torch.allclose(channel_means(x), torch.tensor(expected, dtype=torch.float64)[0], rtol=1e-12)
    clip = x.unsqueeze(2).expand(-1, -1, 6, -1, -1)
    assert torch.allclose(channel_means(clip), channel_means(x), rtol=1e-12)
    assert torch.equal(channel_means(x[:, :, 0, 0]), x[:, :, 0, 0])
    assert torch.allclose(channel_means(x.flatten(2).mT, channels_last=True), channel_means(x), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_it_is_summed(dtype: torch.dtype) -> None:
    x = torch.full((1, 1, 200, 200), 10.0, dtype=dtype)
    x[..., 0] = 11
    assert channel_means(x).item() == pytest.approx(10 + 1 / 200, rel=1e-6)


def test_memory_layout_does_not_matter() -> None:
    x = torch.randn(2, 8, 5, 5)
    assert torch.allclose(channel_means(x), channel_means(x.to(memory_format=torch.channels_last)), atol=1e-7)


def test_what_cannot_be_summed_is_refused() -> None:
    sums = ClassSums(2)
    sums.add(torch.ones(1, 3, dtype=torch.float64), torch.tensor([0]))
    with pytest.raises(NlprobeError, match="has 2 channels, and had 3 before"):
        sums.add(torch.ones(1, 2, dtype=torch.float64), torch.tensor([0]))
    with pytest.raises(NlprobeError, match="not among the 2 classes"):
        sums.add(torch.ones(1, 3, dtype=torch.float64), torch.tensor([2]))
    with pytest.raises(NlprobeError, match="has no channels"):
        channel_means(torch.ones(4))
    with pytest.raises(NlprobeError, match="NaN or infinity"):
        channel_means(torch.full((1, 2, 2, 2), torch.inf))
