"""A network beside itself with replaced attention: the same images through both, and what differs."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlprobe.commands.scoring import Effect, Scoring
from nlprobe.commands.sources import Labelled, Named
from nlprobe.data import Batch
from nlprobe.errors import ConfigError
from nlprobe.intervention import Intervention, intervene
from nlprobe.measuring import Inputs, forward
from nlprobe.probe import Probe, probe
from nlprobe.probe.adapters import Adapter
from nlprobe.stats.intervals import Estimate, bootstrap_mean


@dataclass(frozen=True)
class Trial:
    """One intervention: what is done, and where.

    Attributes:
        kind: What.
        sites: Names or globs of the sites; () for all.
        heads: Which heads; () for all.
    """

    kind: str
    sites: tuple[str, ...] = ()
    heads: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """The place in words."""
        sites = ", ".join(self.sites) or "all"
        return f"{sites}, head {', '.join(map(str, self.heads))}" if self.heads else sites


@dataclass
class Variant:
    """The network during one trial, and what was seen of it; images come in the order of the data.

    Attributes:
        trial: The trial; None for the network as it is.
        scores: The task's scores, a part for each batch.
        output_change: ‖f′ − f‖ / ‖f‖ of the network's own outputs.
        same_class: The share of the outputs' places at which the same class is best as without the intervention.
        intervention: What replaces.
    """

    trial: Trial | None
    intervention: Intervention | None = None
    scores: list[Any] = field(default_factory=list)
    output_change: list[Tensor] = field(default_factory=list)
    same_class: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What one trial came to.

    Attributes:
        model: The network's name.
        trial: The trial.
        effects: On the task's scores; () where nothing is known of the task.
        changes: By site, ‖y′ − y‖ / ‖y‖ of each image.
        mean_map_errors: By site, that of each image as `stats` has it.
        output_change: Of each image.
        same_class: Of each image; empty where the outputs hold no scores of classes.
        ids: Names of the images.
    """

    model: str
    trial: Trial
    effects: tuple[Effect, ...]
    changes: dict[str, np.ndarray]
    mean_map_errors: dict[str, np.ndarray]
    output_change: np.ndarray
    same_class: np.ndarray
    ids: tuple[str, ...]

    def estimate(self, values: dict[str, np.ndarray], seed: int) -> Estimate:
        """The mean over sites, image by image, with its interval."""
        stacked = np.stack(list(values.values()))
        return bootstrap_mean(stacked.mean(0), seed=seed)


