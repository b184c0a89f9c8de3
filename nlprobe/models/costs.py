"""Parameters and operations of a network, counted without computing anything, and set against the paper's cells."""

import copy
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nlprobe.blocks import (
    CBAM,
    SOFTMAX_INSTANTIATIONS,
    AsymmetricFusion,
    AsymmetricPyramid,
    ChannelAttention,
    ContextBlock,
    CrissCross,
    CrissCrossAttention,
    Disentangled,
    GloRe,
    NonLocal,
    ObjectContext,
    PairwiseAttention,
    PointWise,
    PointWiseBranch,
    PositionAttention,
    SourceAttention,
    SqueezeExcitation,
    UnaryTerm,
)
from nlprobe.errors import ConfigError
from nlprobe.models.build import build
from nlprobe.models.counters import MACS, PAPER_COUNTER, SEGMENTATION_COUNTER, WITHOUT_MACS, Call, Counter
from nlprobe.models.detection import DetectionNetwork
from nlprobe.models.detection_costs import WithAllBoxes
from nlprobe.models.zoo import PaperRow, entry

MEGA = 10**6
GIGA = 10**9
GIBI = 2**30


@dataclass(frozen=True)
class Costs:
    """What a network costs on one input.

    Args:
        params: Number of parameters, each counted once however often it is used.
        macs: Multiply-accumulates of all products.
        paper_counter: Operations by the counter behind most of the paper's tables; a printed G is 2^30 of them.
        segmentation_counter: Operations by the counter behind Tables 12 and 13; a printed G is 10^9 of them.
        not_counted: What ran and is not in `macs`: class of a module, or function, to the number of calls.
        missed_products: Those of `not_counted` that do multiply matrices; `macs` is too low unless this is empty.
    """

    params: int
    macs: int
    paper_counter: int
    segmentation_counter: int
    not_counted: dict[str, int]
    missed_products: tuple[str, ...]


def count_costs(model: nn.Module, input_shape: Sequence[int]) -> Costs:
    """Count the costs of one image or clip, on torch's meta device: nothing is computed and the model is left as it is.

    Args:
        model: Any network that takes one tensor.
        input_shape: Shape of the input without the batch, such as (3, 224, 224), or (3, 8, 224, 224) for clips.

    Raises:
        ConfigError: the network does not take an input of that shape.
    """
    copied = _on_meta(model).eval()
    observer = _Observer()
    _observe(copied, observer)
    with torch.no_grad(), observer:
        try:
            copied(torch.empty(1, *input_shape, device="meta"))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the network does not take an input of shape {tuple(input_shape)}: {str(error).splitlines()[0]}",
                "give the channels and a larger size, such as (3, 224, 224)",
            ) from error
    return Costs(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=observer.macs,
        paper_counter=observer.paper_counter,
        segmentation_counter=observer.segmentation_counter,
        not_counted=dict(sorted(observer.not_counted.items())),
        missed_products=tuple(sorted(observer.missed_products)),
    )


@cache
def costs_of(name: str) -> Costs:
    """What a model of the zoo costs; counted once, and built without memory for its weights.

    Raises:
        ConfigError: there is no such model.
    """
    with torch.device("meta"):
        network = build(name)
    return count_costs(network, entry(name).input_shape)


def differing_cells(costs: Costs, row: PaperRow) -> list[str]:
    """The cost columns of a row, `params` and `flops`, in which our count does not round to what is printed."""
    count, unit = paper_count(costs, segmentation=row.dataset == "Cityscapes")
    ours = {"params": Decimal(costs.params) / MEGA, "flops": Decimal(count) / unit}
    return [name for name, value in ours.items() if name in row.cells and not _rounds_to(value, row.cells[name])]


def paper_count(costs: Costs, *, segmentation: bool) -> tuple[int, int]:
    """Operations by the counter of the paper's tables of a task, and how many of them are a printed G."""
    if segmentation:
        return costs.segmentation_counter, GIGA
    return costs.paper_counter, GIBI


def _rounds_to(value: Decimal, printed: str) -> bool:
    return value.quantize(Decimal(printed), ROUND_HALF_UP) == Decimal(printed)


