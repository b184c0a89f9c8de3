"""Networks of other libraries by name: how they are built, what their weights are, how their inputs are made."""

from nlprobe.libraries.network import Drawn, Given, Loaded, Network, Pictures, Texts, Weights
from nlprobe.libraries.opening import LIBRARIES, Settings, default_name, open_network
from nlprobe.libraries.python import PythonItems, is_python

__all__ = [
    "LIBRARIES",
    "Drawn",
    "Given",
    "Loaded",
    "Network",
    "Pictures",
    "PythonItems",
    "Settings",
    "Texts",
    "Weights",
    "default_name",
    "is_python",
    "open_network",
]
