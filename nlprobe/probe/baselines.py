"""The null model `init-block`: what a block would measure that had learnt nothing, on the very same inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn

from nlprobe.blocks import (
    CBAM,
    AsymmetricFusion,
    AsymmetricPyramid,
    ChannelAttention,
    ContextBlock,
    CrissCross,
    Disentangled,
    GatherExcite,
    GloRe,
    NonLocal,
    ObjectContext,
    PointWiseBranch,
    PositionAttention,
    SqueezeExcitation,
    build_block,
)
from nlprobe.errors import ConfigError
from nlprobe.probe.capture import Probe
from nlprobe.probe.sites import Site

DRAWS = 5
W_Z_STD = 0.01

OPERATORS = (
    CBAM,
    AsymmetricFusion,
    AsymmetricPyramid,
    ChannelAttention,
    Disentangled,
    GloRe,
    ObjectContext,
    PositionAttention,
)
"""Blocks that are made of channels and settings, and start at zero unless `zero_init` is off."""

REDRAWABLE = (
    "non_local",
    "context",
    "criss_cross",
    "point_wise",
    "disentangled",
    "position_attention",
    "channel_attention",
    "object_context",
    "asymmetric_pyramid",
    "asymmetric_fusion",
    "squeeze_excitation",
    "cbam",
    "gather_excite",
    "glore",
)
"""The kinds of block that `redraw` knows."""


@dataclass(frozen=True)
class Draw:
    """Records and energy shares of one redrawn block."""

    site: str
    number: int
    frame: pd.DataFrame
    energy: dict[str, float]


class InitBlock:
    """Redrawn twins of the sites' blocks, each measured on the inputs that its site receives."""

    def __init__(self, twins: list[tuple[Site, int, Probe]]) -> None:
        self._twins = twins

    @property
    def probes(self) -> list[Probe]:
        """The twins' probes, by site and draw."""
        return [probe for _, _, probe in self._twins]

    def draws(self, site: str) -> list[Draw]:
        """The draws of one site, in their order."""
        found = []
        for twin_site, number, probe in self._twins:
            if twin_site.name == site:
                frame = probe.frame().assign(site=site)
                found.append(Draw(site, number, frame, next(iter(probe.energy().values()), {})))
        return found


@contextmanager
def init_block(probe: Probe, *, draws: int = DRAWS, seed: int = 0) -> Iterator[InitBlock]:
    """Measure, beside an open probe, the trained network with each site's block redrawn (the null model `init-block`).

    Redrawing a block does not change what it receives, so its twins run on the inputs of the same forward call and no
    further pass is needed. W_z is drawn from N(0, 0.01), the norm after it, or a gate in its place, has γ = 1;
    everything else is drawn as in a new block. Mean and range over the draws tell what the distances are worth without
    training.

    Args:
        probe: An open probe; its sites, quantities and image names are taken over.
        draws: Number of redrawn blocks for each site.
        seed: Seed of the draws.

    Yields:
        The twins' records.

    Cost: `draws` times the blocks' forward and probing; the rest of the network runs once.
    """
    twins: list[tuple[Site, int, Probe]] = []
    handles = []
    try:
        for site in probe.sites:
            probes = []
            for number in range(draws):
                twin = redraw(site.module, seed + number)
                probes.append((twin, probe.beside(twin)))
                twins.append((site, number, probes[-1][1]))
                probes[-1][1].__enter__()
            handles.append(site.module.register_forward_pre_hook(_runner(probe, probes)))
        yield InitBlock(twins)
    finally:
        for handle in handles:
            handle.remove()
        for _, _, twin_probe in twins:
            twin_probe.close()


def redraw(block: nn.Module, seed: int) -> nn.Module:
    """A new block with the settings, device, precision and mode of `block`, and weights drawn from `seed`.

    Criss-cross and point-wise attention have no W_z: γ of the one is 1, and the other is drawn as it is.

    Raises:
        ConfigError: the kind of block is not known, or it has no weights.
    """
    parameter = next(block.parameters(), None)
    if parameter is None:
        raise ConfigError(f"`{type(block).__name__}` has no weights to redraw", "use the null model init-all")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin: nn.Module
        if isinstance(block, NonLocal):
            twin = NonLocal(block.channels, block.dimension, replace(block.config, zero_init=False))
            nn.init.normal_(twin.output.weight, std=W_Z_STD)
        elif isinstance(block, ContextBlock):
            twin = ContextBlock(block.channels, replace(block.config, zero_init=False))
            last = [layer for layer in twin.transform.modules() if isinstance(layer, nn.Linear)][-1]
            nn.init.normal_(last.weight, std=W_Z_STD)
        elif isinstance(block, CrissCross):
            twin = CrissCross(block.channels, 2, replace(block.config, zero_init=False))
        elif isinstance(block, OPERATORS):
            if isinstance(block, AsymmetricFusion):
                twin = AsymmetricFusion(block.channels, replace(block.config, zero_init=False))
            else:
                twin = build_block(block.config.block, block.channels, 2, replace(block.config, zero_init=False))
            output = getattr(twin, "output", None)
            if isinstance(output, nn.Linear):
                nn.init.normal_(output.weight, std=W_Z_STD)
        elif isinstance(block, PointWiseBranch):
            twin = PointWiseBranch(block.width, block.direction, block.config)
        elif isinstance(block, SqueezeExcitation):
            twin = SqueezeExcitation(block.channels, block.config)
        elif isinstance(block, GatherExcite):
            twin = GatherExcite(block.channels, block.config)
        else:
            raise ConfigError(f"`{type(block).__name__}` cannot be redrawn", "use the null model init-all")
    return twin.to(parameter.device, parameter.dtype).train(block.training)


def _runner(probe: Probe, twins: list[tuple[nn.Module, Probe]]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def run(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs = tuple(tensor.detach() for tensor in args)
        shown = probe.upcoming(inputs[0].shape[0])
        with torch.no_grad():
            for twin, twin_probe in twins:
                with twin_probe.images(**vars(shown)):
                    twin(*inputs)

    return run
