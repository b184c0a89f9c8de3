"""What an adapter tells the probe about one kind of attention, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nlprobe.probe.watch import Watch
from nlprobe.stats.logits import Logits
from nlprobe.stats.masks import Mask

Instantiation = Literal["gaussian", "embedded_gaussian", "dot_product", "concat"]


def no_errors() -> dict[str, float]:
    """Nothing is recomputed beside A·V."""
    return {}


@dataclass(frozen=True)
class UnaryMap:
    """The second map of a block that has one for all queries beside one for each (disentangled non-local).

    Attributes:
        map: u, which sums to 1.
        pairwise_weight: w_p of the row w_p p_i + w_u u with which the block multiplies its values.
        weight: w_u.
        joined: Whether both maps multiply the same values; if not, there is no such row, and the block's row is p_i.
    """

    map: Float[Tensor, "s m"]
    pairwise_weight: float = 1.0
    weight: float = 1.0
    joined: bool = True

    @property
    def weights(self) -> tuple[float, float]:
        """w_p and w_u."""
        return self.pairwise_weight, self.weight


@dataclass(frozen=True)
class PairwiseCapture:
    """One call of a block that has a map for every query: what entered the product, and what left the block.

    s counts sets of positions, h heads, n queries, m keys. A set is an image, or one of the equally many windows of an
    image, image by image. The map of head h is ω_i = f(query_i, key_j), with `instantiation`, `scale` and `mask` saying
    what f is (section 3.1). Both Gaussian forms are softmax_j(scale · query_iᵀ key_j + b_ij), dot product is
    query_iᵀ key_j / M, concat is ReLU(weight_queryᵀ query_i + weight_keyᵀ key_j) / M.

    Attributes:
        x: The block's input as rows; None where the adapter does not know it.
        output: z − x as rows, after W_z and its norm; None where the adapter does not know it.
        query: Queries as they enter the product; None where only `given` is known.
        key: Keys as they enter the product; fewer heads than the queries have where each serves several.
        value: Values as they enter the product.
        context: A·V as the model computed it.
        instantiation: Which f.
        scale: Factor on the product of query and key (softmax forms).
        query_grid: Spatial sizes of the queries; () where they are not known.
        key_grid: Spatial sizes of the keys; () where they lie on no grid.
        projected: Whether `query` and `key` are projections of x; if not, these two quantities are absent.
        errors: Called for the audit only: relative errors of the rest of the block (projections, W_z, the addition)
            recomputed from x, by name.
        mask: Biases and hidden keys.
        given: The logits as they entered the softmax, where they are not a product of query and key alone.
        windows: Whether an image may have several sets.
        self_attention: Whether query i and key i are the same position.
        valid: Which queries are not padding, where the adapter knows better than the mask does.
        dropout: The probability with which attention weights were dropped in this call.
        dtype: The precision of the softmax, where it is another than that of queries and output.
        residual: Whether the block itself adds the output to x, so that ‖z − x‖/‖x‖ means something.
        not_counted: What is absent and why, in words.
        unary: A map for all queries beside those of `query` and `key`.
        weight_query: Concat only.
        weight_key: Concat only.
    """

    x: Float[Tensor, "s n c"] | None
    output: Float[Tensor, "s n co"] | None
    query: Float[Tensor, "s h n d"] | None
    key: Float[Tensor, "s hk m d"] | None
    value: Float[Tensor, "s hv m dv"]
    context: Float[Tensor, "s h n dv"]
    instantiation: Instantiation
    scale: float
    query_grid: tuple[int, ...]
    key_grid: tuple[int, ...]
    projected: bool
    errors: Callable[[], dict[str, float]] = no_errors
    mask: Mask | None = None
    given: Float[Tensor, "s h n m"] | None = None
    windows: bool = False
    self_attention: bool = True
    valid: Bool[Tensor, "s n"] | None = None
    dropout: float = 0.0
    dtype: torch.dtype | None = None
    residual: bool = True
    not_counted: tuple[str, ...] = ()
    unary: UnaryMap | None = None
    weight_query: Float[Tensor, " d"] | None = None
    weight_key: Float[Tensor, " d"] | None = None

    @property
    def logits(self) -> Logits:
        """What enters the softmax (softmax forms)."""
        return Logits(self.query, self.key, self.scale, self.mask, self.given)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.context.device

    @property
    def sets(self) -> int:
        """Images times windows."""
        return self.context.shape[0]

    @property
    def n_queries(self) -> int:
        """Queries in a set."""
        return self.context.shape[2]

    @property
    def n_keys(self) -> int:
        """Keys in a set."""
        return self.value.shape[2]


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

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.x.device

    @property
    def sets(self) -> int:
        """Images."""
        return self.x.shape[0]


@dataclass(frozen=True)
class CrossCapture:
    """One step of a criss-cross block: ω_i = softmax over the column and the row of i, the position itself once.

    The last of several steps comes with what all of them did together: queries and keys of every step, the input of the
    first, and the block's whole output z − x = γ Σ_r y^(r).

    Attributes:
        x: The step's input as rows.
        output: γ y as rows.
        query: Queries on their grid.
        key: Keys on their grid.
        value: Values on their grid.
        context: y = A·V as the model computed it.
        errors: As in `PairwiseCapture`.
        all_queries: Of every step, in their order; None but in the last of two or more.
        all_keys: The same for keys.
        first_x: The block's input as rows; None but in the last step.
        whole_output: The block's output as rows; None but in the last step.
        not_counted: What is absent and why, in words.
    """

    x: Float[Tensor, "b n c"]
    output: Float[Tensor, "b n c"]
    query: Float[Tensor, "b h w d"]
    key: Float[Tensor, "b h w d"]
    value: Float[Tensor, "b h w c"]
    context: Float[Tensor, "b h w c"]
    errors: Callable[[], dict[str, float]] = field(repr=False)
    all_queries: Float[Tensor, "steps b h w d"] | None = None
    all_keys: Float[Tensor, "steps b h w d"] | None = None
    first_x: Float[Tensor, "b n c"] | None = None
    whole_output: Float[Tensor, "b n c"] | None = None
    not_counted: tuple[str, ...] = ("further metrics of the map (`--metric`): they take rows over all keys",)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.context.device

    @property
    def sets(self) -> int:
        """Images."""
        return self.x.shape[0]

    @property
    def query_grid(self) -> tuple[int, ...]:
        """Height and width, of queries and keys alike."""
        return tuple(self.query.shape[1:3])


@dataclass(frozen=True)
class MaplessCapture:
    """One call of a block that has no attention map (CBAM, gather-excite): what entered it and what left it.

    Attributes:
        x: The block's input as rows.
        output: z − x as rows.
        query_grid: Spatial sizes.
        errors: As in `PairwiseCapture`.
        not_counted: Why there is no map, in words.
    """

    x: Float[Tensor, "b n c"]
    output: Float[Tensor, "b n c"]
    query_grid: tuple[int, ...]
    errors: Callable[[], dict[str, float]] = field(repr=False)
    not_counted: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.x.device

    @property
    def sets(self) -> int:
        """Images."""
        return self.x.shape[0]


Capture = PairwiseCapture | SingleMapCapture | CrossCapture | MaplessCapture
Deliver = Callable[[Capture], None]


@runtime_checkable
class Adapter(Protocol):
    """Knows one kind of attention module."""

    def matches(self, module: nn.Module) -> bool:
        """Whether this adapter understands `module`."""

    def describe(self, module: nn.Module) -> tuple[str, dict[str, object]]:
        """The kind of block and its settings, for people and for files."""

    def attach(self, module: nn.Module, deliver: Deliver, watch: Watch) -> list[RemovableHandle]:
        """Hook `module` so that `deliver` is called once for each of its forward calls, inside that call.

        Args:
            module: The attention module.
            deliver: Takes the capture.
            watch: Sees attention products inside the module's forward, for adapters that need it.

        Returns:
            The handles; removing them leaves the module as it was.
        """
