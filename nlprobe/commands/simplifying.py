"""From a trained network to one with simplified blocks: which sites, the blocks, and what they cost and give."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from nlprobe.blocks import SOFTMAX_INSTANTIATIONS, ContextBlock, NonLocal
from nlprobe.checkpoints import Checkpoint
from nlprobe.commands.intervening import Comparison, Outcome, trials
from nlprobe.commands.scoring import Effect, Scoring
from nlprobe.commands.sources import Labelled, Named
from nlprobe.data import Batch
from nlprobe.errors import ConfigError
from nlprobe.models import count_costs
from nlprobe.probe import find_sites
from nlprobe.simplification import (
    block_at,
    bottlenecked,
    calibrating,
    distilled,
    latency_ratio,
    peak_bytes,
    simplified,
    with_simplified,
)
from nlprobe.stats.intervals import Estimate, bootstrap_mean

Loaded = Callable[[], Iterable[Batch]]
"""A fresh pass over some images."""

LOWER_IS_BETTER = ("loss",)


@dataclass(frozen=True)
class Verdict:
    """Whether a site can be simplified, from what the mean map does to the task.

    Attributes:
        site: The site.
        effect: Of the mean map on the task's first score.
        mean_map_error: What the mean map changes of the block's output.
        reason: Why it stays as it is; "" where it is simplified.
    """

    site: str
    effect: Effect
    mean_map_error: Estimate
    reason: str = ""


@dataclass
class Version:
    """A network with simplified blocks, and how it does.

    Attributes:
        name: What was done.
        model: The network.
        blocks: The new blocks by site; empty for the network as it is.
        scores: Parts of the task's scores.
        errors: By site, ‖y′ − y‖ / ‖y‖ of each image, on the inputs that the untouched network gives the site.
    """

    name: str
    model: nn.Module
    blocks: dict[str, ContextBlock] = field(default_factory=dict)
    scores: list[object] = field(default_factory=list)
    errors: dict[str, list[Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """A version and what came out.

    Attributes:
        version: The version.
        effects: Against the network as it is.
        errors: By site, over images.
        params: Number of parameters of the network.
        macs: Multiply-accumulates for one image.
        latency: Of the simplified sites, as a ratio to what stood there.
        memory: The same for the peak of what they hold.
        network_latency: Of the whole network.
    """

    version: Version
    effects: tuple[Effect, ...]
    errors: dict[str, Estimate]
    params: int
    macs: int
    latency: float | None
    memory: float | None
    network_latency: float | None


def non_local_sites(model: nn.Module, sites: Sequence[str]) -> dict[str, NonLocal]:
    """The non-local blocks of a network by site.

    Raises:
        ConfigError: there is none, or a chosen site is something else.
    """
    found = find_sites(model, list(sites) or None)
    others = [site for site in found if not isinstance(site.module, NonLocal)]
    if sites and others:
        raise ConfigError(
            f"`{others[0].name}` is no non-local block (`{others[0].block}`)", "simplify handles non-local blocks"
        )
    blocks = {site.name: site.module for site in found if isinstance(site.module, NonLocal)}
    if not blocks:
        raise ConfigError(
            "the network has no non-local block", "`nlprobe inspect` lists its sites; simplify handles non-local blocks"
        )
    return blocks


def verdicts(
    one: Named,
    sites: Sequence[str],
    scoring: Scoring,
    batches: Loaded,
    device: torch.device,
    tolerance: float,
    seed: int,
) -> list[Verdict]:
    """Whether the mean map at each site by itself leaves the task's first score within the tolerance."""
    comparison = Comparison(one, trials(["mean"], sites, (), apart=True), device, scoring, seed=seed)
    comparison.run((batch, batch.ids) for batch in batches())
    return [_verdict(outcome, tolerance, seed) for outcome in comparison.outcomes(seed)]


def _verdict(outcome: Outcome, tolerance: float, seed: int) -> Verdict:
    (site,) = outcome.changes
    effect = outcome.effects[0]
    error = bootstrap_mean(outcome.mean_map_errors[site], seed=seed)
    return Verdict(site, effect, error, left_tolerance(effect, tolerance))


def left_tolerance(effect: Effect, tolerance: float) -> str:
    """In words, how far an interval of a score's change lies below −tolerance; "" where it does not."""
    difference = effect.difference
    low = difference.low if effect.metric not in LOWER_IS_BETTER else -difference.high
    if np.isnan(low):
        return f"{effect.metric} has no interval on a single image"
    if low >= -tolerance:
        return ""
    return (
        f"{effect.metric} changes by {difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}], "
        f"and may fall by no more than {tolerance:g}"
    )


