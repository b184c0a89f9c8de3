"""What a training is going to do, in a few lines, before it does it."""

from pathlib import Path

import torch

from nlprobe.commands.config import FILE_NAME
from nlprobe.models import VideoConfig
from nlprobe.processes import Processes
from nlprobe.training import Recipe
from nlprobe.training.catalogue import CHOICES
from nlprobe.training.run import Run
from nlprobe.training.state import FILES


def plan(run: Run, device: torch.device, out: Path, processes: Processes, own_rate: float) -> str:
    """The run in a few lines.

    Args:
        run: What is trained, on what, how.
        device: Where.
        out: The run's folder.
        processes: How many take part.
        own_rate: The learning rate before it was scaled to the batch.
    """
    network = run.build()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    lines = [
        f"model: {run.model}, {parameters:,} parameters; sites: {', '.join(run.config.sites()) or 'none'}",
        f"data: {run.training.kind} in {run.training.root}, {len(run.training.classes or ())} classes, "
        f"{len(run.training)} {run.training.holds} to train on and {len(run.validation)} to validate on",
        *(f"  {note}" for part in (run.training, run.validation) for note in part.notes()),
        f"preprocessing: {run.recipe.preprocessing}",
        _schedule(run),
        f"effective batch: {batch(run.recipe, processes)}",
        f"learning rate: {_rate(run.recipe, own_rate)}; {_optimiser(run.recipe)}",
    ]
    lines += [f"pretrained: {_pretrained(run)}"] if run.pretrained else []
    lines += [f"frozen: {_frozen(run.recipe)}"] if run.recipe.frozen or run.recipe.batch_norm == "frozen" else []
    lines += [
        f"device: {device}{f' and {processes.count - 1} more' if processes.count > 1 else ''}{_precision(run.recipe)}",
        f"files: {', '.join((*FILES, FILE_NAME))} in {out}",
    ]
    return "\n".join(lines)


def choices(recipe: Recipe) -> str:
    """What the text behind a recipe leaves open and how it was chosen, with a line break before; or nothing."""
    if recipe.name not in CHOICES:
        return ""
    known = CHOICES[recipe.name]
    return "\n".join([f"\nleft open by {known.text}, and chosen:", *(f"  {choice}" for choice in known.choices)])


def batch(recipe: Recipe, processes: Processes) -> str:
    """How a step's images are parted, in words and numbers."""
    images = recipe.batch_size // (processes.count * recipe.accumulate)
    parts = [f"{processes.count} processes"] if processes.count > 1 else []
    parts += [f"{recipe.accumulate} parts"] if recipe.accumulate > 1 else []
    return f"{recipe.batch_size} images{' = ' if parts else ''}{' × '.join([*parts, str(images)] if parts else [])}"


def _schedule(run: Run) -> str:
    own = run.recipe
    steps = len(run.training) // own.batch_size
    return f"recipe: {own.name}, {own.epochs} epochs of {steps} steps of {own.batch_size} images; seed {run.seed}"


def _rate(recipe: Recipe, own_rate: float) -> str:
    schedule, rate = recipe.schedule, recipe.optimiser.learning_rate
    scaled = f" = {own_rate:g} × {rate / own_rate:g}" if rate != own_rate else ""
    length = f"{schedule.warmup_steps} steps" if schedule.warmup_steps else f"{schedule.warmup_epochs:g} epochs"
    warm = f", after {length} of warm-up" if schedule.warmup_steps or schedule.warmup_epochs else ""
    return f"{rate:g}{scaled} ({schedule.kind} by {schedule.unit}{warm})"


def _optimiser(recipe: Recipe) -> str:
    own = recipe.optimiser
    numbers = f"momentum {own.momentum:g}" if own.kind == "sgd" else f"betas {own.betas[0]:g}, {own.betas[1]:g}"
    exempt = "" if own.decay_norms else " (not for norms and biases)"
    rules = f"; {', '.join(own.rules)}" if own.rules else ""
    clip = f", gradients clipped at {own.clip_norm:g}" if own.clip_norm else ""
    return f"{own.kind}, {numbers}, weight decay {own.weight_decay:g}{exempt}{rules}{clip}"


def _pretrained(run: Run) -> str:
    name = f"{run.source} in " if run.source else ""
    clips = f", inflated: {run.inflation}" if isinstance(run.config, VideoConfig) else ""
    return f"{name}{run.pretrained}, {'with its classifier' if run.classifier else 'without its classifier'}{clips}"


def _frozen(recipe: Recipe) -> str:
    parts = list(recipe.frozen)
    parts += ["all norms of the trunk"] if recipe.batch_norm == "frozen" else []
    return ", ".join(parts)


def _precision(recipe: Recipe) -> str:
    notes = [f"mixed precision {recipe.amp}"] if recipe.amp != "off" else []
    notes += ["channels last"] if recipe.channels_last else []
    notes += ["synchronised batch norm"] if recipe.batch_norm == "sync" else []
    return "".join(f", {note}" for note in notes)
