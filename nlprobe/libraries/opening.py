"""`LIBRARY:NAME` → network."""

from dataclasses import dataclass
from pathlib import Path

from nlprobe.data.preprocessing import Preprocessing
from nlprobe.errors import ConfigError
from nlprobe.libraries.network import Network
from nlprobe.libraries.python import python_network
from nlprobe.libraries.timm import timm_network
from nlprobe.libraries.torchvision import torchvision_network
from nlprobe.libraries.transformers import transformers_network
from nlprobe.suggestions import did_you_mean

LIBRARIES = {
    "timm": "a network of timm: `timm:vit_base_patch16_224`",
    "torchvision": "a classification network of torchvision: `torchvision:vit_b_16`",
    "hf": "a folder with a network of transformers: `hf:path/to/folder`",
    "python": "what a function of yours returns: `python:package.module:callable`",
}
"""What stands before the colon, and what it means."""


@dataclass(frozen=True)
class Settings:
    """How networks of other libraries are opened.

    Attributes:
        seed: Seed of random weights.
        random_weights: Let a folder of transformers be without weights.
        download: Let transformers fetch what is not on this machine.
        preprocessing: What is done to pictures for a network of your own that brings no transform.
    """

    seed: int = 0
    random_weights: bool = False
    download: bool = False
    preprocessing: Preprocessing | None = None


def open_network(source: str, weights: Path | None = None, settings: Settings | None = None) -> Network:
    """The network of another library.

    Args:
        source: `timm:NAME`, `torchvision:NAME`, `hf:PATH` or `python:package.module:callable`.
        weights: The file of its weights; without, they are random, or, for `hf:`, the folder's.
        settings: How it is opened.

    Raises:
        ConfigError: the source is not understood, or a setting is not for it.
        MissingExtraError: its library is not installed.
        CheckpointError: its weights are missing or do not fit.
    """
    settings = settings or Settings()
    library, name = split(source)
    if settings.preprocessing is not None and library != "python":
        raise ConfigError(
            f"--size, --mean and --std do not go with `{source}`, whose preprocessing comes with it",
            "leave them out; they are for `python:` networks",
        )
    match library:
        case "timm":
            return timm_network(name, weights, settings.seed)
        case "torchvision":
            return torchvision_network(name, weights, settings.seed)
        case "python":
            return python_network(name, weights, settings.seed, settings.preprocessing)
    if weights is not None:
        raise ConfigError(f"`{source}` brings its weights", "leave out --weights, or put the file into the folder")
    return transformers_network(name, settings.seed, random_weights=settings.random_weights, download=settings.download)


def split(source: str) -> tuple[str, str]:
    """What stands before the first colon, and what behind it.

    Raises:
        ConfigError: no library is named, or none that is known.
    """
    library, colon, name = source.partition(":")
    if colon and name and library in LIBRARIES:
        return library, name
    if colon and library not in LIBRARIES:
        raise ConfigError(f"`{source}`: unknown library `{library}`", did_you_mean(library, LIBRARIES))
    raise ConfigError(f"`{source}` names no network", f"write one of {', '.join(LIBRARIES.values())}")


def default_name(source: str) -> str:
    """What a network is called without a label: the name alone, of a folder its last part."""
    library, name = split(source)
    return Path(name).name if library == "hf" else name
