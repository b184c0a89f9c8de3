"""What else is read from captures while a probe reduces them to records: mean maps, masses on objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from nlprobe.probe.adapters import Capture, CrossCapture, MaplessCapture, PairwiseCapture
from nlprobe.probe.naming import Upcoming
from nlprobe.probe.padding import Padding


@dataclass(frozen=True)
class Seen:
    """One capture, as a reader gets it inside the forward pass.

    Attributes:
        site: The site's name.
        capture: What the adapter delivered, with its grids.
        images: The images of the forward call.
        padding: Which positions lie in the pictures, where somebody has said so.
        prefix: How many of the first positions are not places in the image.
    """

    site: str
    capture: Capture
    images: Upcoming
    padding: Padding | None
    prefix: int

    @property
    def key_grid(self) -> tuple[int, ...]:
        """Spatial sizes of the keys."""
        return self.capture.key_grid if isinstance(self.capture, PairwiseCapture) else self.capture.query_grid

    @property
    def valid(self) -> Bool[Tensor, "b n"]:
        """Which queries are places in the picture."""
        capture = self.capture
        n = capture.n_queries if isinstance(capture, PairwiseCapture) else capture.x.shape[1]
        if self.padding is not None:
            valid = self.padding.queries.clone()
        else:
            valid = torch.ones(capture.sets, n, dtype=torch.bool, device=capture.device)
        valid[:, : self.prefix] = False
        return valid

    def unmapped(self) -> str:
        """Why the capture has no map over a picture; "" where it has one."""
        capture = self.capture
        if isinstance(capture, MaplessCapture):
            return "it has no map"
        if capture.sets != len(self.images.ids) or (isinstance(capture, PairwiseCapture) and capture.windows):
            return "its maps are not over whole pictures"
        if len(capture.query_grid) != 2 or len(self.key_grid) != 2:
            return "its positions lie on no grid of the picture"
        return ""

    def steps(self) -> tuple[Tensor, Tensor] | None:
        """Queries and keys of the steps of criss-cross attention, whose map is meant: all of them, else this one."""
        capture = self.capture
        if not isinstance(capture, CrossCapture):
            return None
        if capture.all_queries is not None and capture.all_keys is not None:
            return capture.all_queries, capture.all_keys
        return capture.query.unsqueeze(0), capture.key.unsqueeze(0)


@runtime_checkable
class Reader(Protocol):
    """Reads captures; what it has read can be kept in a file, and put together with what others have read."""

    def read(self, seen: Seen) -> None:
        """Take in a capture; no tensor of it may be kept."""

    def state(self) -> dict[str, Any]:
        """Everything read so far, as plain values and tensors that `torch.load(weights_only=True)` reads."""

    def absorb(self, state: Mapping[str, Any]) -> None:
        """Take in the `state` of another one, as if it had been read next here."""

    def clear(self) -> None:
        """Forget everything."""
