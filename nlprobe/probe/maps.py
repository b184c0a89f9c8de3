"""Attention maps for chosen queries of one image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from nlprobe.errors import CaptureError, ConfigError
from nlprobe.probe.adapters import Capture, PairwiseCapture
from nlprobe.probe.audit import SiteAudit, check
from nlprobe.probe.sites import SiteSelection, find_sites
from nlprobe.stats import concat_map_statistics, map_rows, mean_map, product_statistics, softmax_map_statistics


@dataclass(frozen=True)
class AttentionMaps:
    """The rows ω_i of one site for chosen queries of one image.

    Attributes:
        site: The site's name.
        instantiation: Which pairwise function (section 3.1), or "global" for the one map of SNL and GC.
        image: The picture that the queries refer to.
        image_id: Its name.
        label: Label of the model.
        queries: (y, x) in pixels of `image`.
        maps: One map for each query, on the key grid.
        mean: The mean map over all queries.
        grid: Height and width of the key grid.
        query_grid: Height and width of the query grid.
        avg_dist: Average cosine distance between the maps of all queries.
        n_keys: Number of keys; 1/n_keys is the weight of a uniform map.
    """

    site: str
    instantiation: str
    image: UInt8[np.ndarray, "height width 3"]
    image_id: str
    label: str
    queries: tuple[tuple[int, int], ...]
    maps: Float[np.ndarray, "q h w"]
    mean: Float[np.ndarray, "h w"]
    grid: tuple[int, int]
    query_grid: tuple[int, int]
    avg_dist: float
    n_keys: int


def attention_map(
    model: nn.Module,
    image: Float[Tensor, "*one c height width"],
    queries: Sequence[tuple[int, int]],
    site: SiteSelection = None,
    *,
    picture: UInt8[np.ndarray, "pheight pwidth 3"] | None = None,
    image_id: str = "",
    label: str = "",
) -> AttentionMaps:
    """The attention rows of one site for chosen query positions of one image.

    Only the rows asked for and the mean over all queries are computed; no N×M matrix is built. The call is audited as
    a probe's first batch is.

    Args:
        model: The network.
        image: The preprocessed image, as the network takes it.
        queries: (y, x) in pixels of `picture`, or of `image` where no picture is given.
        site: Name or glob of the site; needed where the model has several.
        picture: The photograph to show, if the network saw a resized one; the whole of it must be what it saw.
        image_id: Name of the image.
        label: Label of the model.

    Returns:
        The maps in units of the attention weight (softmax rows sum to 1).

    Raises:
        ConfigError: a query lies outside the image, the site is ambiguous or has no 2-D map.
        CaptureError: the site did not run, or does not reproduce.
    """
    batch = image if image.dim() == 4 else image.unsqueeze(0)
    if batch.shape[0] != 1:
        raise ConfigError(f"`attention_map` takes one image, not a batch of {batch.shape[0]}", "call it once for each")
    shown = picture if picture is not None else _displayable(batch[0])
    queries = tuple((int(y), int(x)) for y, x in queries)
    _refuse_outside(queries, shown.shape[:2])
    sites = find_sites(model, site)
    if len(sites) > 1:
        names = ", ".join(f"`{one.name}`" for one in sites)
        raise ConfigError(f"the model has {len(sites)} sites here: {names}", "choose one with `site=` (or --site)")
    chosen = sites[0]
    found: list[AttentionMaps] = []

    def receive(capture: Capture) -> None:
        with torch.autocast(capture.x.device.type, enabled=False):
            check(SiteAudit(chosen.name), capture)
            grid = capture.query_grid
            if len(grid) != 2:
                raise ConfigError(
                    f"`{chosen.name}` has {len(grid)}-D positions, and a map is drawn in 2-D", "choose another"
                )
            cells = [(y * grid[0] // shown.shape[0], x * grid[1] // shown.shape[1]) for y, x in queries]
            maps, mean, key_grid, distance, name = _maps(capture, [y * grid[1] + x for y, x in cells])
        found.append(
            AttentionMaps(
                site=chosen.name,
                instantiation=name,
                image=shown,
                image_id=image_id,
                label=label,
                queries=queries,
                maps=maps.reshape(len(queries), *key_grid).double().cpu().numpy(),
                mean=mean.reshape(key_grid).double().cpu().numpy(),
                grid=key_grid,
                query_grid=(grid[0], grid[1]),
                avg_dist=distance,
                n_keys=key_grid[0] * key_grid[1],
            )
        )

    handles = chosen.adapter.attach(chosen.module, receive)
    try:
        with torch.no_grad():
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise CaptureError(f"`{chosen.name}` did not run in the model's forward", "choose a site that the model uses")
    return found[0]


def _maps(capture: Capture, rows: list[int]) -> tuple[Tensor, Tensor, tuple[int, int], float, str]:
    if not isinstance(capture, PairwiseCapture):
        n = capture.x.shape[1]
        logits = capture.logits if capture.logits is not None else capture.x.new_zeros(1, n)
        weights = torch.softmax(logits[0].double(), 0)
        height, width = capture.query_grid
        return weights.expand(len(rows), n), weights, (height, width), 0.0, "global"
    query, key = capture.query[0, 0], capture.key[0, 0]
    weights_pair = None
    if capture.weight_query is not None and capture.weight_key is not None:
        weights_pair = (capture.weight_query.to(query.dtype), capture.weight_key.to(query.dtype))
    index = torch.tensor(rows, device=query.device, dtype=torch.int64)
    maps = map_rows(capture.instantiation, query, key, capture.scale, index, weights_pair)
    mean = mean_map(capture.instantiation, query, key, capture.scale, weights_pair)
    height, width = capture.key_grid
    return maps, mean, (height, width), _distance(capture), capture.instantiation


def _distance(capture: PairwiseCapture) -> float:
    query, key = capture.query[:, 0], capture.key[:, 0]
    if capture.weight_query is not None and capture.weight_key is not None:
        a = query.double() @ capture.weight_query.double()
        return float(concat_map_statistics(a, key.double() @ capture.weight_key.double()).avg_dist)
    if capture.instantiation == "dot_product":
        return float(product_statistics(query, key).avg_dist)
    return float(softmax_map_statistics(query, key, capture.scale).avg_dist)


def _displayable(image: Float[Tensor, "c height width"]) -> UInt8[np.ndarray, "height width 3"]:
    pixels = image.detach().float().cpu()
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / (high - low).clamp_min(1e-12)
    if pixels.shape[0] != 3:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    return (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _refuse_outside(queries: Sequence[tuple[int, int]], size: tuple[int, ...]) -> None:
    if not queries:
        raise ConfigError("no query was given", "give at least one (y, x)")
    for y, x in queries:
        if not (0 <= y < size[0] and 0 <= x < size[1]):
            raise ConfigError(
                f"query ({y}, {x}) lies outside the image of height {size[0]} and width {size[1]}",
                "queries are (y, x) in pixels from the top left",
            )
