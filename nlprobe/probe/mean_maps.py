"""The mean map of each picture at chosen sites, kept for a comparison with those of another network."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.probe.adapters import PairwiseCapture, SingleMapCapture
from nlprobe.probe.reader import Seen
from nlprobe.stats import Mask, composed_mean_map, mean_map, softmax_mean_map
from nlprobe.stats.agreement import Grid, MeanMap, View


class MeanMaps:
    """Keeps mean_i ω_i over the queries in the picture, on the grid of all keys, for each image at some sites.

    Of several heads it is the mean over them; of criss-cross attention that of all steps together; of a block with a
    unary map beside the pairwise ones that of the rows it uses; of SNL and GC their one map. A module that runs several
    times in a forward call keeps its last map. Float32: 4 M bytes an image and site.

    Args:
        sites: Names of the sites.
    """

    def __init__(self, sites: Collection[str]) -> None:
        self.maps: dict[str, dict[View, MeanMap]] = {site: {} for site in sites}

    def read(self, seen: Seen) -> None:
        """Keep the maps of a capture's images.

        Raises:
            ConfigError: the site has no map over a picture.
        """
        if seen.site not in self.maps:
            return
        if reason := seen.unmapped():
            raise ConfigError(
                f"`{seen.site}` has no mean map: {reason}", "choose sites whose maps are over whole pictures (--site)"
            )
        maps = _mean_maps(seen, seen.valid)[:, seen.prefix :].float().cpu().numpy()
        images = seen.images
        sizes = images.sizes if images.sizes is not None else [None] * len(images.ids)
        for name, view, size, one in zip(images.ids, images.views, sizes, maps, strict=True):
            self.maps[seen.site][name, view] = MeanMap(one.reshape(seen.key_grid).copy(), size, images.canvas)

    def state(self) -> dict[str, Any]:
        """The maps by site, each with its image and view."""
        return {
            site: [(view, torch.from_numpy(one.values), one.size, one.canvas) for view, one in maps.items()]
            for site, maps in self.maps.items()
        }

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Take in further maps."""
        for site, maps in state.items():
            for view, values, size, canvas in maps:
                self.maps[site][view] = MeanMap(values.numpy(), size, canvas)

    def clear(self) -> None:
        """Forget all maps."""
        self.maps = {site: {} for site in self.maps}


class MapGrids:
    """Notes on which grids the queries and keys of each site lie whose maps are over whole pictures."""

    def __init__(self) -> None:
        self.grids: dict[str, tuple[Grid, Grid]] = {}

    def read(self, seen: Seen) -> None:
        """Note the grids of a capture."""
        if not seen.unmapped():
            query, key = seen.capture.query_grid, seen.key_grid
            self.grids[seen.site] = (query[0], query[1]), (key[0], key[1])

    def state(self) -> dict[str, Any]:
        """The grids by site."""
        return dict(self.grids)

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Take in further sites."""
        self.grids |= state

    def clear(self) -> None:
        """Forget all sites."""
        self.grids = {}


def _mean_maps(seen: Seen, valid: Bool[Tensor, "b n"]) -> Float[Tensor, "b m"]:
    """The mean row of each image over the queries that count, the heads averaged."""
    capture, steps = seen.capture, seen.steps()
    if steps is not None:
        return composed_mean_map(*steps, valid.view(len(valid), *seen.capture.query_grid))
    if isinstance(capture, SingleMapCapture):
        scores = capture.logits if capture.logits is not None else capture.x.new_zeros(capture.x.shape[:2])
        return scores.double().softmax(-1)
    assert isinstance(capture, PairwiseCapture)
    if capture.instantiation in ("dot_product", "concat"):
        return _of_other_maps(capture, valid)
    logits, seeing = capture.logits, valid[:, None, :, None]
    if not bool(valid.all()):
        mask = logits.mask or Mask()
        visible = seeing if mask.visible is None else mask.visible & seeing
        logits = replace(logits, mask=replace(mask, visible=visible))
    mean = softmax_mean_map(logits).mean(1)
    if capture.unary is None or not capture.unary.joined:
        return mean
    pairwise, unary = capture.unary.weights
    return pairwise * mean + unary * capture.unary.map.to(mean)


def _of_other_maps(capture: PairwiseCapture, valid: Tensor) -> Tensor:
    """Of dot product and concat, image by image."""
    assert capture.query is not None
    assert capture.key is not None
    weights = None
    if capture.weight_query is not None and capture.weight_key is not None:
        weights = (capture.weight_query, capture.weight_key)
    return torch.stack(
        [
            mean_map(capture.instantiation, query[rows], key, capture.scale, weights)
            for query, key, rows in zip(capture.query[:, 0], capture.key[:, 0], valid, strict=True)
        ]
    )
