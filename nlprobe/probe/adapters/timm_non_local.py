"""Adapter for timm's non-local block, `NonLocalAttn`."""

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import nn

from nlprobe.probe.adapters.attention_module import AttentionModule, Call
from nlprobe.probe.adapters.layout import as_rows
from nlprobe.probe.adapters.protocol import PairwiseCapture
from nlprobe.probe.adapters.recompute import at_least_single, linear, relative_error, rows_of


@dataclass(frozen=True)
class TimmNonLocal(AttentionModule):
    """timm's non-local block: embedded Gaussian with scale d^-1/2; z − x is what its norm gives."""

    block: str = "timm.NonLocalAttn"
    classes: tuple[type | str, ...] = ("timm.layers.non_local_attn.NonLocalAttn",)
    output: str = "norm"
    layout: str = "b c h w"
    residual: bool = True
    settings: tuple[str, ...] = ("scale",)

    def captures(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, call: Call
    ) -> list[PairwiseCapture]:
        """With the addition and, where the norm is a batch norm in eval mode, W_z recomputed."""
        [found] = super().captures(module, args, kwargs, result, call)
        assert found.x is not None
        assert found.output is not None
        x, output, z = at_least_single(found.x), at_least_single(found.output), as_rows(result.detach(), self.layout)

        def errors() -> dict[str, float]:
            return self.errors(module, found) | {"x + W_z·A·V": relative_error(x + output, z)}

        return [replace(found, errors=errors)]

    def errors(self, module: nn.Module, capture: PairwiseCapture) -> dict[str, float]:
        """norm(W_z·A·V + b) against z − x."""
        norm, layer = module.get_submodule("norm"), module.get_submodule("z")
        assert isinstance(layer, nn.Conv2d)
        if type(norm) is not nn.BatchNorm2d or norm.training or norm.running_mean is None or norm.running_var is None:
            return {}
        assert capture.output is not None
        rows = linear(at_least_single(capture.context[:, 0]), layer)
        mean, variance = at_least_single(norm.running_mean), at_least_single(norm.running_var)
        weight, bias = at_least_single(norm.weight), at_least_single(norm.bias)
        expected = rows_of(F.batch_norm(rows.mT, mean, variance, weight, bias, training=False, eps=norm.eps))
        return {"W_z": relative_error(expected, capture.output)}
