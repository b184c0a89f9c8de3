"""nlprobe: measure what an attention layer really does.

The distances, attention maps and null models of "Global Context Networks" (Cao, Xu, Lin, Wei, Hu) for trained non-local
and global context networks. The names below are loaded on first use, so that `import nlprobe` alone is quick.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlprobe.checkpoints import load as load
    from nlprobe.errors import CaptureError as CaptureError
    from nlprobe.errors import NlprobeError as NlprobeError
    from nlprobe.intervention import intervene as intervene
    from nlprobe.models import build as build
    from nlprobe.probe import AttentionModule as AttentionModule
    from nlprobe.probe import attention_map as attention_map
    from nlprobe.probe import init_block as init_block
    from nlprobe.probe.capture import probe as probe
    from nlprobe.stats import avg_dist as avg_dist

_HOMES = {
    "AttentionModule": "nlprobe.probe",
    "CaptureError": "nlprobe.errors",
    "NlprobeError": "nlprobe.errors",
    "attention_map": "nlprobe.probe",
    "avg_dist": "nlprobe.stats",
    "build": "nlprobe.models",
    "init_block": "nlprobe.probe",
    "intervene": "nlprobe.intervention",
    "load": "nlprobe.checkpoints",
}

_PACKAGES = (
    "blocks",
    "checkpoints",
    "data",
    "intervention",
    "libraries",
    "models",
    "plots",
    "probe",
    "simplification",
    "stats",
    "tables",
    "training",
)

__all__ = [
    "AttentionModule",
    "CaptureError",
    "NlprobeError",
    "attention_map",
    "avg_dist",
    "build",
    "init_block",
    "intervene",
    "load",
    "probe",
]


def __getattr__(name: str) -> object:
    # `nlprobe.probe` is a package that can be called
    if name in _PACKAGES:
        return importlib.import_module(f"nlprobe.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'nlprobe' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
