"""Optional packages, imported when they are needed."""

from importlib import import_module
from typing import Any

from nlprobe.errors import MissingExtraError


def required(package: str, extra: str, purpose: str) -> Any:
    """Import an optional package.

    Args:
        package: Its name.
        extra: The extra of nlprobe that installs it.
        purpose: What needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(package, extra, purpose) from error
