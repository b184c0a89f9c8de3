"""Attention maps for chosen queries of one image or clip."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import (
    Adapter,
    Capture,
    CrossCapture,
    MaplessCapture,
    PairwiseCapture,
    SingleMapCapture,
)
from nlprobe.probe.adapters.protocol import UnaryMap
from nlprobe.probe.batches import SiteBatch
from nlprobe.probe.capture import Probe
from nlprobe.probe.measurement import Wanted
from nlprobe.probe.padding import Padding
from nlprobe.probe.sites import Site, SiteSelection
from nlprobe.stats import (
    Logits,
    composed_map_statistics,
    composed_mean_map,
    composed_rows,
    concat_map_statistics,
    cross_map_statistics,
    cross_rows,
    map_rows,
    mean_map,
    product_statistics,
    softmax_mean_map,
    softmax_rows,
    softmax_statistics,
    unary_map_statistics,
)


@dataclass(frozen=True)
class AttentionMaps:
    """The rows ω_i of one site for chosen queries of one image or clip.

    Attributes:
        site: The site's name.
        instantiation: Which pairwise function (section 3.1), "global" for the one map of SNL and GC, "criss_cross" for
            the cross of one step, "composed" for the map of all steps.
        image: The picture, or the frames, that the queries refer to.
        image_id: Its name.
        label: Label of the model.
        queries: (y, x) in pixels of `image`; of a clip (t, y, x), t counting the frames of `image`.
        maps: One map for each query, on the key grid.
        mean: The mean map over all queries.
        grid: Height and width of the key grid; of a clip frames, height and width.
        query_grid: The same of the query grid.
        avg_dist: Average cosine distance between the maps of all queries.
        n_keys: Number of keys; 1/n_keys is the weight of a uniform map.
    """

    site: str
    instantiation: str
    image: UInt8[np.ndarray, "*frames height width 3"]
    image_id: str
    label: str
    queries: tuple[tuple[int, ...], ...]
    maps: Float[np.ndarray, "q *grid"]
    mean: Float[np.ndarray, "*grid"]
    grid: tuple[int, ...]
    query_grid: tuple[int, ...]
    avg_dist: float
    n_keys: int


def attention_map(
    model: nn.Module,
    image: Float[Tensor, "*one c height width"],
    queries: Sequence[tuple[int, ...]],
    site: SiteSelection = None,
    *,
    head: int | None = None,
    call: int | None = None,
    prefix: int | None = None,
    adapters: Sequence[Adapter] = (),
    picture: UInt8[np.ndarray, "*frames pheight pwidth 3"] | None = None,
    image_id: str = "",
    label: str = "",
) -> AttentionMaps:
    """The attention rows of one site for chosen query positions of one image or clip.

    Only the rows asked for and the mean over all queries are computed; no N×M matrix is built. The call is audited as
    a probe's first batch is.

    Args:
        model: The network.
        image: The preprocessed image, as the network takes it, or clip: (C, T, H, W), with or without a batch axis.
        queries: (y, x) in pixels of `picture`, or of `image` where no picture is given. Of a clip (t, y, x), t counting
            frames.
        site: Name or glob of the site; needed where the model has several.
        head: Which head; the average of all by default.
        call: Which use of the module within the forward call, from 0. By default the first; of criss-cross attention
            with several steps, the map that all of them make together.
        prefix: How many of the first positions are no places in the image; found out by default.
        adapters: As in `nlprobe.probe`.
        picture: The photograph to show, or the frames, if the network saw resized ones; the whole of it must be what it
            saw.
        image_id: Name of the image or video.
        label: Label of the model.

    Returns:
        The maps in units of the attention weight (softmax rows sum to 1; with a unary map beside them to 2, or 1 + γ).

    Raises:
        ConfigError: a query lies outside the image or clip, the site is ambiguous or has no map on its grid.
        CaptureError: the site did not run, or does not reproduce.
    """
    axes = _axes_of(queries)
    batch = image if image.dim() == axes + 2 else image.unsqueeze(0)
    if batch.shape[0] != 1 or batch.dim() != axes + 2:
        wanted = "one image" if axes == 2 else "one clip (C, T, H, W) with queries (t, y, x)"
        raise ConfigError(
            f"`attention_map` takes {wanted}, and got a tensor of shape {tuple(image.shape)}",
            "call it once for each of a batch; queries are (y, x) in images and (t, y, x) in clips",
        )
    shown = picture if picture is not None else _displayable(batch[0])
    if shown.ndim != axes + 1:
        raise ConfigError(
            f"queries of {axes} numbers, and a picture of shape {shown.shape}",
            "give (y, x) with an image (H, W, 3), (t, y, x) with frames (T, H, W, 3)",
        )
    queries = tuple(tuple(map(int, query)) for query in queries)
    _refuse_outside(queries, shown.shape[:-1])
    drawing = _Drawing(model, site, wanted=Wanted(quantities=("att",)), prefix=prefix, adapters=adapters)
    drawing.call = call
    with torch.no_grad(), drawing:
        model(batch)
    if not drawing.seen:
        raise ConfigError(
            f"`{drawing.sites[0].name}` has no call {call}: it ran {drawing.runs} times",
            f"choose 0 to {drawing.runs - 1}",
        )
    if len(drawing.seen) > 1:
        names = ", ".join(f"`{one.name}`" for one in drawing.sites)
        raise ConfigError(
            f"the model has {len(drawing.sites)} sites here: {names}", "choose one with `site=` (or --site)"
        )
    ((chosen, capture),) = drawing.seen.values()
    grid = capture.query_grid
    key_grid = capture.key_grid if isinstance(capture, PairwiseCapture) else grid
    for what, found in (("positions", grid), ("keys", key_grid)):
        if len(found) != axes:
            raise ConfigError(
                f"the {what} of `{chosen.name}` are no grid of {axes} dimensions, on which a map could be drawn",
                "choose another site" if len(found) != 3 else "give queries (t, y, x) in frames and pixels",
            )
    rows = [chosen.prefix + _position(query, shown.shape[:-1], grid) for query in queries]
    with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
        if isinstance(capture, CrossCapture):
            maps, mean, distance = _crosses(capture, rows, head, call, chosen.name)
        else:
            maps, mean, distance = _maps(capture, rows, head, chosen.name)
    return AttentionMaps(
        site=chosen.name,
        instantiation=_instantiation(capture, call),
        image=shown,
        image_id=image_id,
        label=label,
        queries=queries,
        maps=maps[:, chosen.prefix :].reshape(len(queries), *key_grid).double().cpu().numpy(),
        mean=mean[chosen.prefix :].reshape(key_grid).double().cpu().numpy(),
        grid=tuple(key_grid),
        query_grid=tuple(grid),
        avg_dist=distance,
        n_keys=maps.shape[1],
    )


class _Drawing(Probe):
    """A probe that keeps what one forward call shows, in place of measuring it."""

    seen: dict[str, tuple[Site, PairwiseCapture | SingleMapCapture | CrossCapture]]
    call: int | None = None
    runs: int = 0

    def __enter__(self) -> "_Drawing":
        self.seen = {}
        if len(self.sites) > 1:
            names = ", ".join(f"`{one.name}`" for one in self.sites)
            raise ConfigError(
                f"the model has {len(self.sites)} sites here: {names}", "choose one with `site=` (or --site)"
            )
        super().__enter__()
        return self

    def _take(self, site: Site, capture: Capture, batch: SiteBatch, padding: Padding | None) -> None:
        if isinstance(capture, PairwiseCapture) and (capture.windows or capture.sets > batch.images):
            raise ConfigError(
                f"`{site.name}` attends within windows, and a map is drawn over a whole image", "choose another site"
            )
        if isinstance(capture, MaplessCapture):
            raise ConfigError(
                f"`{site.name}` has no map to draw: {capture.not_counted[0]}", "`stats` measures its input and output"
            )
        # the audit of the next call goes by how many there were
        batch.calls.append([])
        self.runs = len(batch.calls)
        if self.call is None and isinstance(capture, CrossCapture):
            self.seen[site.name] = (site, capture)  # the last of its steps holds what all of them need
        elif self.runs - 1 == (self.call or 0):
            self.seen[site.name] = (site, capture)


def _instantiation(capture: Capture, call: int | None) -> str:
    if isinstance(capture, PairwiseCapture):
        return capture.instantiation
    if isinstance(capture, CrossCapture):
        return "criss_cross" if call is not None or capture.all_queries is None else "composed"
    return "global"


def _crosses(
    capture: CrossCapture, rows: list[int], head: int | None, call: int | None, site: str
) -> tuple[Tensor, Tensor, float]:
    """As `_maps`: of one step, or by default of all of them together."""
    if head not in (None, 0):
        raise ConfigError(f"`{site}` has no head {head}", "leave it out; `call` chooses the step")
    index = torch.tensor(rows, device=capture.device, dtype=torch.int64)
    if call is None and capture.all_queries is not None and capture.all_keys is not None:
        query, key = capture.all_queries, capture.all_keys
        distance = composed_map_statistics(query, key).avg_dist[0]
        return composed_rows(query, key, index)[0], composed_mean_map(query, key)[0], float(distance)
    distance = cross_map_statistics(capture.query, capture.key).avg_dist[0]
    mean = composed_mean_map(capture.query.unsqueeze(0), capture.key.unsqueeze(0))[0]
    return cross_rows(capture.query, capture.key, index)[0], mean, float(distance)


def _maps(
    capture: PairwiseCapture | SingleMapCapture, rows: list[int], head: int | None, site: str
) -> tuple[Tensor, Tensor, float]:
    """The rows (q, m), their mean over all queries (m,), and the distance between all of them."""
    if not isinstance(capture, PairwiseCapture):
        n = capture.x.shape[1]
        logits = capture.logits if capture.logits is not None else capture.x.new_zeros(1, n)
        weights = torch.softmax(logits[0].double(), 0)
        return weights.expand(len(rows), n), weights, 0.0
    index = torch.tensor(rows, device=capture.device, dtype=torch.int64)
    if capture.instantiation in ("dot_product", "concat"):
        return _single_head(capture, index)
    heads = capture.logits.shape[1]
    if head is not None and not 0 <= head < heads:
        raise ConfigError(f"`{site}` has no head {head}", f"choose 0 to {heads - 1}, or none for their average")
    if capture.unary is not None and capture.unary.joined:
        return _with_unary(capture.logits, capture.unary, index)
    each, average = softmax_statistics(capture.logits, average=head is None and heads > 1)
    distance = average.avg_dist[0] if average is not None else each.avg_dist[0, head or 0]
    maps, mean = softmax_rows(capture.logits, index)[0], softmax_mean_map(capture.logits)[0]
    if average is not None:
        return maps.mean(0), mean.mean(0), float(distance)
    return maps[head or 0], mean[head or 0], float(distance)


def _with_unary(logits: Logits, unary: UnaryMap, rows: Tensor) -> tuple[Tensor, Tensor, float]:
    """The rows that a block with a pairwise and a unary map uses, w_p p_i + w_u u."""
    distance = unary_map_statistics(logits, unary.map, unary.weights).avg_dist
    fixed = unary.weight * unary.map[0]
    maps = unary.pairwise_weight * softmax_rows(logits, rows)[0, 0] + fixed
    return maps, unary.pairwise_weight * softmax_mean_map(logits)[0, 0] + fixed, float(distance)


def _single_head(capture: PairwiseCapture, rows: Tensor) -> tuple[Tensor, Tensor, float]:
    assert capture.query is not None
    assert capture.key is not None
    query, key = capture.query[0, 0], capture.key[0, 0]
    weights = None
    if capture.weight_query is not None and capture.weight_key is not None:
        weights = (capture.weight_query.to(query.dtype), capture.weight_key.to(query.dtype))
        a = query.double() @ capture.weight_query.double()
        distance = concat_map_statistics(a, key.double() @ capture.weight_key.double()).avg_dist
    else:
        distance = product_statistics(query, key).avg_dist
    maps = map_rows(capture.instantiation, query, key, capture.scale, rows, weights)
    return maps, mean_map(capture.instantiation, query, key, capture.scale, weights), float(distance)


def _displayable(image: Float[Tensor, "c *size"]) -> UInt8[np.ndarray, "*size 3"]:
    pixels = image.detach().float().cpu()
    low, high = pixels.min(), pixels.max()
    pixels = ((pixels - low) / (high - low).clamp_min(1e-12)).movedim(0, -1)
    if pixels.shape[-1] != 3:
        pixels = pixels.mean(-1, keepdim=True).expand(*pixels.shape[:-1], 3)
    return (pixels * 255).round().to(torch.uint8).contiguous().numpy()


def _axes_of(queries: Sequence[tuple[int, ...]]) -> int:
    """How many numbers each query has: 2 in images, 3 in clips."""
    if not queries:
        raise ConfigError("no query was given", "give at least one (y, x), or (t, y, x) of a clip")
    lengths = {len(query) for query in queries}
    if len(lengths) > 1 or not lengths <= {2, 3}:
        raise ConfigError(
            f"the queries {', '.join(map(str, queries))} are no places", "give (y, x) in images, or (t, y, x) in clips"
        )
    return lengths.pop()


def _position(query: tuple[int, ...], size: tuple[int, ...], grid: tuple[int, ...]) -> int:
    """The position, on a grid of equal cells in row-major order, that a place in a picture or clip lies in."""
    index = 0
    for at, whole, cells in zip(query, size, grid, strict=True):
        index = index * cells + at * cells // whole
    return index


def _refuse_outside(queries: Sequence[tuple[int, ...]], size: tuple[int, ...]) -> None:
    for query in queries:
        if not all(0 <= at < whole for at, whole in zip(query, size, strict=True)):
            frames = f"{size[0]} frames, " if len(size) == 3 else ""
            what = "clip" if frames else "image"
            raise ConfigError(
                f"query {query} lies outside the {what} of {frames}height {size[-2]} and width {size[-1]}",
                "queries are (y, x) in pixels from the top left" + (", behind the frame t from 0" if frames else ""),
            )