class _Observer(TorchDispatchMode):
    """Adds up what the hooks say of modules, and sees every function of torch that runs outside of them.

    Attributes:
        depth_known: Open calls of modules whose costs a rule gives as a whole.
        depth_blocks: Open calls of attention blocks, whose rule covers the products that are not in a module.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.paper_counter = 0
        self.segmentation_counter = 0
        self.not_counted: Tally[str] = Tally()
        self.missed_products: set[str] = set()
        self.depth_known = 0
        self.depth_blocks = 0

    def enter(self, module: nn.Module) -> None:
        """A module is about to run."""
        if isinstance(module, _BLOCKS):
            self.depth_blocks += 1
        elif _is_known(module):
            self.depth_known += 1

    def leave(self, call: Call) -> None:
        """A module has run."""
        if isinstance(call.module, _BLOCKS):
            self.depth_blocks -= 1
        elif _is_known(call.module):
            self.depth_known -= 1
        rule, paper_rule = _rule(MACS, call.module), _rule(PAPER_COUNTER, call.module)
        segmentation_rule = _rule(SEGMENTATION_COUNTER, call.module)
        if rule is not None:
            self.macs += rule(call)
        elif _is_known(call.module):
            self.not_counted[type(call.module).__name__] += 1
        if paper_rule is not None:
            self.paper_counter += paper_rule(call)
        if segmentation_rule is not None:
            self.segmentation_counter += segmentation_rule(call)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__.strip("_")
        if not (self.depth_known or func.is_view or name in _MOVES):
            is_product = name in _PRODUCTS or name.startswith("scaled_dot_product")
            if is_product and not self.depth_blocks:
                self.missed_products.add(name)
            if not (is_product and self.depth_blocks):
                self.not_counted[name] += 1
        return func(*args, **(kwargs or {}))


_BLOCKS = (
    CBAM,
    SqueezeExcitation,
    AsymmetricFusion,
    AsymmetricPyramid,
    ChannelAttention,
    ContextBlock,
    CrissCross,
    CrissCrossAttention,
    GloRe,
    PointWise,
    PointWiseBranch,
    SourceAttention,
    Disentangled,
    NonLocal,
    ObjectContext,
    PairwiseAttention,
    PositionAttention,
    UnaryTerm,
)
_MOVES = {"clone", "copy", "empty", "new_empty", "to_copy", "unsafe_view"}
_PRODUCTS = {"addbmm", "addmm", "addmv", "baddbmm", "bmm", "convolution", "dot", "linear", "mm", "mv", "vdot"}


def _rule(counter: Counter, module: nn.Module) -> Callable[[Call], int] | None:
    return next((counter[base] for base in type(module).__mro__ if base in counter), None)


def _is_known(module: nn.Module) -> bool:
    return _rule(MACS, module) is not None or isinstance(module, WITHOUT_MACS)


def _observe(model: nn.Module, observer: _Observer) -> None:
    """Let every module of a copy that nobody else uses tell `observer` of its calls."""
    in_block = {part for block in model.modules() if isinstance(block, _BLOCKS) for part in block.modules()}

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        observer.enter(module)

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        observer.leave(Call(module, inputs, output, module in in_block))

    for module in model.modules():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without storage and without hooks."""
    # deepcopy takes what stands in its memo for the copy, so the weights themselves are never duplicated.
    memo: dict[int, Any] = {
        **{id(each): nn.Parameter(each.detach().to("meta"), each.requires_grad) for each in model.parameters()},
        **{id(each): each.to("meta") for each in model.buffers()},
    }
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if isinstance(module, PairwiseAttention):
            module.__class__ = _WrittenOut
        elif isinstance(module, DetectionNetwork):
            module.__class__ = WithAllBoxes
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Torch takes a batch norm on the meta device apart in Python, which would be half of the time.
            module.forward = _unchanged  # type: ignore[method-assign, assignment]
    return copied


def _unchanged(x: Tensor) -> Tensor:
    return x


class _WrittenOut(PairwiseAttention):
    """The formula as it is written, in place of the fused kernels, which the meta device does not have."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The map and the product."""
        if self.instantiation == "concat":
            logits = (query @ self.weight_query)[:, :, None] + (key @ self.weight_key)[:, None]
        else:
            logits = query @ key.mT
        if self.instantiation in SOFTMAX_INSTANTIATIONS:
            return logits.softmax(2) @ value
        return (logits.relu() if self.instantiation == "concat" else logits) / key.shape[1] @ value
