"""Nothing of size N×N is allocated by a probe, in a fresh process at N = 9 409 (97 × 97)."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

N_BY_N = 9409 * 9409 * 4

PROGRAM = """
    import torch, nlprobe
    from benchmarks.memory import peak_extra_bytes
    from nlprobe.blocks import NonLocal, NonLocalConfig
    block = NonLocal(64, 2, NonLocalConfig("{instantiation}", zero_init=False)).eval()
    x = torch.randn(1, 64, 97, 97)
    with nlprobe.probe(block) as probe, torch.no_grad():
        block(x[..., :9, :9])       # libraries start their threads and buffers
        peak = peak_extra_bytes(lambda: block(x))
    assert set(probe.frame()["n_queries"]) == {{81, 9409}}
    print(peak)
"""


@pytest.mark.slow
@pytest.mark.parametrize("instantiation", ["gaussian", "embedded_gaussian", "dot_product", "concat"])
def test_a_probe_stays_far_below_one_map(instantiation: str) -> None:
    program = dedent(PROGRAM.format(instantiation=instantiation))
    root = Path(__file__).parents[2]
    finished = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) < N_BY_N / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [
        "Disentangled(64, DisentangledConfig.mmseg())",
        "PositionAttention(64)",
        "ObjectContext(64)",
        "AsymmetricPyramid(64)",
    ],
)
def test_a_context_operator_in_a_probe_stays_far_below_one_map(made: str) -> None:
    program = dedent(PROGRAM.format(instantiation="gaussian"))
    block = 'NonLocal(64, 2, NonLocalConfig("gaussian", zero_init=False))'
    assert block in program
    program = program.replace(block, made).replace("import NonLocal, NonLocalConfig", "import *")
    program = program.replace(
        'set(probe.frame()["n_queries"])', """set(probe.frame().query("quantity == 'att'")["n_queries"])"""
    )
    root = Path(__file__).parents[2]
    finished = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) < N_BY_N / 3


MANY_HEADS = """
    import torch, nlprobe
    from benchmarks.memory import peak_extra_bytes
    torch.set_num_threads(2)
    attention = torch.nn.MultiheadAttention(8 * {heads}, {heads}, batch_first=True).eval()
    x = torch.randn(1, 9409, 8 * {heads})
    run = lambda rows: attention(rows, rows, rows, need_weights=False{mask})
    with torch.no_grad():
        run(x[:, :81])
        plain = peak_extra_bytes(lambda: run(x))
        with nlprobe.probe(attention) as probe:
            run(x[:, :81])
            probed = peak_extra_bytes(lambda: run(x))
    assert set(probe.frame()["n_queries"]) == {{81, 9409}}
    print(probed - plain)
"""


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 4, 12])
def test_many_heads_take_no_more_memory_than_one(heads: int) -> None:
    program = dedent(MANY_HEADS.format(heads=heads, mask=""))
    root = Path(__file__).parents[2]
    finished = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) < 64 * 2**20
