"""What one pass over calibration data tells of a non-local block: its mean query, and the mask that fits its map."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nlprobe.blocks import SOFTMAX_INSTANTIATIONS, NonLocal
from nlprobe.errors import ConfigError

ENTRIES = 2**21
"""Entries of the map that are held at once."""

RIDGE = 1e-3
"""How hard `refined_mask` and `context_moments` lean on what they start from, as a share of the mean variance."""


class Calibration:
    """Sums over images of what a block takes in and does, all in float64; O(C²) memory.

    Attributes:
        images: How many images were taken in.
    """

    def __init__(self, block: NonLocal) -> None:
        self._block = block
        width = block.channels
        device = block.value.weight.device
        self.images = 0
        self._positions = 0
        self._query = torch.zeros((), dtype=torch.float64, device=device)
        self._gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._target = torch.zeros(width, dtype=torch.float64, device=device)
        self._context = torch.zeros(width, dtype=torch.float64, device=device)
        self._contexts = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, x: Float[Tensor, "b c *grid"], query: Float[Tensor, "b n d"], key: Float[Tensor, "b m d"]) -> None:
        """Take in a batch.

        Args:
            x: The block's input.
            query: As they enter the product.
            key: As they enter the product.
        """
        self.images += len(x)
        self._positions += query.shape[0] * query.shape[1]
        self._query = self._query + query.double().sum((0, 1))
        if self._block.config.instantiation not in SOFTMAX_INSTANTIATIONS:
            return
        sources = self._sources(x, key.shape[1]).flatten(2).mT.double()  # (b, m, c)
        for rows, queries, keys in zip(sources, query, key, strict=True):
            weights = mean_map(queries, keys, self._block.attention.logit_scale)
            context = weights @ rows
            centred = rows - context
            logits = weights.clamp(min=torch.finfo(torch.float64).tiny).log()
            logits = logits - weights @ logits
            self._gram += (centred * weights[:, None]).mT @ centred
            self._target += (weights * logits) @ centred
            self._context += context
            self._contexts += torch.outer(context, context)

    def mean_query(self) -> Float[Tensor, " d"]:
        """q̄ over all positions of all images; of Gaussian, the mean of x.

        Raises:
            ConfigError: there was no image.
        """
        if not self.images:
            raise ConfigError("there is no image to calibrate on", "give data that can be read")
        return self._query / self._positions

    def refined_mask(self, start: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
        """The mask w that fits the logarithm of each image's mean map ā best.

        Least Σ_images min_b Σ_j ā_j (w·x_j + b − log ā_j)², with a ridge towards the mask it starts from.

        Args:
            start: The closed form's mask.
        """
        ridge = RIDGE * self._gram.diagonal().mean() * torch.eye(len(start), device=start.device, dtype=start.dtype)
        return torch.linalg.solve(self._gram + ridge, self._target + ridge @ start)

    def context_moments(self) -> tuple[Float[Tensor, " c"], Float[Tensor, "c c"]]:
        """Mean and covariance of the contexts Σ_j ā_j x_j over images, the latter with a ridge: there may be few."""
        mean = self._context / self.images
        covariance = self._contexts / self.images - torch.outer(mean, mean)
        ridge = RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float64).tiny
        return mean, covariance + ridge * torch.eye(len(mean), device=mean.device, dtype=mean.dtype)

    def _sources(self, x: Tensor, keys: int) -> Tensor:
        """The positions of x that the keys are of; pooled where they are."""
        if self._block.config.sub_sample == "none":
            return x
        pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[x.dim()]
        pooled: Tensor = pool(x, (1, 2, 2) if x.dim() == 5 else 2)
        assert pooled.flatten(2).shape[2] == keys
        return pooled


@contextmanager
def calibrating(blocks: Mapping[str, NonLocal]) -> Iterator[dict[str, Calibration]]:
    """Take in every forward call of the blocks while inside; the network computes what it does without."""
    found = {name: Calibration(block) for name, block in blocks.items()}
    handles = []
    for name, block in blocks.items():
        inputs: list[Tensor] = []

        def begin(_: nn.Module, args: tuple[Tensor, ...], inputs: list[Tensor] = inputs) -> None:
            inputs[:] = [args[0].detach()]

        def product(
            _: nn.Module,
            args: tuple[Tensor, ...],
            context: Tensor,
            inputs: list[Tensor] = inputs,
            taken: Calibration = found[name],
        ) -> None:
            with torch.no_grad():
                taken.add(inputs.pop(), args[0].detach(), args[1].detach())

        handles += [block.register_forward_pre_hook(begin), block.attention.register_forward_hook(product)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def mean_map(query: Float[Tensor, "n d"], key: Float[Tensor, "m d"], scale: float) -> Float[Tensor, " m"]:
    """The mean over queries of softmax_j(scale q_i·k_j), in float64; streamed, O(m) memory."""
    total = torch.zeros(len(key), dtype=torch.float64, device=key.device)
    rows = max(1, ENTRIES // len(key))
    for block in query.split(rows):
        total += (scale * (block @ key.mT)).softmax(-1).sum(0, dtype=torch.float64)
    return total / len(query)
