"""Blocks against their written-out formulas, and NL, SNL and GC by the number of positions.

The peer is `mmcv`'s `NonLocal2d`, which builds the N x N map: same weights' shapes, C = 1024, d = 512, no
sub-sampling, no norm, one image. Criss-cross attention (C = 512, d = 64, two steps) is held against the masked softmax
over all N x N pairs that defines it. The second part of the output reports the latency and the peak extra memory of the
blocks of Table 5(a), each cell in a fresh process; it has no targets.
"""

import argparse
import functools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import peak_extra_bytes
from benchmarks.pairs import Row, environment, main, seconds
from nlprobe.blocks import ContextBlock, ContextConfig, CrissCross, NonLocal, NonLocalConfig

CHANNELS = 1024
GRIDS = {196: (14, 14), 784: (28, 28), 4200: (50, 84), 9409: (97, 97)}
MMCV_MODES = {
    "embedded_gaussian": "embedded_gaussian",
    "gaussian": "gaussian",
    "dot_product": "dot_product",
    "concat": "concatenation",
}
CONFIGS: dict[str, Callable[[], nn.Module]] = {
    "NL, written out": lambda: written_out("embedded_gaussian"),
    "NL": lambda: NonLocal(CHANNELS, 2, NonLocalConfig(norm="none")),
    "NL, pooled keys": lambda: NonLocal(CHANNELS, 2, NonLocalConfig(norm="none", sub_sample="pool_then_project")),
    "SNL": lambda: ContextBlock(CHANNELS, ContextConfig.snl()),
    "GC, r = 16": lambda: ContextBlock(CHANNELS, ContextConfig.gc()),
}


def written_out(instantiation: str) -> nn.Module:
    """mmcv's block of the same size, which materialises the map."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmcv.cnn.bricks import NonLocal2d  # type: ignore[import-untyped]

    class Written(NonLocal2d):
        """With the division of the concat map out of place: mmcv's, in place behind a ReLU, has no backward."""

        def concatenation(self, theta_x: Tensor, phi_x: Tensor) -> Tensor:
            pairs = torch.cat([theta_x.repeat(1, 1, 1, phi_x.size(3)), phi_x.repeat(1, 1, theta_x.size(2), 1)], dim=1)
            return self.concat_project(pairs).squeeze(1) / phi_x.size(3)

    return Written(CHANNELS, reduction=2, use_scale=False, mode=MMCV_MODES[instantiation])


@functools.cache
def image(positions: int, gradient: bool) -> Tensor:
    """A ReLU'd feature map, small enough that the Gaussian map is not one-hot.

    One-hot maps are full of denormal numbers, which slow the written-out formula several times over, and ours not.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, CHANNELS, *GRIDS[positions], generator=generator).mul(0.1).relu()
    return x.requires_grad_(gradient)


@functools.cache
def block(instantiation: str, ours: bool) -> nn.Module:
    """The block of either side."""
    torch.manual_seed(0)
    config = NonLocalConfig(instantiation, norm="none")  # type: ignore[arg-type]
    return NonLocal(CHANNELS, 2, config) if ours else written_out(instantiation)


def forward(instantiation: str, positions: int, ours: bool) -> None:
    with torch.inference_mode():
        block(instantiation, ours)(image(positions, False))


def forward_backward(instantiation: str, positions: int, ours: bool) -> None:
    block(instantiation, ours)(image(positions, True)).sum().backward()


class MaskedSoftmax(nn.Module):
    """Criss-cross attention by its definition, with the map in memory."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All pairs, those that are not on a common row or column hidden."""
        _, height, width, _ = query.shape
        rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
        hidden = (rows[:, None] != rows) & (columns[:, None] != columns)
        query, key, value = query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2)
        weights = (query @ key.mT).masked_fill_(hidden, -torch.inf).softmax(-1)
        return (weights @ value).unflatten(1, (height, width))


