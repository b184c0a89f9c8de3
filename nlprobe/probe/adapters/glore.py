"""Adapter for the global reasoning unit.

Of the six quantities it has two. `input` is x_i. `output` is z_i − x_i = norm(W_z Σ_n b_in r_n), which depends on the
query through its assignment b_i. That assignment stands for neither `att` nor `query`: it is normalised neither over
nodes nor over positions, its nodes are no positions, and between gathering by it and giving back by it stands a ReLU,
so that no weight ω_ij of position j for position i exists.
"""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.blocks import GloRe
from nlprobe.probe.adapters.parts import Calls, hook_parts
from nlprobe.probe.adapters.protocol import Deliver, MaplessCapture
from nlprobe.probe.adapters.recompute import at_least_single, linear, normed, relative_error, rows_of
from nlprobe.probe.watch import Watch

GLORE_HAS_NO_MAP = (
    "it assigns positions to nodes, by weights that are neither normalised nor a map of one query over positions"
)


class GloReAdapter:
    """Reads x and z at the unit, and the audit what its parts gave."""

    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is a `GloRe` unit."""
        return isinstance(module, GloRe)

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """Its settings, and how many nodes its graph has."""
        assert isinstance(module, GloRe)
        settings = {"channels": module.channels, "nodes": module.assignment.out_features}
        return module.config.block, settings | dict(module.config.as_dict())

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the unit and its parts."""
        assert isinstance(module, GloRe)
        block = module
        names = ("state", "assignment", "mix_nodes", "mix_states", "output", "norm")
        parts = {name: block.get_submodule(name) for name in names}

        def read(args: tuple[Tensor, ...], z: Tensor, calls: Calls) -> MaplessCapture:
            x = args[0]
            return MaplessCapture(
                x=rows_of(x),
                output=calls["norm"][0].output.view(calls["output"][0].output.shape),
                query_grid=tuple(x.shape[2:]),
                errors=lambda: _errors(block, x, z, calls),
                not_counted=(GLORE_HAS_NO_MAP,),
            )

        return hook_parts(block, parts, read, deliver)


def _errors(block: GloRe, x: Tensor, z: Tensor, calls: Calls) -> dict[str, float]:
    """Of each step, recomputed from what the step before it gave."""
    rows = at_least_single(rows_of(x))
    took = {name: at_least_single(found[0].inputs[0]) for name, found in calls.items()}
    gave = {name: at_least_single(found[0].output) for name, found in calls.items()}
    update = gave["norm"].view(gave["output"].shape)
    nodes = torch.einsum("bnm,bns->bms", gave["assignment"], gave["state"])
    nodes = nodes / rows.shape[1] if block.config.normalise else nodes
    mixed = took["mix_nodes"].mT + gave["mix_nodes"].mT
    back = torch.einsum("bnm,bms->bns", gave["assignment"], gave["mix_states"])
    layers = {"mix_nodes": block.mix_nodes, "mix_states": block.mix_states, "W_z": block.output}
    return {
        "state": relative_error(linear(rows, block.state), gave["state"]),
        "assignment": relative_error(linear(rows, block.assignment), gave["assignment"]),
        "nodes": relative_error(nodes, took["mix_nodes"].mT),
        "reasoning": relative_error(mixed.clamp_min(0), took["mix_states"]),
        "back": relative_error(back, took["output"]),
        **{
            name: relative_error(linear(took[part], layer), gave[part])
            for (name, layer), part in zip(layers.items(), ("mix_nodes", "mix_states", "output"), strict=True)
        },
        "norm": relative_error(normed(gave["output"], block.norm), update),
        "x + output": relative_error(rows + update, rows_of(z)),
    }
