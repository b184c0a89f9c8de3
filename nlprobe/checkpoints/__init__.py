"""Trained networks in files that need no other file."""

from nlprobe.checkpoints.native import (
    Checkpoint,
    checkpoint_file,
    fingerprint,
    initial_model,
    load,
    read_checkpoint,
    save_checkpoint,
)

__all__ = [
    "Checkpoint",
    "checkpoint_file",
    "fingerprint",
    "initial_model",
    "load",
    "read_checkpoint",
    "save_checkpoint",
]
