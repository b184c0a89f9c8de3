"""What is asked of a measurement, and what comes out of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.probe.selections import Rectangle
from nlprobe.stats.records import QUANTITIES

Value = Tensor | float | int | bool
Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Wanted:
    """What is to be measured of every capture.

    Attributes:
        quantities: Which of the six.
        metrics: Further metrics of the maps (`nlprobe.stats.METRICS`), and `space_time` for the split of clips'
            distances.
        precision: Of the products behind softmax maps.
        rectangle: Queries and keys of a further measurement, whose rows are renormalised over these keys.
        centres: Data-set means by site and quantity; where given, `centred_dist` is measured too.
    """

    quantities: tuple[str, ...] = QUANTITIES
    metrics: tuple[str, ...] = ()
    precision: Precision = "float32"
    rectangle: Rectangle | None = None
    centres: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """The values of one quantity at one call.

    Attributes:
        quantity: Which of the six.
        heads: Names of the heads: ("-",) where there are none by nature.
        values: By column: a number for all, or a tensor with one value for each image, (B,), or each head too, (B, h).
        positions: What the records say of their positions.
    """

    quantity: str
    heads: tuple[str, ...]
    values: Mapping[str, Value]
    positions: str = "all"

    def of_head(self, at: int) -> dict[str, Value]:
        """The values of one head."""
        return {
            name: value[:, at] if isinstance(value, Tensor) and value.dim() > 1 else value
            for name, value in self.values.items()
        }


@dataclass(frozen=True)
class Moments:
    """What the energy shares and the data-set means need of one batch, per image.

    Attributes:
        mean: Mean row of the quantity, (B, C).
        energy: mean_i ‖v_i‖², (B,).
        spread: mean_i ‖v_i − mean‖², (B,).
    """

    mean: Tensor
    energy: Tensor
    spread: Tensor


Measured = tuple[list[Measurement], dict[str, Moments]]
"""The records' numbers of one call, and the moments of the quantities that live in channel space."""


def joined(measured: Sequence[Measured], lengths: Sequence[int]) -> Measured:
    """The numbers of several runs of sets, one after another.

    Args:
        measured: What was measured of each run: the same records of each.
        lengths: How many sets each run has.
    """
    if len(measured) == 1:
        return measured[0]
    measurements = [
        replace(first, values=_joined([found[at].values for found, _ in measured], lengths))
        for at, first in enumerate(measured[0][0])
    ]
    moments = {
        quantity: Moments(*(torch.cat([getattr(rows[quantity], name) for _, rows in measured]) for name in vars(first)))
        for quantity, first in measured[0][1].items()
    }
    return measurements, moments


def _joined(values: Sequence[Mapping[str, Value]], lengths: Sequence[int]) -> dict[str, Value]:
    device = next((value.device for value in values[0].values() if isinstance(value, Tensor)), None)

    def column(name: str) -> Tensor:
        return torch.cat(
            [
                value if isinstance(value, Tensor) else torch.full((length,), value, dtype=torch.float64, device=device)
                for value, length in zip((one[name] for one in values), lengths, strict=True)
            ]
        )

    return {name: column(name) for name in values[0]}


def refuse_unknown(wanted: Wanted, metrics: Collection[str]) -> None:
    """Raise for quantities, metrics or precisions that do not exist.

    Raises:
        ConfigError: with the names there are.
    """
    unknown = sorted(set(wanted.quantities) - set(QUANTITIES))
    if unknown:
        raise ConfigError(f"unknown quantities `{'`, `'.join(unknown)}`", f"choose from {', '.join(QUANTITIES)}")
    strange = sorted(set(wanted.metrics) - set(metrics))
    if strange:
        raise ConfigError(f"unknown metrics `{'`, `'.join(strange)}`", f"choose from {', '.join(metrics)}")
    if wanted.precision not in ("float32", "float64"):
        raise ConfigError(f"unknown precision `{wanted.precision}`", "choose float32 or float64")
