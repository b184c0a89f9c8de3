"""What the maps of a site can be replaced by."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.intervention.products import SOFTMAX, MapProduct


@dataclass
class Predecessors:
    """Queries and keys of the image before, by use of a site; what `other-image` takes its maps from.

    Attributes:
        images: How many images the forward call under way holds.
        last: By use, the queries and keys of the sets of the last image seen.
    """

    images: int = 0
    last: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Where:
    """The product that is being replaced.

    Attributes:
        site: Its site.
        use: Which of the site's products, over all of its calls in a forward call.
        seed: Seed of what is random.
        before: What the images before it have left.
    """

    site: str
    use: int
    seed: int
    before: Predecessors


Replacement = Callable[[MapProduct, Where], Tensor]
"""From a product to the A·V that takes its place, of the same shape."""


def mean_map(product: MapProduct, where: Where) -> Tensor:
    """Every query gets the mean of all queries' maps: (mean_i ω_i) V = mean_i (ω_i V), so no map is needed.

    Raises:
        ConfigError: causal attention, where the mean map would show queries what comes after them.
    """
    if product.is_causal():
        raise ConfigError(
            f"`{where.site}` is causal: the mean of its maps would show a query the keys that come after it",
            "choose other sites (--site), or `uniform`, which keeps to the visible keys",
        )
    return product.context.mean(2, keepdim=True).expand_as(product.context)


def uniform_map(product: MapProduct, where: Where) -> Tensor:
    """Every query gets the uniform map over the keys that it may see."""
    return product.uniform()


def shuffled_maps(product: MapProduct, where: Where) -> Tensor:
    """Every query gets the map of another query of its image; no query keeps its own.

    The order is drawn once for each number of queries, so it is the same in all images, heads and sites.

    Raises:
        ConfigError: causal attention.
    """
    if product.is_causal():
        raise ConfigError(
            f"`{where.site}` is causal: the map of a later query shows an earlier one what comes after it",
            "choose other sites (--site), or `uniform`, which keeps to the visible keys",
        )
    n = product.n_queries
    order = torch.randperm(n, generator=torch.Generator().manual_seed(where.seed))
    taken = torch.empty_like(order)
    taken[order] = order.roll(1)
    return product.context[:, :, taken.to(product.context.device)]


def map_of_other_image(product: MapProduct, where: Where) -> Tensor:
    """Every image gets the maps of the image before it on its own values; the first of all keeps its own.

    Raises:
        ConfigError: the image before has other sizes, or the logits are not seen.
    """
    query, key = product.query, product.key
    if query is None or key is None:
        return product.computed()  # refuses
    per_image = query.shape[0] // max(where.before.images, 1)
    place = (where.site, where.use)
    before = where.before.last.get(place, (query[:per_image], key[:per_image]))
    if before[0].shape[1:] != query.shape[1:] or before[1].shape[1:] != key.shape[1:]:
        raise ConfigError(
            f"`{where.site}`: two images that follow each other have {before[0].shape[2]} and {query.shape[2]} "
            "queries, so one cannot get the maps of the other",
            "give images of one size, or another intervention",
        )
    where.before.last[place] = (query[-per_image:].clone(), key[-per_image:].clone())
    shifted = [torch.cat([first, own[:-per_image]]) for first, own in zip(before, (query, key), strict=True)]
    return MapProduct(
        shifted[0],
        shifted[1],
        product.value,
        product.context,
        product.instantiation,
        product.scale,
        product.mask,
        product.weight_query,
        product.weight_key,
    ).computed()


def unary_part(product: MapProduct, where: Where) -> Tensor:
    """Every query gets the map of the mean query: softmax_j(s q̄·k_j), the key-only part of the logits.

    Row-centred logits are pairwise + unary, s (q_i − q̄)·(k_j − k̄) + s q̄·(k_j − k̄); of dot product it is the mean map.

    Raises:
        ConfigError: the logits do not split: concat, or a bias or mask is added to them.
    """
    _refuse_unsplit(product, where)
    assert product.query is not None
    return product.with_query(product.query.mean(2, keepdim=True)).computed().expand_as(product.context)


def pairwise_part(product: MapProduct, where: Where) -> Tensor:
    """Every query gets the map of its own part of the logits, softmax_j(s (q_i − q̄)·k_j).

    Raises:
        ConfigError: as for `unary_part`.
    """
    _refuse_unsplit(product, where)
    assert product.query is not None
    return product.with_query(product.query - product.query.mean(2, keepdim=True)).computed()


REPLACEMENTS: dict[str, Replacement] = {
    "mean": mean_map,
    "uniform": uniform_map,
    "shuffled": shuffled_maps,
    "other-image": map_of_other_image,
    "unary": unary_part,
    "pairwise": pairwise_part,
}
"""What stands in for the maps, by name; `off` beside them takes the whole block out."""

COMPUTED_ANEW = ("other-image", "unary", "pairwise")
"""Those that need the product as nlprobe computes it from queries, keys and values."""


def _refuse_unsplit(product: MapProduct, where: Where) -> None:
    if product.query is None or product.key is None:
        product.computed()  # refuses
    if product.mask is not None or product.instantiation not in (*SOFTMAX, "dot_product"):
        what = "concatenation" if product.mask is None else "a bias or mask"
        raise ConfigError(
            f"the logits of `{where.site}` do not split into a unary and a pairwise part: they have {what}",
            "choose another intervention or other sites (--site)",
        )
