"""Feature maps as rows of positions and back."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


def to_rows(x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b n c"]:
    """The positions of a feature map in row-major order, one contiguous row of channels each.

    A view where the map is in a channels-last layout, else one copy.
    """
    return x.flatten(2).mT.contiguous()


def to_map(rows: Float[Tensor, "b n c"], spatial: Sequence[int]) -> Float[Tensor, "b c *spatial"]:
    """The inverse of `to_rows`, as a view in a channels-last layout."""
    return rows.mT.unflatten(2, tuple(spatial))
