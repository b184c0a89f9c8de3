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