class Comparison:
    """Runs every batch through a network as it is and through each of its trials.

    Args:
        one: The network.
        trials: What is tried.
        device: Where to compute.
        scoring: How its task is scored; None where nothing is known of it.
        adapters: Further adapters.
        seed: Of shuffled queries.
    """

    def __init__(
        self,
        one: Named,
        trials: Sequence[Trial],
        device: torch.device,
        scoring: Scoring | None = None,
        adapters: Sequence[Adapter] = (),
        seed: int = 0,
    ) -> None:
        self._one, self._device, self._scoring, self._adapters = one, device, scoring, tuple(adapters)
        self.model = one.model.to(device).eval()
        self._plain = Variant(None)
        self._variants = [
            Variant(
                trial,
                intervene(
                    self.model,
                    trial.kind,
                    list(trial.sites) or None,
                    heads=trial.heads or None,
                    seed=seed,
                    adapters=self._adapters,
                ),
            )
            for trial in trials
        ]
        self._probe: Probe = probe(self.model, quantities=("output",), adapters=self._adapters)
        self.ids: list[str] = []

    def run(self, batches: Iterable[tuple[Inputs | Batch, Sequence[str]]]) -> None:
        """Take in the batches."""
        for batch, ids in batches:
            with self._probe, self._probe.images(ids), _outputs(self.model) as before:
                self._score(self._plain, batch)
            for variant in self._variants:
                assert variant.intervention is not None
                with variant.intervention, _outputs(self.model) as after:
                    self._score(variant, batch)
                del after[: len(after) - len(before)]  # of the call in which an intervention first finds its sites
                variant.output_change.append(_relative_change(before, after, len(ids)))
                variant.same_class.append(_same_class(before, after, len(ids)))
            self.ids += ids

    def outcomes(self, seed: int) -> list[Outcome]:
        """What the trials came to, in their order.

        Raises:
            ConfigError: there was no image.
        """
        if not self.ids:
            raise ConfigError("there is no image that can be read", "give other data")
        frame = self._probe.frame()
        errors = frame[(frame["quantity"] == "output") & (frame["positions"] == "all")]
        found = []
        for variant in self._variants:
            assert variant.trial is not None
            assert variant.intervention is not None
            changes = variant.intervention.changes()
            effects: Sequence[Effect] = ()
            if self._scoring is not None:
                before, after = (type(part.scores[0]).joined(part.scores, self.ids) for part in (self._plain, variant))
                effects = self._scoring.effects(before, after, seed)
            mean_map_errors = {}
            for site in changes:
                rows = errors[errors["site"] == site]
                by_image = rows.groupby("image", sort=False)["mean_map_error"].mean()
                mean_map_errors[site] = by_image.reindex(self.ids).to_numpy(np.float64)
            found.append(
                Outcome(
                    self._one.label,
                    variant.trial,
                    tuple(effects),
                    changes,
                    mean_map_errors,
                    torch.cat(variant.output_change).numpy(),
                    torch.cat(variant.same_class).numpy(),
                    tuple(self.ids),
                )
            )
        return found

    def _score(self, variant: Variant, batch: Inputs | Batch) -> None:
        if self._scoring is None:
            assert not isinstance(batch, Batch)
            with torch.inference_mode():
                forward(self.model, batch, self._device)
            return
        assert isinstance(batch, Batch)
        assert self._one.checkpoint is not None
        labelled = Labelled(self._one.label, self._one.checkpoint)
        variant.scores.append(self._scoring.score(labelled, [batch], self._device))


@contextmanager
def _outputs(model: nn.Module) -> Iterator[list[Tensor | None]]:
    """What the network gives while inside, call by call; None where that is no tensor and holds none."""
    seen: list[Tensor | None] = []

    def note(_module: nn.Module, _args: Any, result: Any) -> None:
        seen.append(_scores_in(result))

    handle = model.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def _scores_in(result: Any) -> Tensor | None:
    """The tensor of an output: itself, what it calls its logits, or its first."""
    if isinstance(result, Tensor):
        return result.detach()
    if isinstance(logits := getattr(result, "logits", None), Tensor):
        return logits.detach()
    parts = result.values() if isinstance(result, dict) else result if isinstance(result, tuple | list) else ()
    return next((part.detach() for part in parts if isinstance(part, Tensor)), None)


def _relative_change(before: Sequence[Tensor | None], after: Sequence[Tensor | None], images: int) -> Tensor:
    changed, energy = torch.zeros(images, dtype=torch.float64), torch.zeros(images, dtype=torch.float64)
    for old, new in zip(before, after, strict=True):
        if old is None or new is None or old.shape != new.shape or len(old) % images:
            return torch.full((images,), torch.nan, dtype=torch.float64)
        rows = [tensor.double().reshape(images, -1).cpu() for tensor in (old, new)]
        changed += (rows[1] - rows[0]).square().sum(1)
        energy += rows[0].square().sum(1)
    return (changed / energy).sqrt()


def _same_class(before: Sequence[Tensor | None], after: Sequence[Tensor | None], images: int) -> Tensor:
    """Shares over images (B, K) or maps (B, K, H, W) of scores; NaN for other outputs."""
    shares = []
    for old, new in zip(before, after, strict=True):
        if old is None or new is None or old.dim() not in (2, 4) or old.shape != new.shape or len(old) != images:
            return torch.full((images,), torch.nan, dtype=torch.float64)
        same = old.argmax(1) == new.argmax(1)
        shares.append(same.double().reshape(images, -1).mean(1).cpu())
    return torch.stack(shares).mean(0)


def trials(kinds: Sequence[str], sites: Sequence[str], heads: Sequence[int], *, apart: bool) -> list[Trial]:
    """Every kind at all chosen sites together, or at each of them apart."""
    places = [(site,) for site in sites] if apart else [tuple(sites)]
    return [Trial(kind, place, () if kind == "off" else tuple(heads)) for place in places for kind in kinds]
