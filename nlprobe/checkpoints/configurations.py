"""The configuration that OpenMMLab's training writes into `meta`, read as a text and never run.

It is Python: assignments of literals, `dict(...)`, names that were assigned before. Those are understood here by their
syntax alone; whatever else stands there is left out.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from nlprobe.checkpoints.containers import Container

_KEYS = ("config", "cfg")
"""Under which `meta` of version 0 and of version 1 hold the text."""

LONGEST = 1 << 20
"""Characters of a configuration that are read; they have some ten thousand."""


class _Unknown:
    """In the place of what is no literal."""


_UNKNOWN = _Unknown()


def configuration(container: Container) -> Mapping[str, Any]:
    """The settings of a file's `meta` by name; empty where there are none, or none that can be understood."""
    for key in _KEYS:
        text = container.meta.get(key)
        if isinstance(text, str) and "\n" in text:
            return read_configuration(text)
    return {}


def read_configuration(text: str) -> dict[str, Any]:
    """The names that a text assigns at its top level, with what is known of their values."""
    try:
        tree = ast.parse(text[:LONGEST])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                found[target.id] = _value(statement.value, found, 0)
    return {name: value for name, value in found.items() if value is not _UNKNOWN}


def sections(value: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """All dictionaries within a setting, itself included, from the outside inwards."""
    if depth > 20:
        return
    if isinstance(value, Mapping):
        yield value
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for part in inside:
        yield from sections(part, depth + 1)


def first(value: Any, *names: str) -> Any:
    """The first setting of one of these names within `value`, however deep; None if there is none."""
    for section in sections(value):
        for name in names:
            if section.get(name) is not None:
                return section[name]
    return None


def pixels(settings: Mapping[str, Any]) -> dict[str, str]:
    """How pictures are normalised and resized for the test, in the words of `--set`."""
    found: dict[str, str] = {}
    norm = settings.get("img_norm_cfg")
    if not isinstance(norm, Mapping):
        model = settings.get("model")
        own = settings.get("data_preprocessor")
        norm = own if isinstance(own, Mapping) else first(model, "data_preprocessor")
    if isinstance(norm, Mapping) and norm.get("mean") is not None and norm.get("std") is not None:
        turned = norm.get("to_rgb", norm.get("to_bgr") is False or norm.get("bgr_to_rgb"))
        found["order"] = "rgb" if turned in (True, None) else "bgr"
        for name in ("mean", "std"):
            if isinstance(norm[name], list | tuple):
                found[name] = ",".join(str(value) for value in norm[name])
    scale = first(settings.get("test_pipeline"), "img_scale", "scale")
    if isinstance(scale, list | tuple) and len(scale) == 2 and all(isinstance(side, int) for side in scale):
        found["resize"] = str(max(scale) if min(scale) < 0 else min(scale))
        if min(scale) > 0:
            found["longest"] = str(max(scale))
    return found


def text_of(value: Any) -> str:
    """A value in the words of `--set`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(node: ast.expr, known: Mapping[str, Any], depth: int) -> Any:
    """What an expression is, if it is a literal, a `dict(...)` of them or a name; otherwise that it is unknown."""
    if depth > 50:
        return _UNKNOWN
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id, _UNKNOWN)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, known, depth + 1)
        return -value if isinstance(value, int | float) else _UNKNOWN
    if isinstance(node, ast.List | ast.Tuple):
        parts = [_value(part, known, depth + 1) for part in node.elts]
        if any(part is _UNKNOWN for part in parts):
            return _UNKNOWN
        return tuple(parts) if isinstance(node, ast.Tuple) else parts
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        items = [(key.value, _value(value, known, depth + 1)) for key, value in pairs if isinstance(key, ast.Constant)]
        return {key: value for key, value in items if value is not _UNKNOWN}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        named = [(word.arg, _value(word.value, known, depth + 1)) for word in node.keywords if word.arg is not None]
        return {name: value for name, value in named if value is not _UNKNOWN}
    return _UNKNOWN
