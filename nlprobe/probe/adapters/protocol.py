"""What an adapter tells the probe about one kind of attention, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Instantiation = Literal["gaussian", "embedded_gaussian", "dot_product", "concat"]


@dataclass(frozen=True)
class PairwiseCapture:
    """One call of a block that has a map for every query: what entered the product, and what left the block.

    The map of head h is ω_i = f(query_i, key_j), with `instantiation` and `scale` saying what f is (section 3.1). Both
    Gaussian forms are softmax_j(scale · query_iᵀ key_j), dot product is query_iᵀ key_j / M, concat is
    ReLU(weight_queryᵀ query_i + weight_keyᵀ key_j) / M.

    Attributes:
        x: The block's input as rows.
        output: z − x as rows, after W_z and its norm.
        query: Queries as they enter the product.
        key: Keys as they enter the product.
        value: Values as they enter the product.
        context: A·V as the model computed it.
        instantiation: Which f.
        scale: Factor on the product of query and key (softmax forms).
        query_grid: Spatial sizes of the queries.
        key_grid: Spatial sizes of the keys.
        projected: Whether `query` and `key` are projections of x; if not, these two quantities are absent.
        weight_query: Concat only.
        weight_key: Concat only.
        errors: Called for the audit only: relative errors of the rest of the block (projections, W_z, the addition)
            recomputed from x, by name.
    """

    x: Float[Tensor, "b n c"]
    output: Float[Tensor, "b n c"]
    query: Float[Tensor, "b h n d"]
    key: Float[Tensor, "b h m d"]
    value: Float[Tensor, "b h m dv"]
    context: Float[Tensor, "b h n dv"]
    instantiation: Instantiation
    scale: float
    query_grid: tuple[int, ...]
    key_grid: tuple[int, ...]
    projected: bool
    errors: Callable[[], dict[str, float]]
    weight_query: Float[Tensor, " d"] | None = None
    weight_key: Float[Tensor, " d"] | None = None


@dataclass(frozen=True)
class SingleMapCapture:
    """One call of a block that has one map for all queries (SNL, GC, average pooling).

    Attributes:
        x: The block's input as rows.
        output: z − x as rows; None where fusion adds the same vector everywhere, which is then `shift`.
        shift: The vector that is added at every position; None for scale fusion.
        logits: W_k x, whose softmax over positions is the map; None for average pooling.
        query_grid: Spatial sizes.
        errors: As in `PairwiseCapture`.
    """

    x: Float[Tensor, "b n c"]
    output: Float[Tensor, "b n c"] | None
    shift: Float[Tensor, "b c"] | None
    logits: Float[Tensor, "b n"] | None
    query_grid: tuple[int, ...]
    errors: Callable[[], dict[str, float]] = field(repr=False)


Capture = PairwiseCapture | SingleMapCapture
Deliver = Callable[[Capture], None]


@runtime_checkable
class Adapter(Protocol):
    """Knows one kind of attention module."""

    def matches(self, module: nn.Module) -> bool:
        """Whether this adapter understands `module`."""

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """The kind of block and its settings, for people and for files."""

    def attach(self, module: nn.Module, deliver: Deliver) -> list[RemovableHandle]:
        """Hook `module` so that `deliver` is called once for each of its forward calls, inside that call.

        Returns:
            The handles; removing them leaves the module as it was.
        """
