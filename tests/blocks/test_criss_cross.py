"""Criss-cross attention against a masked N x N softmax in float64, in value and gradient."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from blocks_reference import relative_error
from torch import Tensor

from nlprobe.blocks import CrissCross, CrissCrossAttention, CrissCrossConfig, build_block
from nlprobe.errors import ConfigError

GRIDS = [(4, 4), (3, 7), (7, 3), (1, 6), (6, 1), (1, 1), (2, 5)]


def crosses(height: int, width: int) -> Tensor:
    """(n, n): whether j lies in the column or the row of i, by coordinates."""
    places = list(itertools.product(range(height), range(width)))
    return torch.tensor([[y == v or x == u for v, u in places] for y, x in places])


def masked_softmax(query: Tensor, key: Tensor, height: int, width: int) -> Tensor:
    """The N x N map."""
    logits = (query @ key.mT).masked_fill(~crosses(height, width), -torch.inf)
    return logits.softmax(-1)


def formula(block: CrissCross, x: Tensor) -> Tensor:
    """R steps on convolutions, as other code bases have them, with the whole map in memory."""
    height, width = x.shape[2:]

    def project(linear: torch.nn.Linear, t: Tensor) -> Tensor:
        return F.conv2d(t, linear.weight[..., None, None], linear.bias).flatten(2).mT

    for _ in range(block.config.recurrence):
        query, key, value = (project(linear, x) for linear in (block.query, block.key, block.value))
        y = masked_softmax(query, key, height, width) @ value
        x = x + block.gamma.gamma * y.mT.unflatten(2, (height, width))
    return x


def randomised(block: CrissCross) -> CrissCross:
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.uniform_(0.2, 1.0).mul_(torch.randint(0, 2, parameter.shape) * 2 - 1)
    return block


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_value_and_gradients_are_those_of_a_masked_softmax(grid: tuple[int, int], recurrence: int, bias: bool) -> None:
    block = randomised(CrissCross(8, 2, CrissCrossConfig(4, recurrence, bias)).double())
    x = torch.randn(2, 8, *grid, dtype=torch.float64).mul_(0.5).requires_grad_()
    upstream = torch.randn_like(x)
    inputs = [x, *block.parameters()]
    expected, actual = formula(block, x), block(x)
    assert relative_error(actual, expected) < 1e-12
    references = torch.autograd.grad(expected, inputs, upstream)
    gradients = torch.autograd.grad(actual, inputs, upstream)
    largest = max(float(gradient.norm()) for gradient in references)
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).norm() < 1e-10 * largest


def test_the_position_itself_is_counted_once() -> None:
    """With equal logits every key of the cross has the weight 1 / (H + W − 1)."""
    attention = CrissCrossAttention()
    value = torch.eye(12).view(1, 3, 4, 12)
    rows = attention(torch.zeros(1, 3, 4, 2), torch.randn(1, 3, 4, 2), value).view(12, 12)
    torch.testing.assert_close(rows, crosses(3, 4) / 6)


def test_two_steps_reach_every_position_and_one_does_not() -> None:
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64).requires_grad_()
    for recurrence, reached in ((1, 7), (2, 15)):
        block = randomised(CrissCross(4, 2, CrissCrossConfig(2, recurrence)).double())
        (gradient,) = torch.autograd.grad(block(x)[0, :, 1, 2].sum(), x)
        assert int((gradient[0] != 0).any(0).sum()) == reached


@pytest.mark.parametrize("zero_init", [True, False])
def test_a_new_block_is_the_identity_unless_asked_otherwise(zero_init: bool) -> None:
    block = CrissCross(16, 2, CrissCrossConfig(zero_init=zero_init))
    x = torch.randn(2, 16, 4, 6)
    assert torch.equal(block(x), x) == zero_init
    block(x).square().sum().backward()
    assert float(block.gamma.gamma.grad) != 0


def test_the_layout_of_the_input_is_kept() -> None:
    block = CrissCross(8, 2, CrissCrossConfig(zero_init=False))
    x = torch.randn(2, 8, 4, 6)
    last = x.to(memory_format=torch.channels_last)
    assert block(x).is_contiguous()
    assert block(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block(x), block(last))


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, False),
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.bfloat16, True),
        (torch.float16, True),
    ],
    ids=lambda value: {True: "autocast", False: "cast"}.get(value, str(value)),
)
def test_half_precision_stays_near_float64(dtype: torch.dtype, autocast: bool) -> None:
    block = randomised(CrissCross(16, 2, CrissCrossConfig()))
    x = torch.randn(2, 16, 5, 9).mul_(0.3).requires_grad_()
    wide = CrissCross(16, 2, block.config).double()
    wide.load_state_dict({name: tensor.double() for name, tensor in block.state_dict().items()})
    wide_x = x.detach().double().requires_grad_()
    expected = formula(wide, wide_x)
    (reference,) = torch.autograd.grad(expected.sum(), wide_x)
    if autocast:
        with torch.autocast("cpu", dtype):
            actual = block(x)
        assert actual.dtype == torch.float32
    else:
        block = block.to(dtype)
        x = x.detach().to(dtype).requires_grad_()
        actual = block(x)
        assert actual.dtype == dtype
    (gradient,) = torch.autograd.grad(actual.sum(), x)
    allowed = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    assert relative_error(actual, expected) < allowed
    assert relative_error(gradient, reference) < allowed


def test_logits_that_a_half_cannot_hold_do_not_overflow() -> None:
    attention = CrissCrossAttention()
    query = torch.full((1, 2, 3, 4), 300.0, dtype=torch.float16)
    result = attention(query, query, torch.ones(1, 2, 3, 5, dtype=torch.float16))
    torch.testing.assert_close(result, torch.ones_like(result))


@pytest.mark.parametrize("channels", [8, 64, 512])
def test_parameters_are_counted_by_their_formula(channels: int) -> None:
    """2 (C + 1) C/8 of queries and keys, (C + 1) C of values, and γ, however often the block is applied."""
    for recurrence in (1, 2):
        block = CrissCross(channels, 2, CrissCrossConfig(recurrence=recurrence))
        count = sum(parameter.numel() for parameter in block.parameters())
        assert count == 2 * (channels + 1) * (channels // 8) + (channels + 1) * channels + 1


def test_inputs_and_settings_that_do_not_fit_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"`CrissCross` of 8 channels got an input of shape `\(1, 4, 5, 5\)`"):
        CrissCross(8)(torch.randn(1, 4, 5, 5))
    with pytest.raises(ConfigError, match="it must be 2: a cross has a column and a row"):
        build_block("criss_cross", 8, 3, CrissCrossConfig())
    with pytest.raises(ConfigError, match="`recurrence` of the block `criss_cross` is `0`"):
        CrissCrossConfig.from_dict({"recurrence": 0})


PROGRAM = """
import sys
import torch
from benchmarks.memory import peak_extra_bytes
from nlprobe.blocks import CrissCross, CrissCrossConfig, CrissCrossAttention

block = CrissCross(16, 2, CrissCrossConfig(zero_init=False))


def run(side):
    x = torch.randn(1, 16, side, side).mul_(0.3).requires_grad_()
    block(x).sum().backward()


run(8)
print(peak_extra_bytes(lambda: run(97)))
"""


def test_nothing_of_size_n_by_n_is_built() -> None:
    """At 97 x 97 a map is 354 MB; H + W logits for each position are 7 MB, of which several are alive at a time."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=root)
    assert int(done.stdout) < 128 * 2**20
