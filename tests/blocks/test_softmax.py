"""Which kernel computes softmax attention, and our own stream."""

import pytest
import torch
import torch.nn.functional as F
from blocks_reference import relative_error, written_out
from torch.nn.attention import sdpa_kernel

from nlprobe.blocks import softmax
from nlprobe.blocks.softmax import FUSED, StreamedSoftmax, has_fused_kernel, softmax_attention


def operands(queries: int = 50, keys: int = 40, width: int = 8, value_width: int = 8, batch: int = 2) -> list:
    return [
        torch.randn(batch, *size, dtype=torch.float64, requires_grad=True)
        for size in ((queries, width), (keys, width), (keys, value_width))
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gradient", [False, True])
def test_the_fused_kernel_takes_equal_widths_on_a_cpu(
    dtype: torch.dtype, gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamedSoftmax, "apply", None)  # taking the stream would fail
    query, key, value = (tensor.detach().to(dtype).requires_grad_(gradient) for tensor in operands())
    output = softmax_attention(query, key, value, 1.0)
    if gradient:
        output.sum().backward()
        assert query.grad is not None


def test_operands_as_the_convolutions_of_other_code_bases_leave_them_still_take_the_fused_kernel() -> None:
    rows = torch.randn(2, 8, 30).mT
    assert not rows.is_contiguous()
    assert torch.allclose(
        softmax_attention(rows, rows, rows, 1.0), written_out("gaussian", rows, rows, rows), atol=1e-6
    )


def test_a_fall_back_to_the_kernel_that_builds_the_map_raises() -> None:
    query, key, value = (tensor.detach().unsqueeze(1) for tensor in operands(value_width=4))
    with (
        sdpa_kernel(FUSED),
        pytest.warns(UserWarning, match="Flash attention"),
        pytest.raises(RuntimeError, match="No available kernel"),
    ):
        F.scaled_dot_product_attention(query, key, value)


def test_the_backend_flags_are_as_before_afterwards() -> None:
    def flags() -> tuple[bool, ...]:
        return (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.cudnn_sdp_enabled(),
        )

    before = flags()
    softmax_attention(*operands(), 1.0)
    assert flags() == before


@pytest.mark.parametrize("shape", [(50, 40, 8, 4), (50, 40, 4, 8), (0, 40, 8, 8), (50, 0, 8, 8)])
def test_other_shapes_have_no_fused_kernel(shape: tuple[int, int, int, int]) -> None:
    assert not has_fused_kernel(*operands(*shape))


def test_an_empty_batch_gives_an_empty_result() -> None:
    for value_width in (4, 8):
        assert softmax_attention(*operands(value_width=value_width, batch=0), 1.0).shape == (0, 50, value_width)


@pytest.mark.parametrize("entries", [1, 64, 128 * 40, 10**9])
@pytest.mark.parametrize("shape", [(50, 40, 8, 8), (3, 70, 5, 9), (64, 1, 2, 2)])
def test_the_stream_gives_the_formula_however_it_is_cut(
    shape: tuple[int, int, int, int], entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "CPU_ENTRIES", entries)
    ours, theirs = operands(*shape, batch=5), None
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    output, expected = StreamedSoftmax.apply(*ours, 0.3), written_out("gaussian", *theirs, scale=0.3)
    upstream = torch.randn_like(expected)
    output.backward(upstream)
    expected.backward(upstream)
    assert relative_error(output, expected) < 1e-12
    for actual, reference in zip(ours, theirs, strict=True):
        assert relative_error(actual.grad, reference.grad) < 1e-11


def test_stream_and_fused_kernel_agree_in_half_precision() -> None:
    query, key, value = (tensor.detach().to(torch.bfloat16) for tensor in operands())
    fused = softmax_attention(query, key, value, 0.5)
    assert relative_error(StreamedSoftmax.apply(query, key, value, 0.5), fused) < 1e-2


@pytest.mark.parametrize("value_width", [8, 4])
def test_logits_beyond_the_range_of_a_half_are_no_trouble(value_width: int) -> None:
    query, key, value = (tensor.detach() for tensor in operands(value_width=value_width))
    query, key = (query * 300).half(), (key * 300).half()  # logits up to a million; a half ends at 65 504
    output = softmax_attention(query, key, value.half(), 1.0)
    assert output.isfinite().all()
    expected = written_out("gaussian", query.double(), key.double(), value.half().double())
    assert relative_error(output, expected) < 1e-3


@pytest.mark.parametrize("value_width", [8, 4])
def test_a_map_of_one_key_a_row_is_exact(value_width: int) -> None:
    query, key, value = (tensor.detach().float() for tensor in operands(value_width=value_width))
    output = softmax_attention(query * 1e4, key, value, 1.0)
    assert relative_error(output, written_out("gaussian", query.double() * 1e4, key.double(), value.double())) < 1e-6


def test_only_the_gradients_that_are_asked_for_come_back() -> None:
    query, key, value = operands(value_width=4)
    softmax_attention(query, key.detach(), value, 1.0).sum().backward()
    assert query.grad is not None
    assert value.grad is not None
    assert key.grad is None


def test_peaked_maps_hold_no_denormals() -> None:
    """Logits far below a row's largest end at a weight that multiplies at full speed."""
    query, key = torch.tensor([[[1.0]]]), torch.arange(0.0, -200.0, -1.0).view(1, -1, 1)
    weights = softmax_attention(query, key, torch.eye(200).unsqueeze(0), 1.0)
    assert weights.min() > torch.finfo(torch.float32).tiny
    assert torch.allclose(weights, written_out("gaussian", query, key, torch.eye(200)), atol=1e-25)
