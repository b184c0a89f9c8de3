"""No N x N matrix, in any mode, precision or direction: the peak memory of a fresh process at N = 9 216."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nlprobe.blocks import INSTANTIATIONS

ROOT = Path(__file__).parents[2]
SIDE = 96
# The smallest map that could be built: two bytes an entry.
ONE_MAP = (SIDE * SIDE) ** 2 * 2
LIMIT = ONE_MAP / 2

# The rise of the high-water mark of resident memory, after a small call has loaded the kernels. The mark is that of the
# new process alone: `ru_maxrss` is inherited from the test process on Linux, which has seen more.
PROGRAM = """
import sys
import torch
from benchmarks.memory import peak_extra_bytes
from nlprobe.blocks import NonLocal, NonLocalConfig

instantiation, precision, direction, device, side = sys.argv[1:]
dtype = torch.float32 if precision == "autocast" else getattr(torch, precision)
block = NonLocal(16, 2, NonLocalConfig(instantiation, zero_init=False)).to(device, dtype)
x = torch.randn(1, 16, int(side), int(side)).to(device, dtype).mul_(0.3).requires_grad_(direction == "backward")


def run(x):
    with torch.set_grad_enabled(direction == "backward"):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
            z = block(x)
        if direction == "backward":
            z.sum().backward()


run(x[..., :8, :8])
print(peak_extra_bytes(lambda: run(x)))
"""

GRID = list(
    itertools.product(
        INSTANTIATIONS, ("float32", "float64", "bfloat16", "float16", "autocast"), ("forward", "backward")
    )
)
FAST = {
    ("gaussian", "float32", "backward"),
    ("embedded_gaussian", "autocast", "backward"),
    ("dot_product", "bfloat16", "backward"),
    ("concat", "float32", "backward"),
}


def peak(instantiation: str, precision: str, direction: str, device: torch.device, program: str = PROGRAM) -> int:
    arguments = [instantiation, precision, direction, str(device), str(SIDE)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id="-".join(case), marks=() if case in FAST else pytest.mark.slow) for case in GRID],
)
def test_the_peak_stays_below_any_map(case: tuple[str, str, str], device: torch.device) -> None:
    if case[1] == "float64" and device.type == "mps":
        pytest.skip("MPS has no float64")
    assert peak(*case, device) < LIMIT


CONTEXT_OPERATORS = {
    "disentangled": "Disentangled(16)",
    "disentangled with wide values": "Disentangled(16, DisentangledConfig.scene_parsing())",
    "position attention": "PositionAttention(16, PositionAttentionConfig(zero_init=False))",
    "channel attention": "ChannelAttention(16, ChannelAttentionConfig(zero_init=False))",
    "object context": "ObjectContext(16)",
    "asymmetric pyramid": "AsymmetricPyramid(16)",
}


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(made, id=name, marks=() if name.endswith("values") else pytest.mark.slow)
        for name, made in CONTEXT_OPERATORS.items()
    ],
)
def test_the_peak_of_context_operators_stays_below_any_map(made: str, device: torch.device) -> None:
    program = PROGRAM.replace("import NonLocal, NonLocalConfig", "import *").replace(
        "NonLocal(16, 2, NonLocalConfig(instantiation, zero_init=False))", made
    )
    assert made in program
    assert peak("-", "float32", "backward", device, program) < LIMIT


def test_the_measurement_sees_a_map_that_is_built(device: torch.device) -> None:
    formula = "from nlprobe.blocks.attention import PairwiseAttention\n" + (
        "PairwiseAttention.forward = lambda self, query, key, value: torch.softmax(query @ key.mT, -1) @ value\n"
    )
    assert peak(
        "gaussian", "bfloat16", "forward", device, PROGRAM.replace("instantiation,", formula + "instantiation,", 1)
    ) > (ONE_MAP)
