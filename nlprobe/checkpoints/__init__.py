"""Trained networks in files: our own format, which needs no other file, and the published ones of other projects."""

from nlprobe.checkpoints.about import About, about
from nlprobe.checkpoints.answers import parse_answers
from nlprobe.checkpoints.containers import Container, read_container
from nlprobe.checkpoints.foreign import Foreign, is_foreign, load, project_of, read_foreign
from nlprobe.checkpoints.native import (
    Checkpoint,
    checkpoint_file,
    fingerprint,
    initial_model,
    read_checkpoint,
    save_checkpoint,
)
from nlprobe.checkpoints.registry import Entry, entries, entry_of, published

__all__ = [
    "About",
    "Checkpoint",
    "Container",
    "Entry",
    "Foreign",
    "about",
    "checkpoint_file",
    "entries",
    "entry_of",
    "fingerprint",
    "initial_model",
    "is_foreign",
    "load",
    "parse_answers",
    "project_of",
    "published",
    "read_checkpoint",
    "read_container",
    "read_foreign",
    "save_checkpoint",
]
