"""What `nlprobe stats` is asked to measure of maps beside their distances: metrics, and a rectangle."""

from collections.abc import Sequence

from nlprobe.errors import ConfigError
from nlprobe.measuring import Rectangle
from nlprobe.stats.records import ASKED_METRICS
from nlprobe.suggestions import did_you_mean


def metric_names(given: Sequence[str]) -> tuple[str, ...]:
    """The metrics that `--metric a --metrics b,c` asks for, each once.

    Raises:
        ConfigError: one is unknown.
    """
    asked = list(dict.fromkeys(name.strip() for text in given for name in text.split(",")))
    for name in asked:
        if name not in ASKED_METRICS:
            raise ConfigError(f"unknown metric `{name}`", did_you_mean(name, ASKED_METRICS))
    return tuple(asked)


def read_rectangle(text: str | None, positions: str) -> Rectangle | None:
    """Queries and keys from `Q0:Q1,K0:K1`; an end that is left out is that of the sequence.

    Raises:
        ConfigError: it is not written so, or missing where its positions are asked for.
    """
    if text is None:
        if positions == "rectangle":
            raise ConfigError("--positions rectangle without --rectangle", "say which: --rectangle Q0:Q1,K0:K1")
        return None
    try:
        sides = [
            slice(*(int(end) if end.strip() else None for end in side.split(":", 1)))
            for side in text.split(",")
            if side.count(":") == 1
        ]
    except ValueError:
        sides = []
    if len(sides) != 2 or text.count(",") != 1:
        raise ConfigError(
            f"`--rectangle {text}` is no rectangle", "write `--rectangle Q0:Q1,K0:K1`, such as `0:14,0:49`"
        )
    return sides[0], sides[1]
