"""One attention product A·V as it was computed, and as it would be with other queries, keys or values."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nlprobe.blocks import PairwiseAttention
from nlprobe.blocks.concat import concat_attention
from nlprobe.blocks.dot_product import dot_product_attention
from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import PairwiseCapture
from nlprobe.stats.masks import Mask

SOFTMAX = ("gaussian", "embedded_gaussian")

_ALL = slice(None)


@dataclass(frozen=True)
class MapProduct:
    """What entered one product of a map and values, and what came out.

    s counts sets of positions (images, or windows image by image), h heads, n queries, m keys.

    Attributes:
        query: As they enter the product, n or one for all; None where the logits come from elsewhere.
        key: The same; fewer heads than the queries have where each serves several.
        value: The same.
        context: A·V.
        instantiation: Which f, as in `PairwiseCapture`.
        scale: Factor on query and key's product (softmax forms).
        mask: Biases and hidden keys.
        weight_query: Concat only.
        weight_key: Concat only.
    """

    query: Float[Tensor, "s h q d"] | None
    key: Float[Tensor, "s hk m d"] | None
    value: Float[Tensor, "s hv m dv"]
    context: Float[Tensor, "s h n dv"]
    instantiation: str = "embedded_gaussian"
    scale: float = 1.0
    mask: Mask | None = None
    weight_query: Float[Tensor, " d"] | None = None
    weight_key: Float[Tensor, " d"] | None = None

    @classmethod
    def of_capture(cls, capture: PairwiseCapture) -> "MapProduct":
        """From what an adapter reads."""
        return cls(
            None if capture.given is not None else capture.query,
            None if capture.given is not None else capture.key,
            capture.value,
            capture.context,
            capture.instantiation,
            capture.scale,
            capture.mask,
            capture.weight_query,
            capture.weight_key,
        )

    @classmethod
    def of_module(
        cls, module: PairwiseAttention, query: Tensor, key: Tensor, value: Tensor, context: Tensor
    ) -> "MapProduct":
        """From a call of our own product, which has one head."""
        concat = module.instantiation == "concat"
        return cls(
            query.unsqueeze(1),
            key.unsqueeze(1),
            value.unsqueeze(1),
            context.unsqueeze(1),
            module.instantiation,
            module.logit_scale,
            weight_query=module.weight_query if concat else None,
            weight_key=module.weight_key if concat else None,
        )

    @property
    def n_queries(self) -> int:
        """Queries in a set."""
        return self.context.shape[2]

    def with_query(self, query: Tensor) -> "MapProduct":
        """The same with other queries, as many as before or one."""
        return replace(self, query=query)

    def computed(self) -> Float[Tensor, "s h n dv"]:
        """A·V of query, key and value; O(n + m) memory where nothing is added to the logits.

        Raises:
            ConfigError: the logits are not a product of queries and keys that can be seen.
        """
        if self.query is None or self.key is None:
            raise ConfigError(
                "the logits of this attention are no product of queries and keys that can be seen",
                "choose an intervention that needs none: mean, uniform, shuffled or off",
            )
        query, heads = self.query, self.query.shape[1]
        key, value = _repeated(self.key, heads), _repeated(self.value, heads)
        if self.instantiation in SOFTMAX:
            sets, _, n, _ = query.shape
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=self._additive(slice(0, sets), slice(0, n)), scale=self.scale
            )
        query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
        if self.instantiation == "dot_product":
            context = dot_product_attention(query, key, value)
        else:
            assert self.weight_query is not None
            assert self.weight_key is not None
            context = concat_attention(query @ self.weight_query, key @ self.weight_key, value)
        return context.unflatten(0, (-1, heads))

    def uniform(self) -> Float[Tensor, "s h n dv"]:
        """The mean of the values that each query may see."""
        heads = self.context.shape[1]
        value = _repeated(self.value, heads)
        seen = self._seen()
        if seen is None:
            return value.mean(2, keepdim=True).expand_as(self.context)
        weights = seen.to(value.dtype)
        weights = (weights / weights.sum(-1, keepdim=True)).expand(*value.shape[:2], -1, -1)
        return (weights @ value).expand_as(self.context)

    def hides_by_query(self) -> bool:
        """Whether other keys are hidden from other queries."""
        seen = self._seen()
        return seen is not None and seen.shape[2] > 1 and not bool((seen == seen[:, :, :1]).all())

    def is_causal(self) -> bool:
        """Whether the queries see no keys that come after them."""
        seen = self._seen()
        if seen is None or seen.shape[2] != seen.shape[3] or seen.shape[2] == 1:
            return False
        later = torch.ones(seen.shape[2:], dtype=torch.bool, device=seen.device).triu(1)
        return not bool((seen & later).any())

    def _seen(self) -> Tensor | None:
        """(s or 1, h or 1, n or 1, m): which keys are visible; None where all are."""
        if self.mask is None or not self.mask.hides(self.n_queries, self.value.shape[2]):
            return None
        every = slice(0, self.n_queries)
        return self.mask.support(_ALL, _ALL, every, self.value.shape[2], self.value.device)

    def _additive(self, sets: slice, rows: slice) -> Tensor | None:
        """Bias and hidden keys as one matrix to be added to the logits."""
        if self.mask is None:
            return None
        bias = self.mask.bias
        shape = (1, 1, 1, 1) if bias is None else bias.shape
        seen = self._seen()
        if seen is not None:
            shape = torch.broadcast_shapes(shape, seen.shape)
        added = self.context.new_zeros(shape)
        if bias is not None:
            added = added + bias.to(added.dtype)
        return added if seen is None else added.masked_fill(~seen, -torch.inf)


def _repeated(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values with a head for each head of the queries."""
    times = heads // tensor.shape[1]
    return tensor if times == 1 else tensor.repeat_interleave(times, 1)