def versions(
    model: nn.Module,
    blocks: Mapping[str, NonLocal],
    batches: Loaded,
    device: torch.device,
    *,
    refine: bool,
    reduction: int | None,
    epochs: int,
    learning_rate: float,
    tell: Callable[[str], object],
) -> Iterator[Version]:
    """The network with simplified blocks at these sites: in closed form, and as each further step makes it.

    Args:
        model: The network, in evaluation mode.
        blocks: Its blocks by site.
        batches: Calibration images.
        device: Where to compute.
        refine: Fit the masks to the mean maps by least squares.
        reduction: r of a bottleneck in the transform; None for none.
        epochs: Passes over the calibration images in which the new blocks are trained to give what the old ones gave.
        learning_rate: Of these.
        tell: Gets a line about each.
    """
    with calibrating(blocks) as found, torch.no_grad():
        for batch in batches():
            model(batch.images.to(device))
    made = {site: simplified(block, found[site].mean_query()) for site, block in blocks.items()}
    yield Version("SNL, closed form", with_simplified(model, made), made)
    softmax = {site for site, block in blocks.items() if block.config.instantiation in SOFTMAX_INSTANTIATIONS}
    if refine and softmax:
        for site in softmax:
            mask = made[site].mask
            assert mask is not None
            refined = found[site].refined_mask(mask.weight.detach()[0].double())
            made = {**made, site: _with_mask(made[site], refined)}
        yield Version("SNL, mask refined", with_simplified(model, made), made)
    if reduction is not None:
        moments = {site: found[site].context_moments() for site in softmax}
        made = {site: bottlenecked(block, reduction, *moments.get(site, ())) for site, block in made.items()}
        yield Version(f"bottleneck, r = {reduction}", with_simplified(model, made), made)
    if epochs:

        def calls() -> Iterator[Callable[[], object]]:
            for _ in range(epochs):
                for batch in batches():
                    yield partial(model, batch.images.to(device))

        steps = epochs * sum(1 for _ in batches())
        losses: list[float] = []

        def said(step: int, loss: float) -> None:
            losses.append(loss)
            if step % max(steps // 5, 1) == 0 or step == steps - 1:
                tell(f"step {step + 1} of {steps}: relative squared error {loss:.3g}")

        made = distilled(model, made, calls(), steps=steps, learning_rate=learning_rate, tell=said)
        before, after = losses[0], float(np.mean(losses[-max(steps // epochs, 1) :]))
        if after < before:
            yield Version("distilled", with_simplified(model, made), made)
        else:
            tell(
                f"distillation came no nearer ({before:.3g} before, {after:.3g} in its last pass) and is left out; "
                "a smaller --learning-rate may"
            )


def _with_mask(block: ContextBlock, weight: Tensor) -> ContextBlock:
    copied = ContextBlock(block.channels, block.config)
    copied.load_state_dict(block.state_dict())
    parameter = next(block.parameters())
    copied = copied.to(parameter.device, parameter.dtype).eval()
    assert copied.mask is not None
    with torch.no_grad():
        copied.mask.weight.copy_(weight[None])
    return copied


def judged(
    one: Named,
    found: Sequence[Version],
    scoring: Scoring,
    batches: Loaded,
    order: Sequence[str],
    device: torch.device,
    seed: int,
) -> list[Judged]:
    """Score every version on the same images, the network as it is first, and measure what each costs."""
    assert one.checkpoint is not None
    base = Version("as it is", one.model)
    everything = [base, *found]
    example: Tensor | None = None
    for batch in batches():
        example = batch.images[:1] if example is None else example
        for version in everything:
            checkpoint: Checkpoint = replace(one.checkpoint, model=version.model)
            with _errors(one.model, found if version is base else ()):
                version.scores.append(scoring.score(Labelled(one.label, checkpoint), [batch], device))
    if example is None:
        raise ConfigError("there is no image that can be read", "give other data")
    images = example.to(device)
    joined = [type(version.scores[0]).joined(version.scores, order) for version in everything]  # type: ignore[attr-defined]
    results = []
    for version, scores in zip(everything, joined, strict=True):
        costs = count_costs(version.model, images.shape[1:])
        effects = scoring.effects(joined[0], scores, seed)
        errors = {site: bootstrap_mean(torch.cat(parts).numpy(), seed=seed) for site, parts in version.errors.items()}
        ratios = _ratios(one.model, version, images) if version.blocks else (None, None, None)
        results.append(Judged(version, tuple(effects), errors, costs.params, costs.macs, *ratios))
    return results


@contextmanager
def _errors(model: nn.Module, found: Sequence[Version]) -> Iterator[None]:
    """Let every new block run on what the old one gets, and note how far they are apart."""
    handles = []
    for version in found:
        for site, block in version.blocks.items():
            noted = version.errors.setdefault(site, [])

            def compare(
                _: nn.Module,
                args: tuple[Tensor, ...],
                z: Tensor,
                parts: list[Tensor] = noted,
                block: nn.Module = block,
            ) -> None:
                y = (z - args[0]).flatten(1).double()
                apart = (block(args[0]) - z).flatten(1).double()
                parts.append((apart.norm(dim=1) / y.norm(dim=1)).cpu())

            handles.append(block_at(model, site)[1].register_forward_hook(compare))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ratios(model: nn.Module, version: Version, images: Tensor) -> tuple[float, float, float]:
    """Latency and peak memory of the new blocks, and latency of the network, over those of the old, on one image."""
    inputs: dict[str, Tensor] = {}
    handles = []
    for site in version.blocks:

        def note(_: nn.Module, args: tuple[Tensor, ...], site: str = site) -> None:
            inputs[site] = args[0].detach().clone()

        handles.append(block_at(model, site)[1].register_forward_pre_hook(note))
    with torch.inference_mode():
        try:
            model(images)
        finally:
            for handle in handles:
                handle.remove()
        old = {site: block_at(model, site)[1] for site in version.blocks}

        def run(blocks: Mapping[str, nn.Module]) -> Callable[[], object]:
            return lambda: [block(inputs[site]) for site, block in blocks.items()]

        latency = latency_ratio(run(old), run(version.blocks))
        memory = max(peak_bytes(run({site: version.blocks[site]})) for site in old) / max(
            peak_bytes(run({site: old[site]})) for site in old
        )
        network = latency_ratio(lambda: model(images), lambda: version.model(images))
    return latency, memory, network
