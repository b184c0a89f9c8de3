"""Close matches for a name that is not known."""

from collections.abc import Iterable


def did_you_mean(
    name: str, known: Iterable[str], *, limit: int = 3, cutoff: float = 0.6, otherwise: str | None = None
) -> str:
    """A remedy that names the closest of the `known` names; where none is close, `otherwise` or all of them.

    Case and the choice between `-` and `_` do not count as a difference.
    """
    from difflib import get_close_matches

    known = list(known)
    plain = {_plain(candidate): candidate for candidate in known}
    close = [plain[match] for match in get_close_matches(_plain(name), plain, n=limit, cutoff=cutoff)]
    if close:
        return f"did you mean {_either(close)}?"
    if otherwise is not None:
        return otherwise
    return f"known: {', '.join(f'`{candidate}`' for candidate in known)}" if known else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _either(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]
