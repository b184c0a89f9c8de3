"""Capturing what an attention block computes, and reducing it to records inside the forward pass.

The package shares its name with the function that everybody calls first, so it can be called too:
`nlprobe.probe(model)` is `nlprobe.probe.probe(model)`.
"""

import sys
from types import ModuleType

from nlprobe.probe.adapters import Adapter, AttentionModule, PairwiseCapture
from nlprobe.probe.audit import SiteAudit
from nlprobe.probe.baselines import InitBlock, init_block
from nlprobe.probe.capture import Probe, probe
from nlprobe.probe.maps import AttentionMaps, attention_map
from nlprobe.probe.mean_maps import MeanMaps
from nlprobe.probe.reader import Reader
from nlprobe.probe.sites import Site, find_sites

__all__ = [
    "Adapter",
    "AttentionMaps",
    "AttentionModule",
    "InitBlock",
    "MeanMaps",
    "PairwiseCapture",
    "Probe",
    "Reader",
    "Site",
    "SiteAudit",
    "attention_map",
    "find_sites",
    "init_block",
    "probe",
]


class _CallablePackage(ModuleType):
    __call__ = staticmethod(probe)


sys.modules[__name__].__class__ = _CallablePackage
