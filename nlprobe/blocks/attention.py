"""The pairwise product of a non-local block, y_i = sum_j ω_ij v_j, in its four instantiations."""

import math
from contextlib import nullcontext
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks.concat import concat_attention
from nlprobe.blocks.dot_product import dot_product_attention
from nlprobe.blocks.softmax import softmax_attention
from nlprobe.errors import ConfigError

Instantiation = Literal["gaussian", "embedded_gaussian", "dot_product", "concat"]
INSTANTIATIONS: tuple[Instantiation, ...] = get_args(Instantiation)
SOFTMAX_INSTANTIATIONS: tuple[Instantiation, ...] = ("gaussian", "embedded_gaussian")


class PairwiseAttention(nn.Module):
    """y_i = sum_j ω_ij v_j with the ω of section 3.1, never building the N x M map.

    - gaussian, embedded_gaussian: ω_ij = softmax_j(s q_i·k_j), s the `logit_scale`;
    - dot_product: ω_ij = q_i·k_j / M;
    - concat: ω_ij = ReLU(a_i + b_j) / M with a = Q w_q, b = K w_k: the paper's ReLU(W_q [q_i, k_j]) / N_p, its one
      row of weights on the pair cut in two, w_q for the query's part and w_k for the key's.

    The module is always called, so a forward hook sees exactly the queries, keys and values that enter the product.

    Under autocast the softmax modes compute in autocast's type with logits and sums in float32, the other two in
    float32, because sums over thousands of keys leave what a half holds. The gradient is exact and differentiable
    once: a second derivative raises.

    Args:
        instantiation: Which ω.
        width: Width d of queries and keys; concat only, where it is required.
        logit_scale: Factor of the logits, scale and temperature folded; softmax modes only.

    Raises:
        ConfigError: unknown instantiation, or a setting that it does not have.
    """

    def __init__(self, instantiation: Instantiation, width: int | None = None, logit_scale: float = 1.0) -> None:
        super().__init__()
        if instantiation not in INSTANTIATIONS:
            raise ConfigError(f"unknown instantiation `{instantiation}`", f"choose one of {', '.join(INSTANTIATIONS)}")
        if instantiation not in SOFTMAX_INSTANTIATIONS and logit_scale != 1.0:
            raise ConfigError(f"`{instantiation}` has no logit scale, got {logit_scale}", "leave `logit_scale` at 1")
        self.instantiation: Instantiation = instantiation
        self.logit_scale = logit_scale
        if instantiation == "concat":
            if width is None:
                raise ConfigError("`concat` needs the width of queries and keys", "pass `width`")
            self.weight_query = nn.Parameter(torch.empty(width))
            self.weight_key = nn.Parameter(torch.empty(width))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the concat weights from N(0, 1/d): He's initialisation for a ReLU unit with 2 d inputs."""
        if self.instantiation == "concat":
            for weight in (self.weight_query, self.weight_key):
                nn.init.normal_(weight, std=1 / math.sqrt(len(weight)))

    def forward(
        self, query: Float[Tensor, "b n d"], key: Float[Tensor, "b m d"], value: Float[Tensor, "b m dv"]
    ) -> Float[Tensor, "b n dv"]:
        """The weighted sums of the values, one for each query; O((N + M)(d + dv)) memory in every mode."""
        device = query.device.type
        dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if autocast and dtype != torch.float64:  # which autocast leaves alone
            dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            if self.instantiation == "dot_product":
                return dot_product_attention(query, key, value)
            if self.instantiation == "concat":
                wide = torch.float64 if dtype == torch.float64 else torch.float32
                a = query.to(wide) @ self.weight_query.to(wide)
                b = key.to(wide) @ self.weight_key.to(wide)
                return concat_attention(a, b, value.to(wide)).to(dtype)
            return softmax_attention(query, key, value, self.logit_scale)

    def extra_repr(self) -> str:
        """The settings, as `print` shows them."""
        scale = f", logit_scale={self.logit_scale:.6g}" if self.instantiation in SOFTMAX_INSTANTIATIONS else ""
        return f"{self.instantiation}{scale}"
