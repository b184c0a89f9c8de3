import pytest
import torch

from nlprobe.errors import NlprobeError
from nlprobe.stats import logit_blocks
from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask

S, H, N, M, D = 3, 4, 10, 12, 8


@pytest.mark.parametrize("elements", [1 << 17, 1000, 500, 300, 130, 30, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_cover_every_logit_once_and_keep_to_their_size(
    elements: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_blocks, "block_elements", lambda device: elements)
    query, key = torch.randn(S, H, N, D), torch.randn(S, 2, M, D)
    expected = (0.3 * query.to(dtype) @ key.to(dtype).repeat_interleave(2, 1).mT).tril(2)
    found, times = torch.zeros_like(expected), torch.zeros(S, H, N)
    for sets, heads, rows, block in logit_blocks.logit_blocks(Logits(query, key, 0.3, Mask(diagonal=2)), dtype):
        assert block.dtype == dtype
        assert block.numel() <= max(elements, M)
        assert block.is_contiguous()
        found[sets, heads, rows] = block.masked_fill(block == -torch.inf, 0)
        times[sets, heads, rows] += 1
        block.fill_(torch.nan)
    torch.testing.assert_close(found, expected)
    assert (times == 1).all()


def test_a_kernel_of_logits_sees_neither_autocast_nor_gradients() -> None:
    @logit_blocks.logits_kernel
    def state(logits: Logits) -> tuple[bool, bool]:
        return torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert state(Logits(given=torch.zeros(1, 1, 1, 1))) == (False, False)
        assert torch.is_autocast_enabled("cpu")


def test_minus_infinity_hides_a_key_and_is_no_error() -> None:
    given = torch.full((1, 1, 2, 2), -torch.inf)
    logit_blocks.require_usable(Logits(given=given))
    zeros = torch.zeros(1, 1, 2, 2)
    logit_blocks.require_usable(Logits(zeros, zeros, mask=Mask(bias=given)))


def test_large_numbers_are_no_error_though_their_sum_overflows() -> None:
    large = torch.full((1, 1, 2, 2), 3e38)
    logit_blocks.require_usable(Logits(large, large))
    logit_blocks.require_usable(Logits(*torch.full((2, 1, 1, 2, 2), 6e4, dtype=torch.float16)))


@pytest.mark.parametrize("part", ["query", "key", "bias", "given"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named_with_its_shape(part: str, number: float) -> None:
    parts = {name: torch.zeros(1, 1, 2, 2) for name in ("query", "key", "bias", "given")}
    parts[part][0, 0, 1, 0] = number
    given = parts["given"] if part == "given" else None
    with pytest.raises(NlprobeError, match=rf"`{part}` of shape \(1, 1, 2, 2\)"):
        logit_blocks.require_usable(Logits(parts["query"], parts["key"], mask=Mask(bias=parts["bias"]), given=given))
