"""Which positions of a site lie in the pictures, and which in the padding at their right and bottom."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import Capture, PairwiseCapture
from nlprobe.probe.naming import Size, Upcoming
from nlprobe.stats.grids import valid_cells


@dataclass(frozen=True)
class Padding:
    """The positions of each image that lie in its picture; False in the padding.

    Attributes:
        queries: Of the queries, and of all vectors that lie where they do; at least one of each image is True.
        keys: Of the keys; None where they lie on no grid of the picture.
    """

    queries: Bool[Tensor, "b n"]
    keys: Bool[Tensor, "b m"] | None

    @property
    def any(self) -> bool:
        """Whether any query of any image lies in the padding."""
        return not bool(self.queries.all())


@dataclass(frozen=True)
class Placing:
    """What is known of the padding at a site.

    Attributes:
        padding: Which positions lie in the pictures; None where this is not known here.
        how: How padding is told from pictures, in words.
        missing: What is not measured for want of that, in words.
    """

    padding: Padding | None = None
    how: str = ""
    missing: str = ""


def place(capture: Capture, upcoming: Upcoming, size: tuple[int, ...], prefix: int, *, assumed: bool) -> Placing:
    """Which positions of a capture lie in the pictures.

    Args:
        capture: What the adapter delivered, with its grids.
        upcoming: The images of the forward call, whose pictures have sizes.
        size: Spatial sizes of the model's input; () where it is none of pictures.
        prefix: How many of the first positions are not places in the image; they are no padding.
        assumed: Whether the grid is only what the number of positions suggests.

    Raises:
        ConfigError: the sizes do not fit the model's input.
    """
    canvas = _canvas(upcoming, size)
    if capture.sets != len(upcoming.ids) or (isinstance(capture, PairwiseCapture) and capture.windows):
        return Placing(missing="positions without padding: its sets of positions are not whole pictures")
    if not isinstance(capture, PairwiseCapture):
        grid = key_grid = capture.query_grid
        n, m, prefix = capture.x.shape[1], capture.x.shape[1], 0
    elif assumed and not capture.self_attention:
        return Placing(missing="positions without padding: its queries are not the positions of its keys")
    else:
        masked = valid_queries(capture)
        if masked is not None and not bool(masked.all()):
            return Placing(how="by the model's own mask")
        grid, key_grid, n, m = capture.query_grid, capture.key_grid, capture.n_queries, capture.n_keys
    if len(grid) < 2 or math.prod(grid) != n - prefix:
        return Placing(missing="positions without padding: its positions lie on no grid of the picture")

    def places(of_grid: tuple[int, ...]) -> Tensor:
        cells = valid_cells(upcoming.sizes or (), canvas, of_grid)
        return torch.cat((cells.new_ones(len(cells), prefix), cells), 1).to(capture.device)

    how = f"by {'an assumed' if assumed else 'its'} grid, {'x'.join(map(str, grid))} in the first call"
    if len(key_grid) < 2 or math.prod(key_grid) != m - prefix:
        missing = "`padding_mass`, and `key` without padding: its keys lie on no grid of the picture"
        return Placing(Padding(places(grid), None), how, missing)
    return Placing(Padding(places(grid), places(key_grid)), how)


def _canvas(upcoming: Upcoming, size: tuple[int, ...]) -> Size:
    """Height and width of the padded tensor."""
    given = upcoming.canvas or size[-2:]
    if len(given) != 2:
        raise ConfigError(
            "`images` got `sizes`, and the model's first argument is no batch of pictures that they could be those of",
            "call the model with the padded tensor (B, C, H, W) first, or give `canvas`",
        )
    canvas = (given[0], given[1])
    for name, (height, width) in zip(upcoming.ids, upcoming.sizes or (), strict=True):
        if not (1 <= height <= canvas[0] and 1 <= width <= canvas[1]):
            raise ConfigError(
                f"the picture of `{name}` is {height}x{width}, and the padded tensor {canvas[0]}x{canvas[1]}",
                "give `sizes` as (height, width) in pixels of that tensor, without the padding",
            )
    return canvas


def valid_queries(capture: PairwiseCapture) -> Tensor | None:
    """(s, n), False for padding: what the adapter says, else the positions whose keys no query sees; None where all."""
    if capture.valid is not None:
        return capture.valid
    if capture.mask is None or not capture.self_attention or capture.windows:
        return None
    seen = capture.mask.seen_keys()
    if seen is None or seen.shape[1] != capture.n_queries:
        return None
    return seen.expand(capture.sets, -1)
