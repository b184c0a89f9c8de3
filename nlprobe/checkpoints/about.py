"""What can be said of a file of another project before its network is built."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlprobe.checkpoints.answers import Question
from nlprobe.checkpoints.configurations import configuration
from nlprobe.checkpoints.containers import Container, read_container
from nlprobe.checkpoints.foreign import project_of
from nlprobe.checkpoints.registry import Entry, entry_of
from nlprobe.errors import CheckpointError

_KINDS = {
    "safetensors": "a safetensors file",
    "zip": "a file of torch.save",
    "legacy": "a file of torch.save as before torch 1.6",
    "pickle": "a Python 2 pickle of numpy arrays",
}


@dataclass(frozen=True)
class About:
    """What a file is.

    Attributes:
        container: The file, opened.
        entry: The published checkpoint that it is; None if none.
        project: The project whose names it has; empty if nobody's.
        description: What its names and shapes tell of the network.
        questions: What they do not tell.
        configured: What the configuration beside them does.
    """

    container: Container
    entry: Entry | None
    project: str
    description: str
    questions: tuple[Question, ...]
    configured: Mapping[str, str]

    def lines(self) -> list[str]:
        """All of it in sentences, one a line."""
        held = self.container
        numbers = sum(tensor.numel() for tensor in held.weights.values())
        where = f" under `{held.wrapper}`" if held.wrapper else ""
        found = [
            f"file: {held.path}, {_KINDS[held.kind]}: {len(held.weights)} tensors{where}, {numbers / 1e6:.3f} M numbers"
        ]
        if held.beside:
            found.append(f"beside them: {', '.join(sorted(held.beside))}")
        if held.meta:
            found.append(f"meta: {', '.join(sorted(map(str, held.meta)))}")
        if held.stood_in:
            found.append(f"not built, as it is not needed: {', '.join(held.stood_in)}")
        found.append(f"project: {self.description}" if self.project else "project: none that nlprobe reads")
        if self.entry is None:
            found.append("registry: no published checkpoint has this hash")
            if self.configured:
                told = ", ".join(f"{name}={value}" for name, value in self.configured.items())
                found.append(f"its configuration tells: {told}")
            asked = ", ".join(question.name for question in self.questions if question.name not in self.configured)
            return [*found, *([f"its weights do not tell: {asked}"] if asked else [])]
        entry = self.entry
        found.append(f"registry: {entry.name}, trained on {entry.data}, published {entry.metric or 'without a score'}")
        found.append(f"settings: {', '.join(f'{name}={value}' for name, value in entry.settings.items())}")
        return [*found, *([f"FLAWED: {entry.flaw}"] if entry.flaw else []), *([entry.note] if entry.note else [])]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        held = self.container
        return {
            "kind": held.kind,
            "wrapper": held.wrapper,
            "tensors": len(held.weights),
            "beside": sorted(held.beside),
            "stand_ins": list(held.stood_in),
            "project": self.project or None,
            "description": self.description or None,
            "registry": self.entry.name if self.entry else None,
            "metric": self.entry.metric if self.entry else None,
            "flaw": self.entry.flaw or None if self.entry else None,
            "configured": dict(self.configured),
            "questions": [question.name for question in self.questions],
        }


def about(path: Path) -> About:
    """Look into a file of weights; nothing of it is run, and no network is built.

    Raises:
        CheckpointError: it cannot be read.
    """
    container, entry = read_container(path), entry_of(path)
    try:
        project = project_of(container)
    except CheckpointError:
        whose = entry.project if entry else ""
        return About(container, entry, whose, whose, (), {})
    weights: Mapping[str, Any] = container.weights
    told = project.configured(configuration(container), weights)
    return About(container, entry, project.name, project.describe(weights), tuple(project.questions(weights)), told)
