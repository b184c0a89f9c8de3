"""Slow-only ResNet-50 with five blocks at its real size: 6 272 positions in c3 and 1 568 in c4."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from probe_reference import brute_block
from torch import Tensor

import nlprobe
from nlprobe.models import VideoResNet, build

N_BY_N = 6272 * 6272 * 4


def network() -> VideoResNet:
    """With blocks that are no identity."""
    model = build("kinetics/slowonly50-nl", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for site in model.sites():
            block = model.get_submodule(site.replace(":", "."))
            block.norm.weight.normal_(std=0.3, generator=generator)
            block.query.weight.mul_(10)
    return model


def distance(rows: Tensor) -> float:
    """½ (1 − ‖mean of the unit rows‖²), in float64."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    return float((1 - unit.mean(0).square().sum()) / 2)


@pytest.mark.slow
def test_a_clip_is_measured_at_full_size_and_a_training_step_reaches_every_block() -> None:
    model, clip = network().eval(), torch.randn(1, 3, 8, 224, 224, generator=torch.Generator().manual_seed(1))
    seen: dict[str, Tensor] = {}
    chosen = ("layer2.1:after_block", "layer3.3:after_block")
    handles = [
        model.get_submodule(site.replace(":", ".")).register_forward_pre_hook(
            lambda module, inputs, site=site: seen.update({site: inputs[0].clone()})
        )
        for site in chosen
    ]
    with nlprobe.probe(model) as probe, torch.no_grad():
        assert model(clip).shape == (1, 400)
    for handle in handles:
        handle.remove()
    assert all(audit.status == "passed" for audit in probe.audit())
    records = probe.frame().set_index(["site", "quantity"])
    positions = {site: 8 * (28 * 28 if "layer2" in site else 14 * 14) for site in model.sites()}
    for site, n in positions.items():
        assert records.loc[(site, "att"), ["n_queries", "n_keys"]].tolist() == [n, n // 4]
    for site in chosen:
        found = brute_block(model.get_submodule(site.replace(":", ".")), seen[site])
        for quantity, rows in found.items():
            assert records.loc[(site, quantity), "avg_dist"] == pytest.approx(distance(rows), rel=1e-4), quantity

    loss = torch.nn.functional.cross_entropy(model.train()(clip), torch.tensor([7]))
    loss.backward()
    for site in model.sites():
        for name, parameter in model.get_submodule(site.replace(":", ".")).named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all()
            # neither the softmax nor the norm behind W_z sees what these add
            assert parameter.grad.any() or name in ("key.bias", "value.bias", "output.bias")


PROGRAM = """
    import torch, nlprobe
    from benchmarks.memory import peak_extra_bytes
    from nlprobe.blocks import NonLocal, NonLocalConfig
    block = NonLocal(32, 3, NonLocalConfig("{instantiation}", zero_init=False))
    x = torch.randn(1, 32, 8, 28, 28)
    step = lambda x: block(x.requires_grad_()).square().sum().backward()
    step(x[:, :, :2, :4, :4].clone())      # libraries start their threads and buffers
    trained = peak_extra_bytes(lambda: step(x.clone()))
    with nlprobe.probe(block.eval()) as probe, torch.no_grad():
        block(x[:, :, :2, :4, :4])
        probed = peak_extra_bytes(lambda: block(x))
    assert set(probe.frame()["n_queries"]) == {{32, 6272}}
    print(trained, probed)
"""


@pytest.mark.slow
@pytest.mark.parametrize("instantiation", ["gaussian", "embedded_gaussian", "dot_product", "concat"])
def test_training_and_probing_stay_far_below_one_map_of_space_and_time(instantiation: str) -> None:
    program, root = dedent(PROGRAM.format(instantiation=instantiation)), Path(__file__).parents[2]
    finished = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert max(map(int, finished.stdout.split())) < N_BY_N / 3