@functools.cache
def cross_block(ours: bool) -> nn.Module:
    """The block of either side, with the same weights."""
    torch.manual_seed(0)
    block = CrissCross(512)
    if not ours:
        block.attention = MaskedSoftmax()  # type: ignore[assignment]
    return block


def cross_forward(ours: bool) -> None:
    with torch.inference_mode():
        cross_block(ours)(image(9409, False)[:, :512])


def cross_forward_backward(ours: bool) -> None:
    cross_block(ours)(image(4200, True)[:, :512]).sum().backward()


def cross_row(name: str, run: Callable[[bool], None], positions: int, target: float) -> Row:
    ours, peer = functools.partial(run, True), functools.partial(run, False)
    return Row(f"{name}, criss-cross, N = {positions}", target, "faster", ours, peer)


def row(name: str, run: Callable[[str, int, bool], None], mode: str, positions: int, target: float, kind: Any) -> Row:
    return Row(
        f"{name}, {mode.replace('_', ' ')}, N = {positions}",
        target,
        kind,
        functools.partial(run, mode, positions, True),
        functools.partial(run, mode, positions, False),
    )


ROWS = [
    row("forward", forward, "embedded_gaussian", 4200, 0.95, "at_most"),
    row("forward", forward, "gaussian", 4200, 1.05, "at_most"),
    row("forward", forward, "dot_product", 4200, 0.5, "at_most"),
    row("forward", forward, "concat", 784, 20.0, "faster"),
    row("forward + backward", forward_backward, "embedded_gaussian", 4200, 1.15, "at_most"),
    row("forward + backward", forward_backward, "gaussian", 4200, 1.15, "at_most"),
    row("forward + backward", forward_backward, "dot_product", 4200, 1.15, "at_most"),
    row("forward + backward", forward_backward, "concat", 784, 1.15, "at_most"),
    cross_row("forward", cross_forward, 9409, 5.0),
    cross_row("forward + backward", cross_forward_backward, 4200, 3.0),
]


def cell(name: str, positions: int) -> dict[str, float]:
    """Latency in ms and peak extra memory in MiB of one block at one N, forward, and forward + backward."""
    torch.manual_seed(0)
    module = CONFIGS[name]()
    infer, train = image(positions, False), image(positions, True)

    def forward_only() -> None:
        with torch.inference_mode():
            module(infer)

    def both() -> None:
        module(train).sum().backward()

    forward_memory, both_memory = peak_extra_bytes(forward_only), peak_extra_bytes(both)
    forward_only()
    both()
    return {
        "forward, ms": sorted(seconds(forward_only, 1) for _ in range(7))[3] * 1e3,
        "+ backward, ms": sorted(seconds(both, 1) for _ in range(7))[3] * 1e3,
        "forward, MiB": forward_memory / 2**20,
        "+ backward, MiB": both_memory / 2**20,
    }


def table() -> None:
    """Print the latency and memory of every block at every N."""
    print(f"\nLatency and peak extra memory of one block, C = {CHANNELS}, one image, float32; {environment()}")
    header: list[str] = []
    for positions in GRIDS:
        for name in CONFIGS:
            command = [sys.executable, "-m", "benchmarks.blocks", "--cell", name, str(positions)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            values = json.loads(done.stdout.splitlines()[-1])
            if not header:
                header = list(values)
                print(f"{'N':>6} {'block':<18}" + "".join(f"{column:>17}" for column in header))
            print(f"{positions:>6} {name:<18}" + "".join(f"{values[column]:>17.1f}" for column in header), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cell", nargs=2, metavar=("BLOCK", "N"))
    chosen, rest = parser.parse_known_args()
    if chosen.cell:
        print(json.dumps(cell(chosen.cell[0], int(chosen.cell[1]))))
        raise SystemExit(0)
    code = main(ROWS, rest)
    if not rest:
        table()
    raise SystemExit(code)
