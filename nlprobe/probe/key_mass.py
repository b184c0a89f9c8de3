"""What chosen keys, such as padding or an object, get of the attention of each query, by the head of the records."""

from dataclasses import replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from nlprobe.probe.adapters import PairwiseCapture
from nlprobe.probe.measurement import Measurement
from nlprobe.probe.padding import Padding
from nlprobe.probe.rows import heads_of
from nlprobe.stats import concat_key_mass, dot_key_mass, joined_key_mass, softmax_key_mass
from nlprobe.stats.records import AVERAGED_HEAD, PAIRWISE_HEAD, UNARY_HEAD

Masses = dict[tuple[str, ...], Tensor]
"""By the heads of a measurement, the masses (s, h, n, k) of their queries."""


def key_masses(capture: PairwiseCapture, keys: Shaped[Tensor, "s k m"]) -> Masses:
    """The part of |a_i| on each of k sets of keys, for every query and the heads that the records of `att` have.

    The head-averaged row gives the mean over the heads whose query sees any key.

    Args:
        capture: What the adapter delivered.
        keys: Sets of keys, or the part of each key that belongs to them.
    """
    if capture.instantiation in ("dot_product", "concat"):
        return {("0",): _of_other_maps(capture, keys).unsqueeze(1)}
    each = softmax_key_mass(capture.logits, keys)
    found = {heads_of(each[:, :, 0, 0]): each}
    if each.shape[1] > 1:
        found[(AVERAGED_HEAD,)] = each.nanmean(1, keepdim=True)
    if capture.unary is not None:
        u = capture.unary.map.double()
        fixed = (u.unsqueeze(1) * keys.to(u)).sum(-1) / u.sum(-1, keepdim=True)  # (s, k)
        found[(UNARY_HEAD,)] = fixed[:, None, None].expand_as(each)
        if capture.unary.joined:
            found[(PAIRWISE_HEAD,)] = each
            found[("0",)] = joined_key_mass(capture.logits, capture.unary.map, capture.unary.weights, keys)
    return found


def with_padding_mass(
    found: list[Measurement], capture: PairwiseCapture, padding: Padding, prefix: int
) -> list[Measurement]:
    """The records of the maps with `padding_mass`: the mean over their queries of the mass on padded keys.

    Args:
        found: The records of one call.
        capture: What the adapter delivered.
        padding: Which positions lie in the pictures.
        prefix: How many of the first positions are not places in the image.
    """
    if padding.keys is None:
        return found
    counted = {"all": torch.ones_like(padding.queries), "valid": padding.queries, "no_prefix": padding.queries.clone()}
    counted["no_prefix"][:, :prefix] = False
    masses: Masses = {}
    if not bool(padding.keys.all()):
        masses = key_masses(capture, ~padding.keys.unsqueeze(1))

    def mass(one: Measurement) -> Tensor | float:
        if not masses:
            return 0.0
        left_out = ~counted[one.positions].unsqueeze(1)
        return masses[one.heads].squeeze(-1).masked_fill(left_out, torch.nan).nanmean(-1)

    return [
        replace(one, values=dict(one.values) | {"padding_mass": mass(one)})
        if one.quantity == "att" and one.positions in counted
        else one
        for one in found
    ]


def _of_other_maps(capture: PairwiseCapture, keys: Tensor) -> Tensor:
    assert capture.query is not None
    assert capture.key is not None
    query, key = capture.query[:, 0], capture.key[:, 0]
    if capture.weight_query is None or capture.weight_key is None:
        return dot_key_mass(query, key, keys)
    a, b = query.double() @ capture.weight_query.double(), key.double() @ capture.weight_key.double()
    return concat_key_mass(a, b, keys)
