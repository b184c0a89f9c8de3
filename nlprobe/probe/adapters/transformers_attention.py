"""Adapters for attention in Hugging Face `transformers`, by qualified names: the package is not imported."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.probe.adapters.attention_module import AttentionModule
from nlprobe.probe.adapters.protocol import Deliver, PairwiseCapture
from nlprobe.probe.adapters.recompute import at_least_single, relative_error
from nlprobe.probe.adapters.torch_attention import SWIN_HIDDEN
from nlprobe.probe.watch import Product, Watch

OUTPUTS = ("o_proj", "out_proj", "output.dense", "dense", "out_lin", "c_proj", "o")
"""Where the library's attention modules keep W_o."""


@dataclass(frozen=True)
class TransformersAttention(AttentionModule):
    """Any `*Attention` module of `transformers.models` with an output projection W_o of its own.

    x is `hidden_states`; z − x is what W_o gives: before dropout, residual and, in BERT and its like, the layer norm
    that the same module applies. A module in which something lies between A·V and
    W_o (a gate, a norm) fails the audit. Keys that are repeated for grouped queries are measured once.
    """

    block: str = "transformers"
    classes: tuple[type | str, ...] = ()
    source: int | str = "hidden_states"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is an attention class of the library that has W_o."""
        cls = type(module)
        named = cls.__module__.startswith("transformers.models.") and cls.__name__.endswith("Attention")
        return named and _output_path(module) is not None

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """Called by its class; with the numbers of heads."""
        settings: dict[str, object] = {"class": type(module).__name__}
        heads = _heads(module)
        if heads is not None:
            settings["heads"] = heads
        key_heads = getattr(getattr(module, "config", None), "num_key_value_heads", None)
        if isinstance(key_heads, int) and key_heads != heads:
            settings["key_heads"] = key_heads
        return f"transformers.{type(module).__name__}", settings

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook the module and its W_o, wherever that is."""
        path = _output_path(module)
        assert path is not None
        return replace(self, output=path, windows="Swin" in type(module).__name__)._attach(module, deliver, watch)

    def _attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        return AttentionModule.attach(self, module, deliver, watch)

    def crosses(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether keys come from an encoder."""
        other = ("encoder_hidden_states", "key_value_states")
        return "Cross" in type(module).__name__ or any(kwargs.get(name) is not None for name in other)

    def capture(
        self, module: nn.Module, product: Product, x: Tensor | None, out: Tensor | None, *, several: bool = False
    ) -> PairwiseCapture:
        """With the heads of one query put back where they are laid out as queries, and keys without repetition."""
        heads = _heads(module)
        if self.windows:
            found = replace(self, hidden_below=SWIN_HIDDEN)
            return AttentionModule.capture(found, module, product, x, out, several=several)
        query, context = product.query, product.context
        single = query is not None and query.dim() == 4 and x is not None and x.shape[1] == 1
        if single and query is not None and query.shape[1] != heads == query.shape[1] * query.shape[2]:
            # one query of each of several heads that share a head of keys
            query, context = query.flatten(1, 2).unsqueeze(2), context.flatten(1, 2).unsqueeze(2)
            product = replace(product, query=query, context=context)
        captured = AttentionModule.capture(self, module, product, x, out, several=several)
        key_heads = getattr(getattr(module, "config", None), "num_key_value_heads", None)
        if captured.key is None or heads is None or not isinstance(key_heads, int):
            return captured
        if 0 < key_heads < heads == captured.key.shape[1]:
            return replace(captured, key=captured.key[:, :: heads // key_heads])
        return captured

    def errors(self, module: nn.Module, capture: PairwiseCapture) -> dict[str, float]:
        """W_o·A·V + b against the output."""
        if capture.output is None or not self.output:
            return {}
        layer = module.get_submodule(self.output)
        weight = next(layer.parameters())
        expected = type(layer).forward(layer, self.merged(capture.context).to(weight.dtype))
        return {"W_o": relative_error(at_least_single(expected), capture.output)}


def _output_path(module: nn.Module) -> str | None:
    for path in OUTPUTS:
        owner: Any = module
        for name in path.split("."):
            owner = getattr(owner, name, None)
        if isinstance(owner, nn.Module) and len(list(owner.parameters())) > 0:
            return path
    return None


def _heads(module: nn.Module) -> int | None:
    inner = getattr(module, "self", module)
    for owner in (inner, getattr(inner, "config", None)):
        for name in ("num_heads", "num_attention_heads", "n_heads", "n_head"):
            heads = getattr(owner, name, None)
            if isinstance(heads, int):
                return heads
    return None


TRANSFORMERS_ADAPTERS = (TransformersAttention(),)
