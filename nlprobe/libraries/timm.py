"""Networks of timm, with the data configuration that timm keeps for each."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nlprobe.errors import ConfigError
from nlprobe.libraries.extras import required
from nlprobe.libraries.network import Drawn, Network, Pictures, drawn
from nlprobe.libraries.weights import load_weights
from nlprobe.suggestions import did_you_mean


def timm_network(name: str, weights: Path | None = None, seed: int = 0) -> Network:
    """A network of timm, never downloaded.

    Args:
        name: As `timm.create_model` takes it, with or without the tag of its weights
            (`vit_base_patch16_224.augreg_in21k`); the tag decides about classes and data configuration.
        weights: Their file; random weights without.
        seed: Seed of random weights.

    Raises:
        MissingExtraError: timm is not installed.
        ConfigError: timm has no such network.
        CheckpointError: the weights do not fit.
    """
    timm = required("timm", "timm", f"`timm:{name}`")
    refuse_unknown(timm, name)
    build = partial(_build, timm, name)
    model = drawn(build, seed)
    loaded = load_weights(model, weights) if weights else None
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    return Network(
        source=f"timm:{name}",
        model=model.eval(),
        weights=loaded or Drawn(seed),
        pictures=Pictures(transform, f"timm's data configuration, {_written(config)}", dict(config)),
        redrawn=partial(drawn, build, seed) if loaded else None,
        package="timm",
    )


def _build(timm: Any, name: str) -> nn.Module:
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def refuse_unknown(timm: Any, name: str) -> None:
    """Raise a ConfigError, with close matches, where timm has no network or no weights of that name."""
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        close = did_you_mean(plain, timm.list_models(), otherwise="`timm.list_models()` lists them")
        raise ConfigError(f"timm has no network `{plain}`", close)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        raise ConfigError(
            f"timm has no weights `{tag}` of `{plain}`", did_you_mean(tag, tags, otherwise="leave it out")
        )


def _written(config: Mapping[str, Any]) -> str:
    side = "x".join(str(length) for length in config["input_size"][1:])
    mean, std = (", ".join(f"{value:g}" for value in config[key]) for key in ("mean", "std"))
    return (
        f"input {side}, crop share {config['crop_pct']:g} ({config['crop_mode']}, {config['interpolation']}), "
        f"mean {mean}, std {std}"
    )
