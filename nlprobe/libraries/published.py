"""Weights that torchvision and timm publish, by name: from the libraries' caches, or fetched when asked for."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torchvision.models import WeightsEnum

from nlprobe.errors import CheckpointError, ConfigError
from nlprobe.libraries.extras import required
from nlprobe.libraries.timm import refuse_unknown
from nlprobe.libraries.torchvision import described_weights
from nlprobe.suggestions import did_you_mean

PUBLISHERS = ("torchvision", "timm")
"""What stands before the colon of published weights."""

_ENUMERATION = re.compile(r"_(Quantized)?Weights$")
_HASH = re.compile(r"-([0-9a-f]{8,})\.")
_TIMM_FILE = "model.safetensors"


@dataclass(frozen=True)
class Published:
    """Weights that have a name.

    Attributes:
        source: Their whole name, such as `torchvision:ResNet50_Weights.IMAGENET1K_V2`.
        url: Where they are.
        file: Where they go on this machine, or, where the library alone knows it, the file's name.
        mean: Mean of red, green and blue by which their pictures were normalised, if the library tells.
        std: Standard deviation of the same.
        cached: Finds the file on this machine without the network; None if it is not there.
        download: Fetches it, whole or not at all.
    """

    source: str
    url: str
    file: Path
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    cached: Callable[[], Path | None]
    download: Callable[[], object]

    def fetch(self) -> Path:
        """The file on this machine; where it is not there yet, it is fetched.

        Raises:
            CheckpointError: it cannot be fetched.
        """
        if (path := self.cached()) is not None:
            return path
        try:
            self.download()
        # What the two libraries raise without a network, and on a damaged or missing file, has no common class.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"`{self.source}` is not on this machine and cannot be fetched: {reason}",
                f"fetch {self.url} by hand and give the file: --pretrained {self.file.name}"
                + (f"; or put it at {self.file}" if self.file.is_absolute() else ""),
            ) from error
        path = self.cached()
        assert path is not None, "a download that did not raise has left the file"
        return path


def is_published(text: str) -> bool:
    """Whether it names published weights, and no file."""
    return text.partition(":")[0] in PUBLISHERS and ":" in text


def published(source: str) -> Published:
    """Weights by name; nothing is fetched.

    Args:
        source: `torchvision:NAME`, `torchvision:NAME.WEIGHTS` or `torchvision:ResNet50_Weights.IMAGENET1K_V2`;
            `timm:NAME` or `timm:NAME.TAG`. Without a version it is the one that the library takes by default.

    Raises:
        ConfigError: there are no such weights.
        MissingExtraError: timm is not installed.
    """
    library, _, name = source.partition(":")
    return _of_timm(name) if library == "timm" else _of_torchvision(name)


def _of_torchvision(name: str) -> Published:
    weights = _enumerated(name)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / weights.url.rpartition("/")[2]
    found = _HASH.search(path.name)

    def download() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(path), hash_prefix=found[1] if found else None)

    transform = weights.transforms()
    return Published(
        source=f"torchvision:{weights}",
        url=weights.url,
        file=path,
        mean=tuple(transform.mean) if hasattr(transform, "mean") else None,
        std=tuple(transform.std) if hasattr(transform, "std") else None,
        cached=lambda: path if path.is_file() else None,
        download=download,
    )


def _enumerated(name: str) -> WeightsEnum:
    plain, _, tag = name.partition(".")
    if not _ENUMERATION.search(plain):
        return described_weights(plain, tag)
    known = {
        type(each).__name__: type(each)
        for model in torchvision.models.list_models(module=torchvision.models)
        for each in [torchvision.models.get_model_weights(model).DEFAULT]
    }
    if plain not in known:
        raise ConfigError(f"torchvision has no weights `{plain}`", did_you_mean(plain, list(known)))
    names = [member.name for member in known[plain]]
    if tag not in (*names, "", "DEFAULT"):
        raise ConfigError(f"torchvision has no weights `{name}`", did_you_mean(tag, names))
    return known[plain][tag or "DEFAULT"]


def _of_timm(name: str) -> Published:
    timm = required("timm", "timm", f"`timm:{name}`")
    refuse_unknown(timm, name)
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise ConfigError(f"timm publishes no weights of `{name}`", "`timm.list_pretrained()` lists what there is")
    hub = required("huggingface_hub", "timm", f"`timm:{name}`")
    repository, _, revision = config.hf_hub_id.partition("@")
    file = config.hf_hub_filename or _TIMM_FILE
    where = {"repo_id": repository, "filename": file, "revision": revision or None}

    def cached() -> Path | None:
        found = hub.try_to_load_from_cache(**where)
        return Path(found) if isinstance(found, str) else None

    return Published(
        source=f"timm:{config.architecture}.{config.tag}",
        url=hub.hf_hub_url(**where),
        file=Path(file),
        mean=tuple(config.mean),
        std=tuple(config.std),
        cached=cached,
        download=lambda: hub.hf_hub_download(**where),
    )
