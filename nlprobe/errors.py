"""The errors that nlprobe raises on purpose; each has a cause, a remedy and the exit code of the command line."""


class NlprobeError(Exception):
    """Root of all errors that nlprobe raises on purpose.

    Args:
        cause: One line: what is wrong and where, with the names or shapes that the caller gave in backticks.
        remedy: One line: how to mend it.
    """

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause}\n{remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy


class ConfigError(NlprobeError):
    """A setting, name, flag or configuration key is not understood."""

    exit_code = 2


class CaptureError(NlprobeError):
    """A site did not fire, or what was captured does not reproduce what the model computed."""

    exit_code = 3


class DataError(NlprobeError):
    """Data are missing, unreadable or not what the task needs."""

    exit_code = 4


class CheckpointError(NlprobeError):
    """Weights are missing, damaged or do not belong to the model."""

    exit_code = 4


class MissingExtraError(NlprobeError):
    """An optional dependency is not installed."""

    exit_code = 4

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package `{package}`, which is not installed", f"pip install 'nlprobe[{extra}]'"
        )
