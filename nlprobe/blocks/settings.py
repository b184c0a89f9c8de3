"""What the configurations of all blocks share: checks with clear errors, and the round trip through JSON."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from nlprobe.errors import ConfigError
from nlprobe.suggestions import did_you_mean

Config = TypeVar("Config", bound="BlockConfig")


class BlockConfig:
    """Base of the frozen dataclasses that configure a block."""

    block: ClassVar[str]
    """The block's name in configuration files."""

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain JSON values, with the block's name under `block`."""
        settings = dataclasses.asdict(self)  # type: ignore[call-overload]
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        return {"block": self.block, **plain}

    @classmethod
    def from_dict(cls: type[Config], settings: Mapping[str, Any]) -> Config:
        """The inverse of `as_dict`; settings that are left out take their defaults.

        Raises:
            ConfigError: an unknown key, a value that the setting cannot take, or another block's settings.
        """
        settings = dict(settings)
        block = settings.pop("block", cls.block)
        if block != cls.block:
            raise ConfigError(
                f"settings of the block `{block}` given to `{cls.block}`", "use that block's config class"
            )
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in settings:
            if name not in known:
                raise unknown(f"setting of the block `{cls.block}`", name, known)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})


def unknown(what: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not among `known`, with the closest of them."""
    return ConfigError(f"unknown {what}: `{name}`", did_you_mean(str(name), known))


def check_choice(block: str, setting: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise unknown(f"value for `{setting}` of the block `{block}`", value, choices)


def check_positive_integer(block: str, setting: str, value: object) -> None:
    """Raise unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"`{setting}` of the block `{block}` is `{value!r}`", "it must be an integer of at least 1")


def check_switch(block: str, setting: str, value: object) -> None:
    """Raise unless `value` is a bool: a string such as "false" is true, and would pass unnoticed."""
    if not isinstance(value, bool):
        raise ConfigError(f"`{setting}` of the block `{block}` is `{value!r}`", "it must be true or false")


def check_positive_number(block: str, setting: str, value: object) -> None:
    """Raise unless `value` is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:  # type: ignore[operator]
        raise ConfigError(f"`{setting}` of the block `{block}` is `{value!r}`", "it must be a number above 0")


def check_feature_map(name: str, channels: int, x: Tensor) -> None:
    """Raise unless `x` is (B, channels, ...) with one or more spatial axes.

    Args:
        name: The block's class.
        channels: What it was made for.
        x: What it got.
    """
    if x.ndim < 3 or x.shape[1] != channels:
        raise ConfigError(
            f"`{name}` of {channels} channels got an input of shape `{tuple(x.shape)}`",
            f"it takes (B, {channels}, ...) with one or more spatial axes",
        )


def check_image(name: str, channels: int, x: Tensor) -> None:
    """Raise unless `x` is (B, channels, H, W).

    Args:
        name: The block's class.
        channels: What it was made for.
        x: What it got.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise ConfigError(
            f"`{name}` of {channels} channels got an input of shape `{tuple(x.shape)}`",
            f"it takes (B, {channels}, H, W)",
        )


def check_share(block: str, setting: str, value: object) -> None:
    """Raise unless `value` is a number from 0 up to, but not, 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:  # type: ignore[operator]
        raise ConfigError(f"`{setting}` of the block `{block}` is `{value!r}`", "it must be at least 0 and below 1")
