"""A network of the zoo with some of its non-local blocks replaced."""

from collections.abc import Mapping

from torch import nn

from nlprobe.blocks import ContextBlock
from nlprobe.models import build
from nlprobe.probe.sites import site_name
from nlprobe.simplification.configuration import with_blocks


def with_simplified(model: nn.Module, blocks: Mapping[str, ContextBlock]) -> nn.Module:
    """A new network: the weights of `model`, and other blocks at some of its sites; `model` stays as it is.

    Args:
        model: A network that `nlprobe.build` makes.
        blocks: The new blocks by site.

    Returns:
        In evaluation mode, on the device of `model`.
    """
    config = with_blocks(model.config, {site: block.config for site, block in blocks.items()})
    new = build(config, seed=0)
    modules = dict(model.named_modules())
    names = {site: path for path in modules if (site := site_name(path)) in blocks}
    state = model.state_dict()
    for site, path in names.items():
        for name in [name for name in state if name.startswith(f"{path}.")]:
            del state[name]
        state |= {f"{path}.{name}": tensor for name, tensor in blocks[site].state_dict().items()}
    new.load_state_dict(state)
    return new.to(next(model.parameters()).device).eval()


def block_at(model: nn.Module, site: str) -> tuple[str, nn.Module]:
    """Module path and block of a site."""
    return next((path, module) for path, module in model.named_modules() if site_name(path) == site)
