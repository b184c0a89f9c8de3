"""The global reasoning unit (Chen et al. 2019), the comparator of Table 11: a graph of nodes that positions share."""

from dataclasses import dataclass, fields
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.rows import add_rows, to_rows
from nlprobe.blocks.settings import BlockConfig, check_feature_map, check_positive_integer, check_switch


@dataclass(frozen=True)
class GloReConfig(BlockConfig):
    """Settings of a `GloRe` unit; the defaults are the original's.

    Attributes:
        reduction: The graph has max(C // reduction, 1) nodes, each with a state twice as wide as their number; 4 in the
            authors' networks.
        normalise: The nodes' states are divided by the number of positions, as the authors advise where the size of the
            input varies.
        zero_init: The unit starts as the identity: the norm's weight is zero.

    Raises:
        ConfigError: a value that the setting cannot take.
    """

    block: ClassVar[str] = "glore"

    reduction: int = 4
    normalise: bool = False
    zero_init: bool = True

    def __post_init__(self) -> None:
        check_positive_integer(self.block, "reduction", self.reduction)
        check_switch(self.block, "normalise", self.normalise)
        check_switch(self.block, "zero_init", self.zero_init)

    def nodes(self, channels: int) -> int:
        """Number m of nodes."""
        return max(channels // self.reduction, 1)


class GloRe(nn.Module):
    """z_i = x_i + norm(W_z sum_n b_in r_n), with node states r that are the same for all positions.

    - assignment: b_in = (W_b x_i)_n, of every position to every node, without softmax or any other normaliser;
    - states: v_n = sum_i b_in W_s x_i, or their mean with `normalise`;
    - reasoning: h_n = v_n + sum_k a_nk v_k + a_n, then r_n = W_g ReLU(h_n);
    - back: sum_n b_in r_n, by the same assignment.

    | here | "Graph-Based Global Reasoning Networks" | the authors' `GloRe_Unit` |
    | --- | --- | --- |
    | `state` | φ | `conv_state` |
    | `assignment` | θ, the projection matrix B | `conv_proj` |
    | `mix_nodes`, `mix_states` | I − A_g, W_g | `gcn.conv1`, `gcn.conv2` |
    | `output`, `norm` | the last linear layer | `conv_extend`, `blocker` |

    The original stands behind whole residual blocks (`after_block`).

    O(N C²/r) time, O(N C) memory.

    Args:
        channels: C.
        config: All other settings.

    Raises:
        ConfigError: an input without spatial axes or with another number of channels.
    """

    def __init__(self, channels: int, config: GloReConfig = GloReConfig()) -> None:
        super().__init__()
        check_positive_integer(config.block, "channels", channels)
        self.channels = channels
        self.config = config
        nodes = config.nodes(channels)
        self.state = nn.Linear(channels, 2 * nodes)
        self.assignment = nn.Linear(channels, nodes)
        self.mix_nodes = nn.Linear(nodes, nodes)
        self.relu = nn.ReLU()
        self.mix_states = nn.Linear(2 * nodes, 2 * nodes, bias=False)
        self.output = nn.Linear(2 * nodes, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels, eps=1e-4)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, uniformly after Glorot with zero biases; the norm's weight as `zero_init` says."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.norm.reset_parameters()
        if self.config.zero_init:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """z, in the memory layout of x."""
        check_feature_map(type(self).__name__, self.channels, x)
        rows = to_rows(x)
        assigned = self.assignment(rows)  # (b, n, m)
        nodes = assigned.mT @ self.state(rows)  # (b, m, s)
        if self.config.normalise:
            nodes = nodes / rows.shape[1]
        mixed = nodes + self.mix_nodes(nodes.mT).mT
        reasoned = self.mix_states(self.relu(mixed))
        update = self.output(assigned @ reasoned)  # (b, n, c)
        update = self.norm(update.flatten(0, 1)).view(update.shape)
        return add_rows(x, update)

    def extra_repr(self) -> str:
        """All settings, as `print` shows them."""
        settings = ", ".join(f"{field.name}={getattr(self.config, field.name)!r}" for field in fields(self.config))
        return f"{self.channels}, {settings}"
